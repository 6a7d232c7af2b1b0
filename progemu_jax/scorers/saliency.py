"""Grad-CAM (Selvaraju et al. 2017) of every finding, on the trunk's last map of a JAX scorer.

Axes: B images, H W pixels, F findings, C channels, h w positions of the map.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def score_and_explain(net: nn.Module, params: Any, images: jax.Array) -> dict[str, jax.Array]:
    """The scorer's outputs and, for little more, where each finding's logit comes from.

    map_f = relu(sum_c alpha_fc A_c), alpha_fc the mean over positions of d logit_f / d A_c (equations 1 and 2); each
    map is divided by its greatest value, so a map of zeros means that nothing spoke for the finding.

    Args:
      net: a `ScorerNet`, or any module that sows intermediates/trunk, perturbs it, and returns "findings".
      params: its parameters.
      images: f32 [B, H, W] in [0, 1].

    Returns:
      The outputs of `net`, and saliency f32 [B, F, h, w] in [0, 1].
    """

    def apply(shift: jax.Array) -> tuple[jax.Array, tuple]:
        variables = {"params": params, "perturbations": {"trunk": shift}}
        out, state = net.apply(variables, images, mutable=["intermediates"])
        return out["findings"], (out, state["intermediates"]["trunk"][0])

    shape = jax.eval_shape(lambda x: net.apply({"params": params}, x, mutable=["intermediates"])[1], images)
    trunk = jax.tree.leaves(shape)[0]
    logits, pull, (out, maps) = jax.vjp(apply, jnp.zeros(trunk.shape, trunk.dtype), has_aux=True)
    directions = jnp.eye(logits.shape[1])[:, None] * jnp.ones((1, logits.shape[0], 1))
    gradients = jax.vmap(lambda d: pull(d)[0])(directions)  # [F, B, h, w, C]
    alpha = gradients.mean((2, 3))
    cam = jax.nn.relu(jnp.einsum("fbc,bhwc->bfhw", alpha, maps))
    peak = cam.max((2, 3), keepdims=True)
    return {**out, "saliency": jnp.where(peak > 0, cam / jnp.where(peak > 0, peak, 1), 0)}
