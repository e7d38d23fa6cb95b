"""A self-contained HTML page about one or more models: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import encode_jpeg

import vireo
from vireo import plots
from vireo.errors import StorageError
from vireo.evaluate import Evaluation
from vireo.predict import Prediction


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


_STYLE = """
:root { --ink:#1d2733; --muted:#66727f; --line:#e3e8ed; --accent:#0f7b8a; --good:#2c8a57; --bad:#c2503a; }
* { box-sizing:border-box }
body { margin:0; background:#f5f7f9; color:var(--ink); font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif }
main { max-width:1060px; margin:0 auto; padding:40px 24px 64px }
h1 { font-size:30px; line-height:1.2; margin:0 0 6px; letter-spacing:-.02em }
h2 { font-size:19px; margin:40px 0 12px }
p { margin:0 0 12px; max-width:74ch } .muted { color:var(--muted) }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(280px,1fr)); gap:16px; margin:24px 0 }
.card { background:#fff; border:1px solid var(--line); border-radius:12px; padding:20px 22px }
.card .name { font-weight:650; font-size:16px } .card .big { font-size:44px; font-weight:680; letter-spacing:-.03em }
.card.best .big { color:var(--accent) } .card .small { color:var(--muted); font-size:13.5px }
.meter { position:relative; height:8px; background:#edf1f4; border-radius:4px; margin:8px 0 14px }
.meter i { display:block; height:100%; border-radius:4px; background:#9aa7b4 } .best .meter i { background:var(--accent) }
.meter b { position:absolute; top:-4px; width:2px; height:16px; background:var(--bad) }
img { max-width:100%; display:block } figure { margin:0 }
.strip { background:#fff; border:1px solid var(--line); border-radius:12px; padding:14px 18px; margin:0 0 14px }
.frames { display:flex; gap:4px; margin:8px 0 10px } .frames img { flex:1 1 0; min-width:0; border-radius:5px }
.tag { display:inline-block; border-radius:999px; padding:2px 11px; margin:0 8px 4px 0; font-size:13.5px; background:#eef2f5 }
.tag.good { background:#e3f3ea; color:var(--good) } .tag.bad { background:#fbeae6; color:var(--bad) }
table { border-collapse:collapse; width:100%; background:#fff; font-size:14px } th,td { padding:7px 12px; text-align:right;
 border-bottom:1px solid var(--line) } th:first-child,td:first-child { text-align:left } th { font-weight:600; color:var(--muted) }
.scroll { border:1px solid var(--line); border-radius:12px; overflow-x:auto; background:#fff }
code,pre { font:13.5px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace }
pre { background:#1d2733; color:#e8eef3; padding:16px 18px; border-radius:12px; overflow-x:auto }
footer { margin-top:44px; color:var(--muted); font-size:13px; border-top:1px solid var(--line); padding-top:14px }
"""


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
        models: one section per model; the best one is highlighted.
        strips: clips with their frames and predictions.
        ceiling: highest top-1, in [0, 1], that a model which ignores frame order can reach.
        commands: what to type next.
        provenance: lines of the footer.

    Raises:
        StorageError: the file cannot be written.
    """
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="muted">{escape(p)}</p>' for p in intro)]
    best = max(models, key=lambda m: m.evaluation.top1)
    parts.append('<div class="cards">')
    parts += [_card(m, highlight=m is best, ceiling=ceiling) for m in models]
    parts.append("</div>")
    if strips:
        parts.append("<h2>What they saw, and what they said</h2>")
        parts += [_strip(strip) for strip in strips]
    parts.append("<h2>Learning curves</h2>")
    runs = {
        m.name: {k: [row.get(k, float("nan")) for row in m.metrics] for k in ("epoch", "loss", "top1")} for m in models
    }
    epochs = max((len(m.metrics) for m in models), default=1)
    parts.append(f'<div class="card">{_image(plots.curves_png(runs, epochs=epochs), "Learning curves")}</div>')
    parts.append('<h2>Confusion matrices</h2><div class="cards">')
    for m in models:
        labels = [c.label for c in m.evaluation.classes]
        png = plots.confusion_png(m.evaluation.confusion, labels, m.name)
        parts.append(f'<div class="card">{_image(png, f"Confusion matrix of {m.name}")}</div>')
    parts.append("</div><h2>Accuracy per class</h2>")
    parts.append(_class_table(models))
    if commands:
        parts.append("<h2>Go on from here</h2><pre>" + escape("\n".join(commands)) + "</pre>")
    foot = "<br>".join(escape(line) for line in (*provenance, f"Vireo {vireo.__version__}"))
    parts.append(f"<footer>{foot}</footer>")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, "utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _image(data: bytes, alt: str, kind: str = "png") -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{encoded}">'


def _card(model: ModelSection, *, highlight: bool, ceiling: float | None) -> str:
    e = model.evaluation
    low, high = e.interval
    mark = f'<b style="left:{100 * ceiling:.1f}%" title="ceiling without frame order"></b>' if ceiling else ""
    failed = f", {e.header['failed']} failed" if e.header["failed"] else ""
    return (
        f'<div class="card{" best" if highlight else ""}"><div class="name">{escape(model.name)}</div>'
        f'<div class="big">{100 * e.top1:.1f} %</div><div class="meter"><i style="width:{100 * e.top1:.1f}%"></i>{mark}</div>'
        f'<div>{escape(model.about)}</div><div class="small">95 % interval {100 * low:.1f}–{100 * high:.1f} %, '
        f"{e.header['scored']} of {e.header['expected']} test clips scored{failed}; trained in "
        f"{model.seconds / 60:.1f} min</div></div>"
    )


def _strip(strip: Strip) -> str:
    frames = "".join(
        _image(encode_jpeg(frame.contiguous(), quality=88).numpy().tobytes(), f"frame {i + 1}", "jpeg")
        for i, frame in enumerate(strip.clip.to(torch.uint8))
    )
    tags = "".join(
        f'<span class="tag {"good" if p.label == strip.label else "bad"}">{escape(name)}: {escape(p.label)} '
        f"({100 * p.probability:.0f} %)</span>"
        for name, p in strip.predictions.items()
    )
    return (
        f'<div class="strip"><span class="tag">true: {escape(strip.label)}</span>'
        f'<span class="muted">{escape(strip.title)}</span><div class="frames">{frames}</div>{tags}</div>'
    )


def _class_table(models: Sequence[ModelSection]) -> str:
    head = "".join(f"<th>{escape(m.name)}</th>" for m in models)
    rows = []
    for i, first in enumerate(models[0].evaluation.classes):
        cells = "".join(
            f"<td>{100 * m.evaluation.classes[i].accuracy:.1f} %</td>"
            if not np.isnan(m.evaluation.classes[i].accuracy)
            else "<td>–</td>"
            for m in models
        )
        rows.append(f"<tr><td>{escape(first.label)}</td><td>{first.clips}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th>class</th><th>test clips</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
