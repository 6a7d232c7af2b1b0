"""The systems that a run can train: ProgEmu and latent diffusion."""

from progemu_jax.config import Config
from progemu_jax.errors import UserError
from progemu_jax.systems.diffusion.system import Diffusion
from progemu_jax.systems.interface import System
from progemu_jax.systems.progemu.system import ProgEmu

SYSTEMS: dict[str, System] = {system.name: system for system in (ProgEmu(), Diffusion())}


def of(config: Config) -> System:
    """The system that `config.system` names; UserError for a name that is none."""
    if config.system not in SYSTEMS:
        raise UserError(f"config.system={config.system!r}: choose {' or '.join(map(repr, SYSTEMS))}")
    return SYSTEMS[config.system]
