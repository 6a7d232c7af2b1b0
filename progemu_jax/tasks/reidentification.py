"""Training of the network that tells whether two films are of one patient, on pairs of studies of training patients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from progemu_jax.models.reidentification import ReidentificationConfig, ReidentificationNet
from progemu_jax.training import optim
from progemu_jax.training.loop import TrainConfig

TEMPERATURE = 0.1
_MOST_LEFT_OUT = -1e9


@dataclass(frozen=True)
class IdentityConfig:
    """Network and training of re-identification; train.steps=0: no identity is measured."""

    net: ReidentificationConfig = field(default_factory=ReidentificationConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=0))


class ReidentificationTask:
    """Contrast (InfoNCE, van den Oord et al. 2018, equation 4, both ways): which film of a batch is of this patient?

    Batches: prior, followup uint8 [B, H, W] of two studies; patient int32 [B], so that another pair of the same patient
    is no wrong answer. Pairs are registered and strangers are not: each film is moved by chance, so that lying on each
    other tells nothing.
    """

    name = "reidentification"

    def __init__(self, net: ReidentificationConfig, train: TrainConfig, image_size: int):
        self.net, self.train, self.image_size = ReidentificationNet(net), train, image_size
        self.optimizer = optim.make_optimizer(train)

    def init(self, key: jax.Array) -> dict[str, Any]:
        params = self.net.init(key, jnp.zeros((1, self.image_size, self.image_size)))["params"]
        return optim.start(self.optimizer, self.train, params)

    def loss(self, params: Any, prior: jax.Array, followup: jax.Array, batch: dict) -> tuple[jax.Array, dict]:
        """Contrast; prior, followup f32 [B, H, W] in [0, 1]. accuracy: share of films that find their patient."""
        points = self.net.apply({"params": params}, jnp.concatenate([prior, followup]))
        first, second = jnp.split(points, 2)
        alike = first @ second.T / TEMPERATURE
        own = jnp.eye(len(alike), dtype=bool)
        same = (batch["patient"][:, None] == batch["patient"][None]) & ~own
        alike = jnp.where(same, _MOST_LEFT_OUT, alike)
        terms = [jax.nn.log_softmax(alike, axis=axis).diagonal() for axis in (0, 1)]
        found = (alike.argmax(1) == jnp.arange(len(alike))).mean()
        return -jnp.concatenate(terms).mean(), {"accuracy": found}

    def train_step(self, state: dict[str, Any], batch: dict, key: jax.Array) -> tuple[dict, dict]:
        keys = jax.random.split(key)
        films = [moved(k, batch[name]) for k, name in zip(keys, ("prior", "followup"), strict=True)]
        (loss, metrics), grads = jax.value_and_grad(self.loss, has_aux=True)(state["params"], *films, batch)
        return optim.advance(self.optimizer, self.train, state, grads), {"loss": loss, **metrics}

    def eval_step(self, state: dict[str, Any], batch: dict) -> dict[str, jax.Array]:
        films = [moved(jax.random.key(i), batch[name]) for i, name in enumerate(("prior", "followup"))]
        loss, metrics = self.loss(optim.averaged(state), *films, batch)
        return {"loss": loss, **metrics}


def moved(key: jax.Array, images: jax.Array) -> jax.Array:
    """uint8 [B, H, W] -> f32 [B, H, W] in [0, 1]: turned by up to 8 degrees, up to 12 % larger or smaller, shifted by
    up to 6 %, of another gamma, blur and noise; what comes from outside is black."""
    images = images.astype(jnp.float32) / 255
    b, h, w = images.shape
    keys = jax.random.split(key, 8)

    def uniform(k: jax.Array, low: float, high: float) -> jax.Array:
        return jax.random.uniform(k, (b,), minval=low, maxval=high)

    angle, scale = uniform(keys[0], -0.14, 0.14), jnp.exp(uniform(keys[1], -0.12, 0.12))
    shift = jnp.stack([uniform(keys[2], -0.06, 0.06) * h, uniform(keys[3], -0.06, 0.06) * w], axis=-1)
    rows, columns = jnp.meshgrid(jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2, indexing="ij")

    def warp(image, angle, scale, shift):
        cosine, sine = jnp.cos(angle) * scale, jnp.sin(angle) * scale
        y = cosine * rows - sine * columns + (h - 1) / 2 + shift[0]
        x = sine * rows + cosine * columns + (w - 1) / 2 + shift[1]
        return jax.scipy.ndimage.map_coordinates(image, [y, x], order=1, cval=0.0)

    images = jax.vmap(warp)(images, angle, scale, shift)
    images = jnp.clip(images, 0, 1) ** jnp.exp(uniform(keys[4], -0.25, 0.25))[:, None, None]
    blurred = images
    for axis in (1, 2):
        blurred = (jnp.roll(blurred, 1, axis) + 2 * blurred + jnp.roll(blurred, -1, axis)) / 4
    images += uniform(keys[5], 0, 1)[:, None, None] * (blurred - images)
    noise = uniform(keys[6], 0, 0.04)[:, None, None] * jax.random.normal(keys[7], images.shape)
    return jnp.clip(images + noise, 0, 1)
