"""What a run needs of a system, and the parts of a config that its stages depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from jax.sharding import Mesh

from progemu_jax.config import Config
from progemu_jax.data.sources import PLACES
from progemu_jax.files.settings import to_dict
from progemu_jax.files.stages import Stage
from progemu_jax.training.loop import HOUSEKEEPING, TrainConfig

ROOTS = ("root", *PLACES, "exclude")  # of config.data: what lies there counts, not where it is
_ASKING = ("endpoint", "key_variable", "parallel", "timeout", "retries", "price_in", "price_out", "acknowledge")


class System(Protocol):
    """A kind of model that a run trains, samples and judges. `systems.of(config)` gives the one that is named."""

    name: str

    def trained(self, config: Config) -> dict[str, TrainConfig]:
        """Everything that is trained, by its place in the config."""

    def check(self, config: Config) -> None:
        """Raises UserError for values that make no sense or do not go together, before any work is done."""

    def check_mesh(self, config: Config, mesh: Mesh) -> None:
        """Raises UserError unless the parameters divide over the mesh of training."""

    def stages(self, config: Config, slices: Slices) -> list[Stage]:
        """The stages of a run in their order; those of every system are in `shared_stages`."""


class Slices:
    """The parts of a config that stages depend on, as JSON-able dicts."""

    def __init__(self, config: Config):
        self._plain = to_dict(config)
        data = _without(self._plain["data"], (*ROOTS, "processes", "beam"))
        self.data: dict[str, Any] = {**data, "texts": _without(data["texts"], _ASKING)}

    def of(self, *sections: str) -> dict[str, Any]:
        """The seed and the named sections, without what only says how often a loop reports and saves, and without
        where weights to start from lie: their content is an input."""
        silent = (*HOUSEKEEPING, "init", "perceptual_weights")
        return {"seed": self._plain["seed"], **{name: _without(self._plain[name], silent) for name in sections}}


def _without(values: Any, keys: tuple[str, ...]) -> Any:
    """Nested dict without some keys, at any depth."""
    if not isinstance(values, Mapping):
        return values
    return {k: _without(v, keys) for k, v in values.items() if k not in keys}
