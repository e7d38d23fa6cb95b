"""Backbones: timm networks, the sites they publish, and their pretrained weights."""

from __future__ import annotations

from vireo.backbones.timm_sites import (
    FAMILIES,
    Family,
    Geometry,
    build_backbone,
    measure,
    pretrained_config,
    publish_sites,
    supported_blocks,
)
from vireo.backbones.weights import Weights, fetch_weights, fit_weights, read_weights

__all__ = [
    "FAMILIES",
    "Family",
    "Geometry",
    "Weights",
    "build_backbone",
    "fetch_weights",
    "fit_weights",
    "measure",
    "pretrained_config",
    "publish_sites",
    "read_weights",
    "supported_blocks",
]
