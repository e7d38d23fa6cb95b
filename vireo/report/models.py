"""A page about up to three models side by side: no scripts, pictures inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import encode_jpeg

import vireo
from vireo.data.outputs import write_text
from vireo.evaluation import Evaluation
from vireo.predict import Prediction
from vireo.report.charts import compared_curves, matrix
from vireo.report.parts import image, page, percent, text
from vireo.report.sections import section


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """One model on the page.

    Attributes:
        name: short, e.g. ``TEI``.
        about: one sentence on what the model does.
        evaluation: its result on the test part.
        metrics: its learning curve, the rows of ``metrics.csv``.
        seconds: training time.
    """

    name: str
    about: str
    evaluation: Evaluation
    metrics: Sequence[dict[str, float]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The frames a model saw of one clip, with what each model said.

    Attributes:
        title: where the clip comes from.
        label: its true class.
        clip: (T, 3, S, S) uint8.
        predictions: model name → prediction.
    """

    title: str
    label: str
    clip: Tensor
    predictions: dict[str, Prediction]


def write_report(
    path: Path,
    *,
    title: str,
    intro: Sequence[str],
    models: Sequence[ModelSection],
    strips: Sequence[Strip] = (),
    ceiling: float | None = None,
    commands: Sequence[str] = (),
    provenance: Sequence[str] = (),
) -> Path:
    """Write the page.

    Args:
        path: the .html file; its folder is made if missing.
        title: headline.
        intro: paragraphs under it.
        models: one section per model, at most three; the best is highlighted, unless all are equally good.
        strips: clips with their frames and predictions.
        ceiling: highest top-1, in [0, 1], that a model which ignores frame order can reach.
        commands: what to type next.
        provenance: lines of the footer.

    Raises:
        StorageError: the file cannot be written.
    """
    parts = [f"<h1>{text(title)}</h1>", *(f'<p class="muted">{text(p)}</p>' for p in intro)]
    scores = [m.evaluation.top1 for m in models]
    best = max(scores) if len(scores) == 1 or min(scores) < max(scores) else None
    cards = [_card(m, highlight=m.evaluation.top1 == best, ceiling=ceiling) for m in models]
    parts.append(f'<div class="cards">{"".join(cards)}</div>')
    matrices, typed = [_matrix(m) for m in models], "\n".join(map(text, commands))
    told = {
        "What they saw, and what they said": "".join(map(_strip, strips)),
        "Learning curves": compared_curves({m.name: m.metrics for m in models}),
        "Confusion matrices": f'<div class="cards">{"".join(matrices)}</div>',
        "Accuracy per class": _class_table(models),
        "Go on from here": f"<pre>{typed}</pre>" if typed else "",
    }
    parts += [section(f"part-{i}", heading, body) for i, (heading, body) in enumerate(told.items()) if body]
    foot = "<br>".join(text(line) for line in (*provenance, f"Vireo {vireo.__version__}"))
    parts.append(f"<footer>{foot}</footer>")
    write_text(path, page(title, "".join(parts), styles=["run.css"], look="themes"))
    return path


def _matrix(model: ModelSection) -> str:
    labels = [c.label for c in model.evaluation.classes]
    svg = matrix(model.evaluation.confusion, labels, still=True).svg
    return f'<figure class="card"><figcaption class="name">{text(model.name)}</figcaption>{svg}</figure>'


def _card(model: ModelSection, *, highlight: bool, ceiling: float | None) -> str:
    e = model.evaluation
    low, high = e.interval
    mark = f'<b style="left:{100 * ceiling:.1f}%" title="ceiling without frame order"></b>' if ceiling else ""
    failed = f", {e.header['failed']} failed" if e.header["failed"] else ""
    return (
        f'<div class="card{" best" if highlight else ""}"><div class="name">{text(model.name)}</div>'
        f'<div class="big">{percent(e.top1)}</div>'
        f'<div class="meter"><i style="width:{100 * e.top1:.1f}%"></i>{mark}</div>'
        f'<div>{text(model.about)}</div><div class="small">95 % interval {100 * low:.1f}–{100 * high:.1f} %, '
        f"{e.header['scored']} of {e.header['expected']} test clips scored{failed}; trained in "
        f"{model.seconds / 60:.1f} min</div></div>"
    )


def _strip(strip: Strip) -> str:
    frames = "".join(
        image(encode_jpeg(frame.contiguous(), quality=88).numpy().tobytes(), f"frame {i + 1}", "jpeg")
        for i, frame in enumerate(strip.clip.to(torch.uint8))
    )
    tags = "".join(
        f'<span class="tag {"good" if p.label == strip.label else "bad"}">{text(name)}: {text(p.label)} '
        f"({100 * p.probability:.0f} %)</span>"
        for name, p in strip.predictions.items()
    )
    return (
        f'<div class="strip"><span class="tag">true: {text(strip.label)}</span>'
        f'<span class="muted">{text(strip.title)}</span><div class="frames">{frames}</div>{tags}</div>'
    )


def _class_table(models: Sequence[ModelSection]) -> str:
    head = "".join(f"<th>{text(m.name)}</th>" for m in models)
    rows = []
    for i, first in enumerate(models[0].evaluation.classes):
        cells = "".join(
            f"<td>{100 * m.evaluation.classes[i].accuracy:.1f} %</td>"
            if not np.isnan(m.evaluation.classes[i].accuracy)
            else "<td>–</td>"
            for m in models
        )
        rows.append(f"<tr><td>{text(first.label)}</td><td>{first.clips}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th>class</th><th>test clips</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
