"""Label names that may be one label spelt twice, and names that say nothing."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

_PLACEHOLDERS = """
    label na nan new nolabel none null test tbd temp tmp todo undefined unknown unlabeled unlabelled untitled
"""
_NOTHING = frozenset(_PLACEHOLDERS.split())
_LONGEST = 300  # characters of a name that is compared letter by letter, which takes their square
_SHORTEST_WORD = 5  # shorter words that differ in a letter are mostly two words: onto, into; walk, talk


class Lookalike(NamedTuple):
    """Two label names that may be meant as one."""

    first: int
    """Index of the name."""
    second: int
    """Index of the other, larger."""
    certain: bool
    """Whether only case, spaces and punctuation differ."""


def says_nothing(name: str) -> bool:
    """Whether a name is no more than a placeholder, as "?", "nan" and "unknown" are."""
    plain = _squeezed(name)
    return not plain or plain in _NOTHING


def lookalikes(names: Sequence[str]) -> list[Lookalike]:
    """Pairs of names that differ in case, spaces, punctuation, a plural or one letter of one word.

    Names that differ in digits or in a word's first letter are taken for two: class 1 and class 2, baking and
    making. Names are not compared all with all, so thousands of labels are no matter; of very long names, those that
    differ in a letter are not found.
    """
    words = [_words(name) for name in names]
    squeezed = ["".join(parts) for parts in words]
    found: dict[tuple[int, int], bool] = {}
    for a, b in _sharing({i: {key} for i, key in enumerate(squeezed) if len(key) > 1}):
        found[a, b] = True
    short = {i: parts for i, parts in enumerate(words) if parts and len(names[i]) <= _LONGEST}
    for a, b in _sharing({i: _traces(parts) for i, parts in short.items()}):
        if squeezed[a] != squeezed[b] and _one_slip(words[a], words[b]):
            found[a, b] = False
    return [Lookalike(a, b, certain) for (a, b), certain in sorted(found.items())]


def _words(name: str) -> list[str]:
    """Its words in lower case, without accents' encodings, punctuation and the borders of camel case."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return re.findall(r"[^\W_]+", apart.casefold())


def _squeezed(name: str) -> str:
    return "".join(_words(name))


def _traces(words: list[str]) -> set[str]:
    """Keys of which two names share one if they differ in one letter or in plurals: their text less each letter."""
    text = " ".join(words)
    return {text, *(text[:i] + text[i + 1 :] for i in range(len(text))), " ".join(map(_singular, words)) + "/"}


def _singular(word: str) -> str:
    if len(word) < _SHORTEST_WORD - 1 or word.endswith("ss"):
        return word
    return re.sub(r"(?<=ch|sh|ss)es$|s$", "", word)


def _one_slip(a: list[str], b: list[str]) -> bool:
    if len(a) != len(b):
        return False
    if list(map(_singular, a)) == list(map(_singular, b)):
        return True
    differing = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
    if len(differing) != 1:
        return False
    x, y = differing[0]
    if max(len(x), len(y)) < _SHORTEST_WORD or x[0] != y[0] or any(c.isdigit() for c in x + y):
        return False
    return _distance_is_one(x, y)


def _distance_is_one(x: str, y: str) -> bool:
    """Whether one letter put in, left out, replaced, or two neighbours swapped make one of the other."""
    if len(x) > len(y):
        x, y = y, x
    start = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), len(x))
    if len(y) - len(x) == 1:
        return x[start:] == y[start + 1 :]
    if len(x) != len(y):
        return False
    swapped = x[start + 1 : start + 2] + x[start : start + 1]
    return x[start + 1 :] == y[start + 1 :] or swapped + x[start + 2 :] == y[start:]


def _sharing(keys: dict[int, set[str]]) -> set[tuple[int, int]]:
    """Pairs that share a key; of many that share one, each with the next."""
    holders: dict[str, list[int]] = defaultdict(list)
    for i, texts in keys.items():
        for text in texts:
            holders[text].append(i)
    pairs: set[tuple[int, int]] = set()
    for group in holders.values():
        if len(group) <= 8:
            pairs.update((a, b) for k, a in enumerate(group) for b in group[k + 1 :])
        else:
            pairs.update(pairwise(group))
    return pairs
