"""Pictures of what a model does: heat maps, frames that count, gates, key points, differences."""

from __future__ import annotations

from vireo.explain.cam import Heat, grad_cam
from vireo.explain.explanation import Explanation, explain
from vireo.explain.occlude import Occlusion, occlusion

__all__ = ["Explanation", "Heat", "Occlusion", "explain", "grad_cam", "occlusion"]
