"""The processes that train one model together, one per device, and how they agree.

torchrun, srun or Lightning Fabric start them, torch.distributed carries what they tell each other. Files, the
console and progress belong to the first process. What one process alone finds out (a clip that can't be read, a
signal) it tells the others before any of them acts on it, so that all stop at the same step.

With a single process every question answers itself, and torch.distributed is not needed.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vireo.config import Settings
from vireo.devices import choose_precision
from vireo.errors import TrainingError, UsageError, VireoError

T = TypeVar("T")


def make_fabric(config: Settings) -> Fabric:
    """Fabric with the devices and the precision asked for, not launched yet.

    Raises:
        UsageError: this machine has no such devices or cannot compute in this precision, or another number of
            processes was started than the settings say.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces what our own lines say
    try:
        alone = Fabric(accelerator=config.accelerator, devices=1)
        precision = choose_precision(config.precision, alone.device)
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy if config.devices * config.num_nodes > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
        )
    except UsageError:
        raise
    except Exception as error:  # Fabric raises its own MisconfigurationException and others
        first = str(error).strip().splitlines()[0]
        many = f" with {config.devices} devices" if config.devices > 1 else ""
        raise UsageError(f"accelerator {config.accelerator!r}{many}: {first}") from None
    if config.sync_bn and fabric.device.type != "cuda":
        raise UsageError(f"sync_bn needs GPUs, and this run is on {fabric.device.type}; leave it out")
    by = "WORLD_SIZE" if torch.distributed.is_torchelastic_launched() else "SLURM_STEP_NUM_TASKS"
    started = os.environ.get(by, "1")  # Fabric starts them itself where nobody else has
    if started not in ("1", str(config.devices * config.num_nodes)):
        raise UsageError(
            f"{started} processes were started, but devices is {config.devices} and num_nodes {config.num_nodes}; "
            "their product must be the number of processes"
        )
    return fabric


def launch(fabric: Fabric) -> Team:
    """Start the other processes, unless torchrun or srun did, and meet them.

    Raises:
        UsageError: the machine's scheduler was told other numbers than the settings.
    """
    try:
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"the processes could not be started: {str(error).strip().splitlines()[0]}") from error
    # Of 1×1 convolutions, whose two channels-last strides mean the same memory: the gradient is copied, as ever.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return Team(fabric)


class Team:
    """The processes of a run, seen from one of them. Every method is called by all of them, in the same order.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        first: whether this is the one that writes and prints.
        device: of this process.
        agreed: the error that ended the run in all processes, which the first one tells; see :meth:`agree`.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.rank, self.size, self.first = fabric.global_rank, fabric.world_size, fabric.global_rank == 0
        self.agreed: VireoError | None = None
        self.device = fabric.device

    def table(self, numbers: Sequence[float]) -> Tensor:
        """A few numbers of every process, (size, len(numbers)) float64 on the CPU, one row per process."""
        mine = torch.tensor(list(numbers), dtype=torch.float64)
        if self.size == 1:
            return mine[None]
        mine = mine.to(self.device)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        with peers_may_be_gone():
            torch.distributed.all_gather(rows, mine)
        return torch.stack(rows).cpu()

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return here if self.size == 1 else bool(self.table([here]).any())

    def gather(self, value: T) -> list[T]:
        """A picklable value of every process, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        with peers_may_be_gone():
            torch.distributed.all_gather_object(values, value)
        return values

    def spread_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers: running statistics are those of a process's own clips."""
        if self.size > 1:
            with peers_may_be_gone():
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, 0)

    def on_first(self, action: Callable[[], object]) -> None:
        """Do something in the first process; the others wait, and end if it fails.

        Raises:
            VireoError: the action raised it.
            SystemExit: in the other processes then.
        """
        failed: VireoError | None = None
        if self.first:
            try:
                action()
            except VireoError as error:
                failed = error
        if self.any(failed is not None):
            raise failed or SystemExit(1)

    def agree(self, error: VireoError) -> VireoError:
        """Mark an error that all processes raise at this place: one of them is enough to print it."""
        self.agreed = error
        return error


@contextmanager
def peers_may_be_gone() -> Iterator[None]:
    """Turn what torch.distributed raises when another process has ended into an error that says so.

    Raises:
        TrainingError: another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in text.lower() or "NCCL" in text
        if not lost or isinstance(error, VireoError):
            raise
        raise TrainingError(
            "Another process of this run has ended; what it printed says why. What training saved last is "
            f"intact, and --resume goes on from there ({text.splitlines()[0]:.120})"
        ) from error


def unused_parameters(model: nn.Module, loss: Callable[[], Tensor]) -> list[str]:
    """Names of the parameters that a loss does not depend on.

    DistributedDataParallel would wait for their gradients for ever.

    Args:
        model: whose parameters; left in the mode it was in.
        loss: computes the loss of one clip, with the model in evaluation mode.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        gradients = torch.autograd.grad(loss(), [p for _, p in named], allow_unused=True)
    finally:
        for module, training in modes.items():
            module.training = training
    return [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]
