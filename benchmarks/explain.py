"""What a heat map costs: `grad_cam` of one clip divided by a forward and backward pass of it, in turns in one run.

    python benchmarks/explain.py
    python benchmarks/explain.py --networks tei:resnet50 kpsem:mfnet --size 224 --frames 8 --device cuda

Prints a Markdown table: medians in milliseconds, and ratios. The backward pass is that of training, to all weights;
the model is in evaluation mode in both. The first stage's heat is the dearest: gradients go through the whole network.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys

import torch

from vireo.backbones import flow_of
from vireo.bench import describe_machine, random_clips
from vireo.devices import choose_device
from vireo.explain.cam import grad_cam
from vireo.memory import keep_memory
from vireo.model import create_model, to_channels_last
from vireo.timing import time_in_turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["tsn:mobilenetv2_100", "tei:resnet18", "kpsem:mfnet"])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=112, help="height and width, pixels")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keep_memory()  # as the command line does
    device = choose_device(args.device)
    print(f"Machine: {describe_machine(device)}. Command: `{shlex.join(['python', *sys.argv])}`\n")
    print("| network | forward + backward, ms | Grad-CAM, ms | ratio | Grad-CAM++ | Grad-CAM of the first stage |")
    print("|---|---|---|---|---|---|")
    for network in args.networks:
        temporal, _, backbone = network.partition(":")
        model = create_model(temporal, backbone, num_classes=100, num_frames=args.frames)
        model = to_channels_last(model, device).eval()
        clips = random_clips(model, 1, (args.size, args.size), device)
        first = next(
            path
            for path in flow_of(model.backbone)
            if path.startswith(("layer1", "conv2", "blocks.0", "stages.0", "s1"))
        )

        def both_ways(model: torch.nn.Module = model, clips: torch.Tensor = clips) -> None:
            model(clips).sum().backward()
            model.zero_grad(set_to_none=True)

        calls = {
            "both": both_ways,
            "cam": lambda model=model, clips=clips: grad_cam(model, clips),
            "plus": lambda model=model, clips=clips: grad_cam(model, clips, method="gradcam++"),
            "first": lambda model=model, clips=clips, first=first: grad_cam(model, clips, layer=first),
        }
        times = time_in_turns(calls, repeats=args.repeats, device=device)
        both, cam, plus, early = (1000 * statistics.median(times[name]) for name in calls)
        print(
            f"| {temporal} on {backbone} | {both:.1f} | {cam:.1f} | **{cam / both:.2f}** | {plus / both:.2f} "
            f"| {early / both:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
