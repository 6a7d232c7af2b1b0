"""A model in a foreign folder: its headers are read and checked against our config, its data are read later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax.checkpoints import arrays, safetensors
from progemu_jax.checkpoints.safetensors import Tensor
from progemu_jax.convert.components import UNUSED, Entry
from progemu_jax.errors import UserError

CONFIG = "config.json"
_BUFFER_BYTES = 2**16


@dataclass(frozen=True)
class Part:
    """One model of a folder.

    Attributes:
      kind: a key of `components.IN_RUN`.
      folder: where its weights and its config.json lie, or what is there in its place.
      model: our config of it.
      entries: its parameters, and what is kept for the way back alone (UNUSED).
      tensors: {name in the checkpoint: Tensor} of the entries.
      buffers: the same of what is no parameter.
    """

    kind: str
    folder: Path
    model: Any
    entries: tuple[Entry, ...] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    buffers: dict[str, Tensor] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def params(self) -> dict:
        """The parameters of our model as a nested dict of jax arrays. UserError for numbers that are not finite."""
        found = {}
        for entry in self.entries:
            if entry.leaf.startswith(f"{UNUSED}."):
                continue
            tensor = self.tensors[entry.name]
            array = entry.ours(tensor.read())
            if not np.isfinite(array).all():
                raise UserError(f"{tensor.file}: tensor {entry.name} holds numbers that are not finite; fetch it again")
            found[entry.leaf] = jax.device_put(array)
        return arrays.unflatten(found)


def checked_tensors(
    entries: Iterable[Entry],
    found: Mapping[str, Tensor],
    index: Path,
    is_buffer: Callable[[str], bool],
    is_unused: Callable[[str], bool] = lambda name: False,
    config: str = CONFIG,
    remedy: str = "use the config and weights of one model",
) -> tuple[tuple[Entry, ...], dict[str, Tensor], dict[str, Tensor]]:
    """(entries, tensors, buffers) as `Part` has them, of the tensors that were found.

    Args:
      entries: of the parameters that the config implies.
      index: the file to name for a missing tensor.
      is_buffer, is_unused: of a tensor's name, whether it is a (small) buffer, or a parameter of another head.
      config, remedy: for messages, what implies the entries, and what to do.

    Raises:
      UserError: a parameter is missing or of another shape, or a tensor is none of the three.
    """
    entries, buffers = list(entries), {}
    expected = {entry.name: entry.tensor_shape for entry in entries}
    safetensors.check(found, expected, index, config, remedy)
    for name, tensor in found.items():
        if name in expected:
            continue
        if is_buffer(name) and tensor.nbytes <= _BUFFER_BYTES:
            buffers[name] = tensor
        elif is_unused(name):
            entries.append(Entry(f"{UNUSED}.{name}", tensor.shape, name, "same"))
        else:
            raise UserError(f"{tensor.file}: tensor {name} belongs to no parameter that {config} implies; {remedy}")
    return tuple(entries), {entry.name: found[entry.name] for entry in entries}, buffers
