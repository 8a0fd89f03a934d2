"""The arithmetic of the forward pass."""

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def resolve_precision(precision: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """Return "float32" or "bfloat16"; "auto" is bfloat16 where the device multiplies it in hardware.

    Emulated, bfloat16 is slower than float32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bfloat16" if fast else "float32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass in a resolved precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
