"""Mirror images: which labels are swapped, kept, or left alone, on label texts as they are."""

from __future__ import annotations

import pickle

import pytest

from vireo.data.flips import FlipRule, flip_rule
from vireo.errors import UsageError

# All labels of the two data sets that name a direction, and some that only seem to.
SOMETHING = (
    "Pulling something from left to right",
    "Moving something closer to something",
    "Pulling something from right to left",
    "Pushing something from left to right",
    "Pushing something from right to left",
    "Turning the camera left while filming something",
    "Turning the camera right while filming something",
    "Turning the camera upwards while filming something",
    "Moving something and something away from each other",
    "Putting something that cannot actually stand upright upright on the table, so it falls on its side",
    "Laying something on the table on its side, not upright",
    "Plugging something into something but pulling it right out as you remove your hand",
)
JESTER = (
    "Doing other things",
    "Sliding Two Fingers Left",
    "Sliding Two Fingers Right",
    "Swiping Left",
    "Swiping Right",
    "Swiping Up",
    "Turning Hand Clockwise",
    "Turning Hand Counterclockwise",
    "Zooming In With Full Hand",
)


def named(rule: FlipRule) -> dict[str, str | None]:
    """Label text → text of its mirror image."""
    names = rule.label_names
    return {name: None if other is None else names[other] for name, other in zip(names, rule.mirrored, strict=True)}


def test_something_something() -> None:
    found = named(flip_rule(SOMETHING))
    swapped = {name: other for name, other in found.items() if name != other}
    assert swapped == {
        "Pulling something from left to right": "Pulling something from right to left",
        "Pulling something from right to left": "Pulling something from left to right",
        "Pushing something from left to right": "Pushing something from right to left",
        "Pushing something from right to left": "Pushing something from left to right",
        "Turning the camera left while filming something": "Turning the camera right while filming something",
        "Turning the camera right while filming something": "Turning the camera left while filming something",
    }


def test_right_is_not_always_a_side() -> None:
    assert flip_rule(["pulling it right out", "standing right back up", "walk"]).mirrored == (0, 1, 2)
    assert flip_rule(["swipe right out", "swipe left out"]).mirrored == (1, 0)
    assert flip_rule(["turn right right now", "walk"]).unpaired == ("turn right right now",)


def test_something_something_with_placeholders() -> None:
    texts = [name.replace("something", "[something]") for name in SOMETHING]
    assert flip_rule(texts).mirrored == flip_rule(SOMETHING).mirrored


def test_jester() -> None:
    assert flip_rule(JESTER).pairs == (
        ("Sliding Two Fingers Left", "Sliding Two Fingers Right"),
        ("Swiping Left", "Swiping Right"),
        ("Turning Hand Clockwise", "Turning Hand Counterclockwise"),
    )
    assert flip_rule(JESTER).left_alone == ()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("left", "right"),
        ("LEFT", "Right"),
        ("swipe_left", "swipe_right"),
        ("swipe-left", "swipe right"),
        ("swipeLeft", "SwipeRight"),
        ("swipeleft", "swiperight"),
        ("swipeleft", "swipe right"),
        ("TurnLeft2", "TurnRight2"),
        ("left2right", "right2left"),
        ("left then right", "right then left"),
        ("to the left of it", "to the right of it"),
        ("moving leftwards", "moving rightward"),
        ("leftmost", "rightmost"),
        ("wave left hand", "wave right_hand"),
        ("wave lefthand", "wave right hand"),
        ("left-handed throw", "righthanded throw"),
        ("up-left", "up-right"),
        ("upleft", "upright"),
        ("clockwise", "counterclockwise"),
        ("clockwise", "anticlockwise"),
        ("Turning clockwise", "Turning counter-clockwise"),
        ("turn anti-clockwise", "turn clockwise"),
        ("turn_counter_clockwise", "turn_clockwise"),
        ("ClockWise", "CounterClockWise"),
        ("turnclockwise", "turnanticlockwise"),
        ("circle_ccw", "circle_cw"),
        ("circle acw", "circle clockwise"),
        ("rotate CW", "rotate CCW"),
        ("turn left, clockwise", "turn right, anticlockwise"),
        ("Übung left", "Übung right"),
    ],
)
def test_pairs_are_found_in_every_spelling(first: str, second: str) -> None:
    rule = flip_rule(["walk", first, "run", second])
    assert rule.mirrored == (0, 3, 2, 1)
    assert flip_rule([second, first]).mirrored == (1, 0)


@pytest.mark.parametrize(
    "label",
    [
        "left", "Right", "swipe_left", "turnLeft", "TurnRight2", "circle_ccw", "rotate CW", "left2right", "LEFT",
        "Pushing [something] from left to right", "counter-clockwise", "anticlockwise", "Turning Hand Clockwise",
        "moving leftwards", "nach-left", "swipeleft", "turnclockwise", "that's right",
    ],
)  # fmt: skip
def test_where_a_direction_has_no_counterpart_only_pairs_are_mirrored(label: str) -> None:
    rule = flip_rule(["walk", label])
    assert rule.mirrored == (None, None) and rule.unpaired == (label,)
    assert label in rule.lines()[-1] and "walk" not in rule.lines()[-1]
    rule = flip_rule(["tick", "wave left hand", "wave right hand", label])
    assert rule.mirrored == (None, 2, 1, None) and rule.unpaired == (label,)
    assert label in rule.lines()[-2] and "name no direction" in rule.lines()[-1]


