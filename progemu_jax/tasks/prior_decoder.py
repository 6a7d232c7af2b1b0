"""Training what paints a follow-up from its codes and the prior's pixels, behind a tokenizer that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from progemu_jax.errors import UserError
from progemu_jax.models import pixels, prior_decoder
from progemu_jax.models.prior_decoder import PriorDecoder, PriorDecoderConfig
from progemu_jax.models.vqgan import VQGAN, VQGANConfig
from progemu_jax.training import losses, optim
from progemu_jax.training.loop import TrainConfig


@dataclass(frozen=True)
class PriorDecoderLossConfig:
    """Weights of the terms.

    Attributes:
      l1, edge: of the painted image (`losses.edge_loss` stands in for a perceptual loss).
      changed: how many times more a pixel counts where the follow-up differs from the prior: without, what is cheapest
        is to paint the prior.
    """

    l1: float = 1.0
    edge: float = 1.0
    changed: float = 4.0


class PriorDecoderTask:
    """See `progemu_jax.training.loop.fit` for the protocol; batches hold prior and followup, uint8 [B, S, S].

    The follow-up is coded as a run codes it for training, leaning to the prior's codes by up to `slack`, or not at all,
    half of the pairs each: what a model draws lies between the two.

    tokenizer: the frozen VQGAN's variables; the state holds them as "frozen". slack: see `Tokenizer.tokenize`.
    """

    name = "decoder"

    def __init__(
        self,
        model: PriorDecoderConfig,
        loss: PriorDecoderLossConfig,
        train: TrainConfig,
        coder: VQGANConfig,
        tokenizer: Any,
        slack: float,
        image_size: int,
    ):
        if image_size % model.factor:
            raise UserError(f"config.decoder.model: an image of {image_size} does not divide by {model.factor}")
        self.model_config, self.config, self.train = model, loss, train
        self.frozen, self.slack = tokenizer, slack
        self.coder, self.model = VQGAN(coder), PriorDecoder(model)
        self.channels, self.optimizer = coder.in_channels, optim.make_optimizer(train)

    def init(self, key: jax.Array) -> dict[str, Any]:
        params = prior_decoder.init_params(self.model_config, key)
        return {**optim.start(self.optimizer, self.train, params), "frozen": jax.tree.map(jnp.asarray, self.frozen)}

    def inference_params(self, state: dict[str, Any]) -> Any:
        """What is exported."""
        return optim.averaged(state)

    def _paint(
        self, params: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(painted, follow-up, prior), each f32 [B, S, S] in [-1, 1]; key: which pairs lean, None: all."""
        prior, followup = (pixels.normalize(batch[name], self.channels) for name in ("prior", "followup"))
        near, _ = self.coder.apply(frozen, prior, method="tokenize")
        lean = jnp.ones(len(prior)) if key is None else jax.random.bernoulli(key, shape=(len(prior),))
        slack = (self.slack * lean)[:, None, None]
        codes, _ = self.coder.apply(frozen, followup, near, slack, method="tokenize")
        decoded, decoded_prior = (self.coder.apply(frozen, c, method="detokenize").mean(-1) for c in (codes, near))
        table = self.coder.apply(frozen, method="table")
        inputs = (decoded, prior.mean(-1), decoded_prior, prior_decoder.code_distance(table, codes, near))
        inputs = jax.lax.stop_gradient(inputs)
        return self.model.apply({"params": params}, *inputs), followup.mean(-1), prior.mean(-1)

    def _loss(self, params: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array | None) -> tuple:
        painted, followup, prior = self._paint(params, frozen, batch, key)
        c, error = self.config, jnp.abs(painted - followup)
        # 0.1 of the range [-1, 1], over 5 x 5 pixels: more than noise, less than the least finding.
        moved = jax.lax.reduce_window(jnp.abs(followup - prior), 0.0, jax.lax.add, (1, 5, 5), (1, 1, 1), "SAME") / 25
        weight = 1 + c.changed * jnp.minimum(moved / 0.1, 1.0)
        terms = {
            "l1": (weight * error).mean() / (1 + c.changed),
            "edge": losses.edge_loss(painted[..., None], followup[..., None]),
        }
        mse = jnp.square((painted - followup) / 2).mean((1, 2))
        more = {"psnr": (-10 * jnp.log10(mse + 1e-10)).mean(), "error_changed": (moved * error).sum() / moved.sum()}
        return c.l1 * terms["l1"] + c.edge * terms["edge"], terms | more

    def train_step(self, state: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array) -> tuple[dict, dict]:
        def loss(params: Any, batch: Any, key: jax.Array) -> tuple:
            return self._loss(params, state["frozen"], batch, key)

        (value, metrics), grads = optim.value_and_grad_accumulated(
            loss, state["params"], batch, key, self.train.accumulate
        )
        return optim.advance(self.optimizer, self.train, state, grads), {"loss": value, **metrics}

    def eval_step(self, state: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        loss, metrics = self._loss(optim.averaged(state), state["frozen"], batch, None)
        return {"loss": loss, **metrics, "weight": jnp.asarray(batch["prior"].shape[0], jnp.float32)}
