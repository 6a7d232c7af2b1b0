"""The accelerator's peak, and memory in use."""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Any

import jax

# Dense bfloat16 FLOP/s of one device (makers' data sheets), by a part of its name.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v4": 275e12,
}


def peak_flops() -> float | None:
    """Dense bfloat16 FLOP/s of the first device, or None when it is not in the table (a CPU, say)."""
    kind = jax.devices()[0].device_kind
    known = [name for name in PEAK_FLOPS if name in kind]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def memory_gib() -> float:
    """Most memory used so far: of the first device, or of this process where the device does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return round(stats["peak_bytes_in_use"] / 2**30, 3)
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)


def compiled(function: Any, *arguments: Any) -> Any:
    """What `jax.jit` made, compiled for these arguments, with the compiler's memory given back to the system.

    glibc keeps it otherwise, a few hundred MB beside all that the program itself will need.
    """
    out = function.lower(*arguments).compile()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return out
