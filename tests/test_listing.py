"""Names by pattern."""

from __future__ import annotations

import pytest

import vireo


def test_every_module_that_is_listed_can_be_built() -> None:
    names = vireo.list_modules()
    assert {"tsn", "tsm", "tei", "tefe", "mstsm_tfdem", "stw", "kpsem"} <= set(names) and names == sorted(names)
    for name in names:
        model = vireo.create_model(name, "resnet18", num_classes=2, num_frames=4)
        assert model.num_classes == 2


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: vireo.list_modules("*TFDEM"), ["mstsm_tfdem", "tfdem"]),
        (lambda: vireo.list_backbones("c2d*"), ["c2d_resnet50"]),
        (lambda: vireo.list_backbones("resnet5"), []),  # a pattern is the whole name
        (lambda: vireo.list_recipes("teinet-ssv?-8f"), ["teinet-ssv1-8f", "teinet-ssv2-8f"]),
    ],
)
def test_wildcards(found, expected: list[str]) -> None:
    assert found() == expected


def test_recipes_that_are_listed_are_recipes() -> None:
    from vireo.recipes import recipe

    names = vireo.list_recipes()
    assert "finetune" in names and all(recipe(name) is not None for name in names)
