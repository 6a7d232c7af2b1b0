"""LPIPS' weights from a safetensors file, in the names of torchvision's VGG-16 and of the lpips package.

The convolutions are `features.N.*` (torchvision) or `net.sliceK.N.*` (lpips), N being the same; the linear layers are
`linK.model.1.weight` or `lins.K.model.1.weight`. Both in one file: the lpips package's whole state does it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from progemu_jax.checkpoints import safetensors
from progemu_jax.errors import UserError
from progemu_jax.models.lpips import STAGES, WIDTHS

_CONV = re.compile(r"^(?:features|net\.slice\d)\.(\d+)\.(weight|bias)$")
_LIN = re.compile(r"^lin(?:s\.)?(\d)\.model\.\d\.weight$")


def load(path: str | os.PathLike) -> dict:
    """The parameters of `models.lpips.distance`. Raises UserError naming what is wrong with the file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give LPIPS' weights as one safetensors file")
    if path.suffix in safetensors.PICKLES:
        safetensors.refuse_pickles(path)
    found: dict = {}
    for name, tensor in safetensors.read_header(path).items():
        if match := _CONV.match(name):
            found[int(match[1]), match[2]] = tensor
        elif match := _LIN.match(name):
            found["lin", int(match[1])] = tensor
    params, width = {}, 3

    def take(key: tuple, shape: tuple[int, ...]) -> np.ndarray:
        tensor = found.get(key)
        if tensor is None:
            what = f"lin{key[1]}.model.1.weight" if key[0] == "lin" else f"features.{key[0]}.{key[1]}"
            raise UserError(f"{path}: tensor {what} (or the lpips package's name of it) is missing")
        if tensor.shape != shape:
            raise UserError(f"{path}: tensor {tensor.name} is {list(tensor.shape)}, VGG-16 has {list(shape)}")
        return tensor.read().astype(np.float32)

    for index, (stage, features) in enumerate(zip(STAGES, WIDTHS, strict=True)):
        for number in stage:
            kernel = take((number, "weight"), (features, width, 3, 3)).transpose(2, 3, 1, 0)
            bias = take((number, "bias"), (features,))
            params[f"conv_{number}"] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
            width = features
        params[f"lin_{index}"] = jnp.asarray(take(("lin", index), (1, features, 1, 1)).reshape(-1))
    return params
