"""Sampling from a latent diffusion model: the noise schedule, two solvers, two guidance scales, one jitted scan.

Axis legend: B cases, R rows of the batch (B times the passes that guidance needs), Z latent channels, S text tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from progemu_jax.devices import sharding
from progemu_jax.kernels import convolution
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.unet import UNet, UNetConfig
from progemu_jax.sampling.watch import Progress, Watch, in_blocks

Params = Any
DDIM, DPM = "ddim", "dpm++"


@dataclass(frozen=True)
class DiffusionSampling:
    """Policy of one request.

    Attributes:
      steps: evaluations of the UNet a sample.
      solver: "ddim" (Song et al. 2021, eta 0) or "dpm++" (DPM-Solver++ 2M, Lu et al. 2022), which needs fewer steps.
      guidance: scale of the text (s_T); 1 is none.
      image_guidance: scale of the prior (s_I), for a model that has one (InstructPix2Pix, eq. 3); 1 is none.
    """

    steps: int = 50
    solver: str = DDIM
    guidance: float = 7.5
    image_guidance: float = 1.5

    def __post_init__(self):
        if self.solver not in (DDIM, DPM):
            raise ValueError(f"solver={self.solver!r}: choose '{DDIM}' or '{DPM}'")
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps={self.steps}: expected 1..1000")
        for name in ("guidance", "image_guidance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: expected a finite number that is not negative")

    def passes(self, conditioned: bool) -> int:
        """Rows of the UNet's batch a case: 1; 2 with text guidance; 3 with both."""
        if conditioned and self.image_guidance != 1:
            return 3
        return 1 if self.guidance == 1 else 2