@pytest.mark.parametrize(
    "label",
    [
        "copyright", "bright", "brighten", "cleft", "clock", "up", "upright", "wright", "acwx", "birthright", "fright",
        "leftovers", "eating leftover rice", "outright", "downright", "playwright", "clocks", "wise", "letter l", "",
        "Moving something away from the camera", "links", "123", "…",
    ],
)  # fmt: skip
def test_other_words_are_no_directions(label: str) -> None:
    assert flip_rule([label, "walk"]).mirrored == (0, 1)


def test_what_is_ambiguous_is_left_alone() -> None:
    assert flip_rule(["left", "Left", "right", "walk"]).mirrored == (None, None, None, None)
    assert flip_rule(["sign L", "sign R", "sign A"]).unpaired == ("sign L", "sign R")  # letters, or sides?
    assert flip_rule(["l2r", "r2l"]).mirrored == (None, None)
    assert flip_rule(["left of the door", "right of a door"]).mirrored == (None, None)
    assert flip_rule(["from left to right"]).mirrored == (None,)
    assert flip_rule(["swipeleft right", "swipeleftleft"]).mirrored == (None, None)  # the second's would be another


def test_two_mirror_images_are_the_clip_again() -> None:
    for names in (SOMETHING, JESTER, ("upleft", "upright", "left", "swipe right", "swipeleft", "x l", "x r")):
        rule = flip_rule(names)
        for label, other in enumerate(rule.mirrored):
            assert other is None or rule.mirrored[other] == label
    with pytest.raises(UsageError, match="two mirror images"):
        FlipRule(label_names=("a", "b", "c"), mirrored=(1, 2, 0))
    with pytest.raises(UsageError, match="one entry per label"):
        FlipRule(label_names=("a",), mirrored=(0, 1))


def test_a_rule_by_hand() -> None:
    rule = flip_rule(["left", "right", "up"], "on")
    assert rule.mirrored == (0, 1, 2) and "although" in rule.lines()[0] and "'left'" in rule.lines()[0]
    assert flip_rule(["up"], "on").lines() == ("horizontal flip is on for all labels, as asked",)
    rule = flip_rule(["left", "right", "up"], "off")
    assert rule.mirrored == (None, None, None) and rule.lines() == ("horizontal flip is off, as asked",)
    with pytest.raises(UsageError, match="'maybe'; use auto, on or off"):
        flip_rule(["left"], "maybe")  # type: ignore[arg-type]


def test_the_lines_name_the_pairs_and_count_the_rest() -> None:
    assert flip_rule(["walk"]).lines() == ("horizontal flip is on: no label names a direction",)
    assert flip_rule([f"left {i}" for i in range(100)]).lines() == (
        "horizontal flip is off: a mirror image would change the meaning of 'left 0', 'left 1', 'left 2' and 97 more",
    )
    names = [f"{side} {i}" for i in range(14) for side in ("left", "right")] + ["left and out", "walk"]
    first, *pairs, alone, others = flip_rule(names).lines()
    assert "no direction" in others
    assert "on" in first and pairs[0] == "  'left 0' ↔ 'right 0'" and len(pairs) == 11
    assert pairs[-1] == "  and 4 more pairs" and "'left and out'" in alone


def test_the_lines_say_that_a_label_is_there_in_two_spellings() -> None:
    first, _, alone, why = flip_rule(["left", "Left", "right", "clockwise", "anticlockwise"]).lines()
    assert "on" in first and "not mirrored" in alone
    assert why == (
        "  one label in two spellings, so that no mirror image is sure: 'left' and 'Left'; give both one name"
    )
    first, why = flip_rule(["left", "Left", "right"]).lines()
    assert "is off" in first and "'left' and 'Left'" in why
    names = [f"{spelt} {i}" for i in range(5) for spelt in ("turn left", "Turn_Left", "turn right")]
    assert "'turn left 2' and 'Turn_Left 2' and 2 more; give" in flip_rule(names).lines()[-1]
    assert not any("spelling" in line for line in flip_rule(["Wave", "wave", "left", "right", "clockwise"]).lines())


def test_the_order_of_scores_needs_a_mirror_image_of_every_label() -> None:
    assert flip_rule(["left", "up", "right"]).score_order() == (2, 1, 0)
    assert flip_rule(["left", "up"]).score_order() is None
    assert flip_rule(["left", "up"], "on").score_order() == (0, 1)


def test_a_rule_travels_to_workers() -> None:
    rule = flip_rule(JESTER)
    assert pickle.loads(pickle.dumps(rule)) == rule
