"""Backbones: timm networks and two of our own, what they publish, and their pretrained weights."""

from __future__ import annotations

from vireo.backbones.timm_sites import (
    FAMILIES,
    Family,
    Geometry,
    build_backbone,
    flow_of,
    hub_model,
    measure,
    pretrained_config,
    publish_sites,
    run,
    supported_blocks,
)
from vireo.backbones.weights import (
    Weights,
    fetch_weights,
    first_convolution,
    fit_stem,
    fit_weights,
    name_faults,
    read_weights,
)

__all__ = [
    "FAMILIES",
    "Family",
    "Geometry",
    "Weights",
    "build_backbone",
    "fetch_weights",
    "first_convolution",
    "fit_stem",
    "fit_weights",
    "flow_of",
    "hub_model",
    "measure",
    "name_faults",
    "pretrained_config",
    "publish_sites",
    "read_weights",
    "run",
    "supported_blocks",
]
