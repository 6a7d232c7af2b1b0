"""Training the KL autoencoder of a diffusion model: reconstruction, edges, a small KL term (Rombach et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from progemu_jax.models import autoencoder, pixels
from progemu_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from progemu_jax.training import losses, optim
from progemu_jax.training.loop import TrainConfig


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights of the terms.

    Attributes:
      l1, edge: of the reconstruction (`losses.edge_loss` stands in for a perceptual loss).
      kl: of the KL divergence from N(0, 1) a latent entry, against the l1 of a pixel.
    """

    l1: float = 1.0
    edge: float = 1.0
    kl: float = 1e-4


class AutoencoderTask:
    """See `progemu_jax.training.loop.fit` for the protocol; batches hold image uint8 [B, S, S]."""

    name = "autoencoder"

    def __init__(self, model: AutoencoderConfig, loss: AutoencoderLossConfig, train: TrainConfig):
        self.model_config, self.config, self.train = model, loss, train
        self.model, self.optimizer = Autoencoder(model), optim.make_optimizer(train)

    def init(self, key: jax.Array) -> dict[str, Any]:
        return optim.start(self.optimizer, self.train, autoencoder.init_params(self.model_config, key))

    def inference_params(self, state: dict[str, Any]) -> Any:
        """What is exported."""
        return optim.averaged(state)

    def _loss(self, params: Any, images: jax.Array, key: jax.Array | None) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = pixels.normalize(images, self.model_config.in_channels)
        y, mean, logvar = self.model.apply({"params": params}, x, key)
        c = self.config
        terms = {
            "l1": jnp.abs(x - y).mean(),
            "edge": losses.edge_loss(x, y),
            "kl": 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean(),
        }
        mse = jnp.square((x - y) / 2).mean((1, 2, 3))
        more = {"psnr": (-10 * jnp.log10(mse + 1e-10)).mean(), "latent_std": jnp.sqrt(jnp.square(mean).mean())}
        return sum(getattr(c, name) * value for name, value in terms.items()), terms | more

    def train_step(self, state: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array) -> tuple[dict, dict]:
        def loss(params: Any, batch: Any, key: jax.Array) -> tuple:
            return self._loss(params, batch["image"], key)

        (value, metrics), grads = optim.value_and_grad_accumulated(
            loss, state["params"], batch, key, self.train.accumulate
        )
        return optim.advance(self.optimizer, self.train, state, grads), {"loss": value, **metrics}

    def eval_step(self, state: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        loss, metrics = self._loss(optim.averaged(state), batch["image"], None)
        return {"loss": loss, **metrics, "weight": jnp.asarray(batch["image"].shape[0], jnp.float32)}
