"""The small pieces of a page: text, pictures, data for its script, and the page around them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from vireo.plots import shorten
from vireo.progress import printable

LONGEST = 160
"""Characters of a name that are shown."""


def text(value: object, length: int = 0) -> str:
    """Anything as HTML text or the value of an attribute: escaped, in one line, without control characters.

    Args:
        value: to be shown.
        length: characters that are kept; 0 = all.
    """
    shown = printable(str(value))
    return escape(shorten(shown, length) if length else shown)


def name(value: str) -> str:
    """A class, clip or file as HTML text; a very long one is cut."""
    return text(value, LONGEST)


def image(data: bytes, alt: str, kind: str = "png") -> str:
    """A picture inside the page."""
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{text(alt)}" src="data:image/{kind};base64,{encoded}">'


def data_block(identity: str, data: Any) -> str:
    """Plain data for the page's script, as JSON that can't end the element that holds it."""
    found = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII: no line separators, no lone surrogates
    for sign in "<>&":
        found = found.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{text(identity)}">{found}</script>'


def percent(share: float) -> str:
    """A share of one with a decimal, as 98.1 %."""
    return f"{100 * share:.1f} %"


def page(title: str, body: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), look: str = "") -> str:
    """A whole page.

    Args:
        title: in the browser's tab.
        body: HTML inside of main.
        styles: names of files in this folder, after the common ``report.css``.
        scripts: likewise. Nothing but these runs in the page, and nothing is loaded, whatever the body holds: the
            browser is told so.
        look: class of the page; ``themes`` lets it follow the system into the dark.
    """
    files = resources.files("vireo")
    sheet = "".join([files.joinpath("report.css").read_text("utf-8"), *map(_read, styles)])
    code = "".join(map(_read, scripts))
    allowed = f"script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'; "
    policy = f"default-src 'none'; img-src data:; {allowed if code else ''}style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"{f" class={look}" if look else ""}><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{sheet}</style></head>"
        f"<body><main>{body}</main>{f'<script>{code}</script>' if code else ''}</body></html>\n"
    )


def _read(file: str) -> str:
    return resources.files("vireo.report").joinpath(file).read_text("utf-8")
