"""How fast training is: model FLOPs, the peak of the accelerator, memory in use."""

from __future__ import annotations

import resource
import sys

import jax

from progemu_jax.models.transformer import TransformerConfig

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


def transformer_flops(cfg: TransformerConfig, length: int) -> float:
    """FLOPs of a training step per token: 6 a weight that multiplies it, and causal attention over `length` tokens.

    Model FLOPs (Chowdhery et al. 2022, appendix B): what is computed again in the backward pass does not count.
    """
    M, N, K, D, F = cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.intermediate_size
    layer = M * D * (2 * N + 2 * K) + 3 * M * F
    attention = 2 * N * D * length / 2  # two products, half of the pairs
    return 6.0 * (cfg.num_layers * (layer + attention) + M * cfg.vocab_size)


def memory_gib() -> float:
    """Most memory used so far: of the first device, or of this process where the device does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return round(stats["peak_bytes_in_use"] / 2**30, 3)
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)