def solver_table(schedule: Schedule, policy: DiffusionSampling) -> dict[str, np.ndarray]:
    """What each step does, as arrays [steps]: x' = a x + b x_0 + c x_0' with x_0 = (x - sigma eps) / alpha.

    x_0' is the estimate of the step before. Both solvers have this form: DDIM is c = 0, and DPM-Solver++ 2M starts
    and ends with such a step. Timesteps as in Diffusers ("leading" for DDIM, "linspace" for DPM-Solver++).
    """
    n, total = policy.steps, schedule.steps
    cumulative = schedule.alphas()
    if policy.solver == DDIM:
        times = np.arange(n)[::-1] * (total // n) + schedule.offset
        last = 1.0 if schedule.last_alpha_one else cumulative[0]
        before = times - total // n
        target = np.where(before >= 0, cumulative[np.maximum(before, 0)], last)
    else:
        times = np.linspace(0, total - 1, n + 1).round()[::-1][:-1].astype(int)
        target = np.append(cumulative[times[1:]], 1.0)
    times = np.minimum(times, total - 1)
    alpha, sigma = np.sqrt(cumulative[times]), np.sqrt(1 - cumulative[times])
    alpha_to, sigma_to = np.sqrt(target), np.sqrt(1 - target)
    a = sigma_to / sigma
    b = alpha_to - alpha * a
    c = np.zeros(n)
    if policy.solver == DPM:
        log_snr = np.log(alpha / sigma)
        for i in range(1, n - 1):
            ratio = (log_snr[i + 1] - log_snr[i]) / (log_snr[i] - log_snr[i - 1])
            c[i] = -0.5 * b[i] * ratio
        b = b - c
    table = {"time": times, "alpha": alpha, "sigma": sigma, "a": a, "b": b, "c": c}
    return {k: v.astype(np.int32 if k == "time" else np.float32) for k, v in table.items()}


def guide(noise: jax.Array, policy: DiffusionSampling, conditioned: bool) -> jax.Array:
    """Guided prediction of the noise (InstructPix2Pix, eq. 3; Ho & Salimans 2022 without a prior).

    noise: `[R, ...]`, rows (prior, text), then (prior, no text), then (neither) -> `[B, ...]`.
    """
    passes = policy.passes(conditioned)
    if passes == 1:
        return noise
    parts = jnp.split(noise, passes)
    text = parts[1] + policy.guidance * (parts[0] - parts[1])
    return text if passes == 2 else text + (policy.image_guidance - 1) * (parts[1] - parts[2])


def first_noise(keys: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """x_T float32 `[B, h, w, Z]`, each case from its own key: not of its companions in the batch."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


@functools.partial(jax.jit, static_argnames=("cfg", "schedule", "policy", "mesh"))
def generate(
    params: Params,
    cfg: UNetConfig,
    schedule: Schedule,
    policy: DiffusionSampling,
    noise: jax.Array,
    prior: jax.Array | None,
    text: jax.Array,
    null_text: jax.Array,
    mask: jax.Array | None = None,
    null_mask: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Denoises a batch in one scan.

    Args:
      params: of the UNet.
      noise: float32 `[B, h, w, Z]`, see `first_noise`.
      prior: latents of the priors `[B, h, w, Z]`, not scaled (as InstructPix2Pix has them), for a model that takes
        one. A dropped prior is zero.
      text, null_text: states of the prompts `[B, S, X]` and of the empty one `[S, X]`; masks bool `[B, S]`, `[S]`.
      mesh: each of its data parts denoises its own cases, with the whole parameters, and exchanges nothing; a batch
        that does not divide over them runs unsplit.

    Returns:
      Latents float32 `[B, h, w, Z]`, scaled.
    """
    variables, carry = {"params": params}, (noise, jnp.zeros_like(noise))
    return _steps(cfg, schedule, policy, mesh, variables, carry, None, prior, text, null_text, mask, null_mask)[0]


def generate_watched(
    params: Params,
    cfg: UNetConfig,
    schedule: Schedule,
    policy: DiffusionSampling,
    noise: jax.Array,
    *inputs: jax.Array | np.ndarray | None,
    mesh: Mesh | None = None,
    watch: Watch,
) -> jax.Array:
    """`generate`, prior to null_mask as `inputs`, in blocks of steps, after each of which `watch` is called."""
    variables, carry, made = {"params": params}, (noise, jnp.zeros_like(noise)), 0
    if sharding.platform() == "cpu":
        variables[convolution.COLLECTION] = _kernels(params)  # once, not once a block

    def advance(steps: int) -> Progress | None:
        nonlocal carry, made
        first, made = made, min(made + steps, policy.steps)
        span = np.asarray([first, made], np.int32)
        carry = jax.block_until_ready(_block(cfg, schedule, policy, mesh, variables, carry, span, *inputs))
        return Progress("steps", made, policy.steps) if made < policy.steps else None

    in_blocks(advance, watch)
    return carry[0]


def _steps(
    cfg: UNetConfig, schedule: Schedule, policy: DiffusionSampling, mesh: Mesh | None, variables: Params, *arrays: Any
) -> tuple[jax.Array, jax.Array]:
    """`_denoise`, on a mesh each data part by itself."""

    def run(variables: Params, *arrays: Any) -> tuple[jax.Array, jax.Array]:
        return _denoise(variables, cfg, schedule, policy, *arrays)

    if mesh is None or arrays[0][0].shape[0] % sharding.data_parts(mesh):
        return run(variables, *arrays)
    cases, whole = PartitionSpec(sharding.RULES["batch"]), PartitionSpec()
    specs = whole, cases, whole, cases, cases, whole, cases, whole
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=cases, check_vma=False)(variables, *arrays)


_block = jax.jit(_steps, static_argnums=(0, 1, 2, 3))
_kernels = jax.jit(convolution.kernels)


def _denoise(
    variables: Params,
    cfg: UNetConfig,
    schedule: Schedule,
    policy: DiffusionSampling,
    carry: tuple[jax.Array, jax.Array],
    span: jax.Array | None,
    prior: jax.Array | None,
    text: jax.Array,
    null_text: jax.Array,
    mask: jax.Array | None,
    null_mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """carry: x and the estimate x_0 of the step before, `[B, h, w, Z]`; span: int32 [2], the first step to make and
    the one that follows the last, or None: all of them. Returns the carry after these steps."""
    passes, B = policy.passes(cfg.conditioned), carry[0].shape[0]

    def rows(x: jax.Array, null: jax.Array) -> jax.Array:
        return jnp.concatenate([x] + [jnp.broadcast_to(null, x.shape)] * (passes - 1))

    text = rows(text, null_text)
    mask = None if mask is None else rows(mask, null_mask)
    if cfg.conditioned:
        prior = jnp.concatenate([prior] * min(passes, 2) + [jnp.zeros_like(prior)] * (passes == 3))

    if sharding.platform() == "cpu" and convolution.COLLECTION not in variables:
        variables = {**variables, convolution.COLLECTION: convolution.kernels(variables["params"])}

    def step(carry: tuple[jax.Array, jax.Array], at: dict[str, jax.Array]) -> tuple[tuple[jax.Array, jax.Array], None]:
        x, before = carry
        inputs = jnp.concatenate([x] * passes)
        if cfg.conditioned:
            inputs = jnp.concatenate([inputs, prior], axis=-1)
        times = jnp.broadcast_to(at["time"], (passes * B,))
        found = guide(UNet(cfg).apply(variables, inputs, times, text, mask), policy, cfg.conditioned)
        clean = (x - at["sigma"] * found) / at["alpha"]
        return (at["a"] * x + at["b"] * clean + at["c"] * before, clean), None

    table = {k: jnp.asarray(v) for k, v in solver_table(schedule, policy).items()}
    if span is None:
        return lax.scan(step, carry, table)[0]
    return lax.fori_loop(span[0], span[1], lambda i, c: step(c, {k: v[i] for k, v in table.items()})[0], carry)
