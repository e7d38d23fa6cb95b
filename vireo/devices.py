"""Which device and which precision, on this machine."""

from __future__ import annotations

import torch

from vireo.errors import UsageError


def choose_device(device: str) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        UsageError: unknown, or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError):
        raise UsageError(f"device {device!r} is not available here; use auto or cpu") from None
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """Fabric's precision; for ``auto``: bf16-mixed where the hardware multiplies in bf16, else 32-true.

    Raises:
        UsageError: float16 on a processor, where Fabric would silently compute in bfloat16.
    """
    if precision == "16-mixed" and device.type == "cpu":
        raise UsageError("precision 16-mixed needs a GPU; use bf16-mixed or 32-true")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        # Absent before torch 2.12 or so; without it we do not know, and take float32.
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        fast = False
    return "bf16-mixed" if fast else "32-true"
