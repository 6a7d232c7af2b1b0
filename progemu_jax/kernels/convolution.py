"""Winograd's minimal filtering F(2 x 2, 3 x 3): a 3 x 3 convolution with 2.25 times fewer multiplications.

Lavin & Gray 2016, section 4.1: an output tile of 2 x 2 comes from an input tile of 4 x 4 as
A' [(G k G') * (B' x B)] A, so the convolution is 16 matrix products over tiles, and sums. The transformed kernels
G k G' are made once and serve every step of a sampler. It is for CPUs, where XLA has no such convolution of its own.

Axis legend (einsum strings use these letters only)
  T tiles of the batch    C channels in    D channels out
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from progemu_jax.devices.sharding import platform

COLLECTION = "winograd"  # of variables, beside "params"
TILES = 24  # times the bytes of an element; with fewer, reading the kernels is what takes the time


def kernels(params: dict) -> dict:
    """The transformed kernels of all 3 x 3 convolutions in a tree of parameters, at the same places.

    Kernels `[3, 3, C, D]` -> 16 of `[C, D]`, computed in float32, in the kernel's dtype. Other leaves are left out.
    """
    out: dict[str, Any] = {}
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            if below := kernels(leaf):
                out[name] = below
        elif name == "kernel" and leaf.shape[:2] == (3, 3) and len(leaf.shape) == 4:
            out[name] = transform_kernel(leaf)
    return out


def transform_kernel(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """G k G': `[3, 3, C, D]` -> 16 of `[C, D]`, row by row of the 4 x 4 tile."""

    def four(a: jax.Array, b: jax.Array, c: jax.Array) -> tuple[jax.Array, ...]:
        return a, 0.5 * (a + c) + 0.5 * b, 0.5 * (a + c) - 0.5 * b, c

    k = kernel.astype(jnp.float32)
    rows = four(k[0], k[1], k[2])
    return tuple(x.astype(kernel.dtype) for row in rows for x in four(row[0], row[1], row[2]))


def pays(x: jax.Array) -> bool:
    """Whether `[B, H, W, C]` has whole tiles, and enough of them for kernels that are 16 / 9 as large."""
    B, H, W, _ = x.shape
    return H % 2 == 0 and W % 2 == 0 and TILES * x.dtype.itemsize <= B * H * W // 4


def winograd_conv2d(x: jax.Array, transformed: tuple[jax.Array, ...]) -> jax.Array:
    """Convolution of stride 1, padded to the same size: `[B, H, W, C]`, H and W even -> `[B, H, W, D]`.

    transformed: see `transform_kernel`. Products are of x's dtype, sums float32.
    """
    B, H, W, C = x.shape
    h, w, D = H // 2, W // 2, transformed[0].shape[-1]

    def tiles(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:  # B' along one axis
        return a - c, b + c, c - b, b - d

    def outputs(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:  # A' along one axis
        return a + b + c, b - c - d

    # Each transformation goes over rows, is written out, and then over columns: as one, XLA would compute the sums over
    # rows again for every column.
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = tiles(*(padded[:, i : i + H - 1 : 2] for i in range(4)))
    rows = jax.lax.optimization_barrier(rows)
    product = functools.partial(jnp.einsum, "TC,CD->TD", preferred_element_type=jnp.float32)
    products = []
    for i, row in enumerate(rows):
        columns = tiles(*(row[:, :, j : j + W - 1 : 2] for j in range(4)))
        flat = (column.astype(x.dtype).reshape(-1, C) for column in columns)
        products.append(list(map(product, flat, transformed[4 * i : 4 * i + 4])))
    columns = jax.lax.optimization_barrier([outputs(*row) for row in products])
    out = [outputs(*(column[j] for column in columns)) for j in range(2)]  # of a column, its two rows
    out = jnp.stack([jnp.stack([out[j][i].reshape(B, h, w, D) for j in range(2)], axis=3) for i in range(2)], axis=2)
    return out.reshape(B, H, W, D).astype(x.dtype)


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str | tuple = "SAME") -> jax.Array:
    """Convolution of `[B, H, W, C]` with `[k, k, C, D]`.

    On a CPU some of 3 x 3 are matrix products, with sums in float32 in any case: in bfloat16 three, of rows of pixels
    (newer XLA has products for that dtype; with jax 0.12 1.6 to 2.2 times as fast as its convolution); in float32 one,
    where there are fewer pixels than channels (1.3 to 4 times as fast).
    """
    B, H, W, C = x.shape
    if kernel.shape[0] == 3 and (stride, padding) == (1, "SAME") and platform() == "cpu":
        bfloat16 = x.dtype == jnp.bfloat16
        if bfloat16 or B * H * W < C:
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = jnp.concatenate([x[:, :, j : j + W] for j in range(3)], axis=-1)
            rows, kernel = [x[:, i : i + H] for i in range(3)], kernel.reshape(3, 3 * C, -1)
            if not bfloat16:
                rows, kernel = [jnp.concatenate(rows, axis=-1)], kernel.reshape(1, 9 * C, -1)
            product = functools.partial(jnp.einsum, "BHWC,CD->BHWD", preferred_element_type=jnp.float32)
            return sum(map(product, rows, kernel)).astype(x.dtype)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
