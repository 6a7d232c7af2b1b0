"""Accelerators: one table of their public figures, the peak of the one at hand, and memory in use."""

from __future__ import annotations

import ctypes
import dataclasses
import resource
import sys
from dataclasses import dataclass
from typing import Any

import jax

GB = 1e9


@dataclass(frozen=True)
class Accelerator:
    """Public figures of one device (makers' data sheets); 0 where none is needed. A plan needs all of them.

    Attributes:
      kinds: parts of JAX's `device_kind` that name it; where several devices' fit, the longest counts.
      flops: dense bfloat16 FLOP/s.
      memory, bandwidth: bytes, and bytes/s of it.
      link, near, far: bytes/s of the fast links (one direction), devices that they join, bytes/s beyond those.
      topologies: devices -> name of a slice, for TPUs.
    """

    title: str
    kinds: tuple[str, ...]
    flops: float
    memory: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0
    near: int = 0
    far: float = 0.0
    topologies: dict[int, str] = dataclasses.field(default_factory=dict, hash=False)


# NVIDIA's data sheets of H100 and H200 SXM (NVLink 900 GB/s both directions together; one 400 Gb/s network port a GPU
# in a DGX), H100 PCIe, A100 of 40 GB and of 80 GB, and L40S, its whitepaper on the Ada architecture for RTX 4090 (PCIe
# 4.0, 16 lanes, as L40S); Google's pages on TPU v5p (ICI 4,800 Gb/s a chip) and v6e (3,584 Gb/s).
ACCELERATORS = {
    "H100": Accelerator("H100 SXM", ("H100",), 989e12, 80 * GB, 3.35e12, 450e9, 8, 50e9),
    "H200": Accelerator("H200 SXM", ("H200",), 989e12, 141 * GB, 4.8e12, 450e9, 8, 50e9),
    "v5p": Accelerator(
        "TPU v5p",
        ("TPU v5p", "TPU v5"),
        459e12,
        95 * GB,
        2.765e12,
        600e9,
        8960,
        600e9,
        {1: "1x1x1", 8: "2x2x2", 64: "4x4x4", 256: "4x8x8"},
    ),
    "v6e": Accelerator(
        "TPU v6e",
        ("TPU v6",),
        918e12,
        32 * GB,
        1.64e12,
        448e9,
        256,
        448e9,
        {1: "1x1", 8: "2x4", 64: "8x8", 256: "16x16"},
    ),
    "H100 PCIe": Accelerator("H100 PCIe", ("H100 PCIe",), 756e12, bandwidth=2.0e12),
    "A100": Accelerator("A100 40GB", ("A100",), 312e12, bandwidth=1.555e12),
    "A100 SXM 80GB": Accelerator("A100 SXM 80GB", ("A100-SXM4-80GB",), 312e12, bandwidth=2.039e12),
    "A100 PCIe 80GB": Accelerator("A100 PCIe 80GB", ("A100 80GB PCIe",), 312e12, bandwidth=1.935e12),
    "L40S": Accelerator("L40S", ("L40S",), 362e12, 48 * GB, 864e9, 32e9, 8, 32e9),
    "RTX 4090": Accelerator("RTX 4090", ("RTX 4090",), 165e12, 24 * GB, 1008e9, 32e9, 8, 32e9),
    "v5e": Accelerator("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197e12),
    "v4": Accelerator("TPU v4", ("TPU v4",), 275e12),
}
PLANNED = {name: one for name, one in ACCELERATORS.items() if one.memory}  # what `--stages=plan` can plan for


def of_kind(device_kind: str) -> Accelerator | None:
    """The table's row of a device that JAX calls so, or None."""
    known = [(len(kind), name) for name, one in ACCELERATORS.items() for kind in one.kinds if kind in device_kind]
    return ACCELERATORS[max(known)[1]] if known else None


def peak_flops() -> float | None:
    """Dense bfloat16 FLOP/s of the first device, or None when it is not in the table (a CPU, say)."""
    here = of_kind(jax.devices()[0].device_kind)
    return here.flops if here else None


def has_flash_attention(device: jax.Device) -> bool:
    """Whether cuDNN has flash attention for a device: an NVIDIA GPU of compute capability 8.0 or more.

    Older ones, a T4 (7.5) among them, have no bfloat16 in hardware either.
    """
    major = str(getattr(device, "compute_capability", "")).split(".")[0]  # of an AMD GPU "gfx942"
    return major.isdigit() and int(major) >= 8


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
