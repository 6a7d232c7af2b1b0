"""The noise schedule of a diffusion model."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

MOST_STEPS = 100_000


@dataclass(frozen=True)
class Schedule:
    """Variance schedule of the forward process (Ho et al. 2020); the defaults are Stable Diffusion's.

    beta_start, beta_end: of the first and last step; "scaled_linear" spaces their square roots evenly, "linear" them.
    offset: added to the timesteps that a solver visits; last_alpha_one: DDIM's last step goes to no noise at all
      rather than to timestep 0 (`steps_offset`, `set_alpha_to_one` of Diffusers).
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    kind: str = "scaled_linear"
    offset: int = 1
    last_alpha_one: bool = False

    def __post_init__(self):
        if self.kind not in ("scaled_linear", "linear"):
            raise ValueError(f"kind={self.kind!r}: choose 'scaled_linear' or 'linear'")
        if not 0 < self.beta_start <= self.beta_end < 1 or not 2 <= self.steps <= MOST_STEPS:
            raise ValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}, steps={self.steps}: expected "
                f"0 < start <= end < 1 and 2 to {MOST_STEPS} steps"
            )
        if self.offset not in (0, 1):
            raise ValueError(f"offset={self.offset}: expected 0 or 1")

    def alphas(self) -> np.ndarray:
        """Cumulative products of 1 - beta, float64 [steps]: the signal's share of the variance."""
        if self.kind == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2
        else:
            betas = np.linspace(self.beta_start, self.beta_end, self.steps)
        return np.cumprod(1 - betas)

    def add_noise(self, latents: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
        """q(x_t | x_0), Ho et al. eq. 4: latents, noise `[B, h, w, Z]`, times int `[B]` -> `[B, h, w, Z]`."""
        alphas = jnp.asarray(self.alphas(), jnp.float32)[times][:, None, None, None]
        return jnp.sqrt(alphas) * latents + jnp.sqrt(1 - alphas) * noise
