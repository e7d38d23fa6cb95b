"""Which label the mirror image of a clip has, judged by the text of the labels.

A mirror image turns left into right and clockwise into counterclockwise, whether the label means the image's
sides, the way something moves, or a person's own hands. So a clip of "Swiping Left" becomes one of "Swiping
Right", if there is such a label:

    label                                     mirror image
    Pushing something from left to right      Pushing something from right to left
    Turning Hand Counterclockwise             Turning Hand Clockwise
    swipeLeft, swipe_left, swipeleft          swipeRight, swipe_right, swiperight
    Moving something up, Pulling it right out the same label
    Turning left, and no label Turning right  none: these clips are not mirrored

What is assumed: the words left, right and clockwise in a label mean directions, and labels without them hold for
mirror images too. The latter is doubtful where a direction lacks its counterpart: whoever recorded "circle ccw" and
no "circle cw" may mean a tick or a square to be drawn one way round as well. Then only the pairs are mirrored.
Otherwise text can't tell that a drawn 2 or a lower-case b is no longer one in the mirror; then, say flip off.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from vireo.errors import UsageError

FlipMode = Literal["auto", "on", "off"]

_SHOWN_PAIRS = 10
_SHOWN_LABELS = 3
_SWAPS = {"left": "right", "clockwise": "counterclockwise", "l": "r", "lh": "rh", "ltr": "rtl", "lr": "rl"}
_SWAPS |= {right: left for left, right in _SWAPS.items()}

_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_TURN = re.compile(r"\b(?:(?P<counter>counter|anti|contra) ?)?clock ?wise\b|\b(?P<ccw>ccw|acw)\b|\bcw\b")
_SIDE = re.compile(r"\b(left|right)(ward|hand|handed|most|side)s?\b")
_DIRECTION = re.compile(r"\b(?:left|right|clockwise|counterclockwise)\b")
_ADVERB = re.compile(r"\bright (?=(?:out|away|now|back)\b)")  # at once, not to the right
_WITHIN = re.compile(r"left|right|(?:counter|anti|contra)?clockwise")
_LETTERS = re.compile(r"\b(?:l|r|lh|rh|ltr|rtl|lr|rl)\b")
_HARMLESS = re.compile(
    r"(?:b|f|w|sp|up|out|down|forth|al|copy|birth)right|right(?:eous|ful|ly)|left(?:over|ist)|cleft"
)  # words that have nothing to do with a direction


@dataclass(frozen=True, kw_only=True)
class FlipRule:
    """What becomes of each label in a mirror image; `flip_rule` makes it.

    Raises:
        UsageError: two mirror images are not the clip again.
    """

    label_names: tuple[str, ...]
    """(K,) the texts, in the order of the labels."""
    mirrored: tuple[int | None, ...]
    """(K,) the label that a clip's mirror image has; None: clips of this label are not mirrored."""
    mode: FlipMode = "auto"
    """How it was made: auto from the texts; on, off as asked."""
    unpaired: tuple[str, ...] = ()
    """The texts that name a direction and have no label for the mirror image. Because of them, labels without a
    direction are not mirrored either."""

    def __post_init__(self) -> None:
        known = range(len(self.label_names))
        twice = [other is None or (other in known and self.mirrored[other] == i) for i, other in self._items()]
        if len(self.mirrored) != len(known) or not all(twice):
            raise UsageError("a flip rule needs one entry per label, and two mirror images must be the clip again")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The texts of labels that a mirror image swaps, each pair once."""
        names = self.label_names
        return tuple((names[i], names[other]) for i, other in self._items() if other is not None and other > i)

    @property
    def left_alone(self) -> tuple[str, ...]:
        """The texts of labels whose clips are not mirrored."""
        return tuple(self.label_names[i] for i, other in self._items() if other is None)

    def score_order(self) -> tuple[int, ...] | None:
        """Which score of a mirrored view belongs to each label, (K,); None if some label has no mirror image."""
        return None if self.left_alone else tuple(other for other in self.mirrored if other is not None)

    def lines(self) -> tuple[str, ...]:
        """The rule in a few lines to print: the pairs that were found, and what is left alone."""
        if self.mode == "off":
            return ("horizontal flip is off, as asked",)
        if self.mode == "on":
            found = flip_rule(self.label_names, "auto")
            turned = [name for pair in found.pairs for name in pair] + list(found.unpaired)
            although = f", although a mirror image changes the meaning of {_some(turned)}" if turned else ""
            return (f"horizontal flip is on for all labels, as asked{although}",)
        if self.label_names and len(self.left_alone) == len(self.label_names):
            what = f"horizontal flip is off: a mirror image would change the meaning of {_some(self.unpaired)}"
            return (what, *self._spellings())
        if not self.pairs and not self.left_alone:
            return ("horizontal flip is on: no label names a direction",)
        lines = ["horizontal flip is on" + ("; a mirror image swaps the labels" if self.pairs else "")]
        lines += [f"  {a!r} ↔ {b!r}" for a, b in self.pairs[:_SHOWN_PAIRS]]
        if len(self.pairs) > _SHOWN_PAIRS:
            lines.append(f"  and {len(self.pairs) - _SHOWN_PAIRS} more pairs")
        if self.unpaired:
            lines.append(f"  not mirrored, as no label fits the mirror image: {_some(self.unpaired)}")
            if len(self.left_alone) > len(self.unpaired):
                lines.append(
                    "  nor labels that name no direction, which may have one all the same; --flip on mirrors all"
                )
        return (*lines, *self._spellings())

    def _spellings(self) -> list[str]:
        """A line on labels that are there twice, so that no mirror image is sure; none if there are none."""
        by_key: dict[str, list[str]] = {}
        for name in self.unpaired:
            by_key.setdefault(_key(_spelled(name)), []).append(name)
        twice = [" and ".join(map(repr, names)) for names in by_key.values() if len(names) > 1]
        if not twice:
            return []
        more = f" and {len(twice) - _SHOWN_LABELS} more" if len(twice) > _SHOWN_LABELS else ""
        shown = ", ".join(twice[:_SHOWN_LABELS]) + more
        return [f"  one label in two spellings, so that no mirror image is sure: {shown}; give both one name"]

    def _items(self) -> enumerate[int | None]:
        return enumerate(self.mirrored)


def flip_rule(label_names: Sequence[str], mode: FlipMode = "auto") -> FlipRule:
    """Find which labels a mirror image swaps, keeps, or makes meaningless.

    Args:
        label_names: the texts, (K,), in the order of the labels.
        mode: auto: as the page above says; on: mirror all clips, labels kept; off: mirror none.

    Raises:
        UsageError: an unknown mode.
    """
    names = tuple(label_names)
    if mode == "auto":
        found = _find(names)
        unpaired = tuple(name for name, other in zip(names, found, strict=True) if other is None)
        if unpaired:
            found = tuple(None if other == i else other for i, other in enumerate(found))
        return FlipRule(label_names=names, mirrored=found, unpaired=unpaired)
    if mode == "on":
        return FlipRule(label_names=names, mirrored=tuple(range(len(names))), mode=mode)
    if mode == "off":
        return FlipRule(label_names=names, mirrored=(None,) * len(names), mode=mode)
    raise UsageError(f"flip is {mode!r}; use auto, on or off")


def _find(names: Sequence[str]) -> tuple[int | None, ...]:
    texts = [_spelled(name) for name in names]
    keys = [_key(text) for text in texts]
    count, index = Counter(keys), {key: i for i, key in enumerate(keys)}
    found: list[int | None] = []
    for i, text in enumerate(texts):
        turned = _mirror_text(text, lambda text: _key(text) in index)
        if turned == text:
            found.append(i)
        elif turned is None or count[_key(turned)] != 1:
            found.append(None)  # no label for the mirror image, or several
        else:
            found.append(index[_key(turned)])
    # A label that takes part in a pair one way only is not understood, and nor is its partner.
    return tuple(None if other is None or found[other] != i else other for i, other in enumerate(found))


def _mirror_text(text: str, is_label: Callable[[str], bool]) -> str | None:
    """The spelled label of the mirror image: the same text where none is named, None where it can't be told."""
    if _DIRECTION.search(text):
        turned = _DIRECTION.sub(_swap, text)
        meant = is_label(turned) or _DIRECTION.search(_ADVERB.sub("", text))
        return turned if meant else text
    within = _WITHIN.sub(_swap, text)  # "swipeleft": a direction if there is a "swiperight"
    if within != text and is_label(within):
        return within
    if _WITHIN.search(_HARMLESS.sub(" ", text)):
        return None
    letters = _LETTERS.sub(_swap, text)  # "swipe L" beside "swipe R"; but so are the letters of a sign language
    return None if letters != text and is_label(letters) else text


def _swap(found: re.Match[str]) -> str:
    word = found[0]
    return "clockwise" if word.endswith("clockwise") and word != "clockwise" else _SWAPS[word]


def _spelled(label: str) -> str:
    """Words in lower case with single spaces; directions are left, right, clockwise, counterclockwise."""
    words = []
    for word in _WORD.findall(label):
        whole = word.lower()
        known = _TURN.fullmatch(whole) or _SIDE.fullmatch(whole) or not word.isascii() or word.isdigit()
        words += [whole] if known else [part.lower() for part in _CAMEL.findall(word)]
    text = _TURN.sub(lambda m: "counterclockwise" if m["counter"] or m["ccw"] else "clockwise", " ".join(words))
    return _SIDE.sub(r"\1 \2", text)


def _key(text: str) -> str:
    """What two spellings of one label have in common."""
    return re.sub(r"(?:anti|contra)clockwise", "counterclockwise", text.replace(" ", ""))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN_LABELS])
    return shown + (f" and {len(names) - _SHOWN_LABELS} more" if len(names) > _SHOWN_LABELS else "")
