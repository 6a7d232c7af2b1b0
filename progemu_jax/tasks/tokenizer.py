"""VQGAN training: reconstruction, edges, commitment, moving-average codes, dead-code revival, hinge GAN."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from progemu_jax import losses
from progemu_jax.models import discriminator, vqgan
from progemu_jax.models.discriminator import Discriminator, DiscriminatorConfig
from progemu_jax.models.vqgan import VQGAN, VQGANConfig
from progemu_jax.optim import make_optimizer
from progemu_jax.train import TrainConfig


@dataclass(frozen=True)
class TokenizerLossConfig:
    """Weights of the loss and upkeep of the code-book.

    Attributes:
      l1, l2, edge: of the reconstruction terms (`losses.edge_loss` stands in for a perceptual loss).
      commit: of the commitment loss.
      decay: of the codes' moving averages.
      revive_below: a code used less often than this share of even use, on average, is put on a latent of the batch.
      revive_until: share of the training steps in which codes are revived.
      gan, gan_start: weight of the hinge GAN loss relative to VQGAN's adaptive weight, from this step on; 0 trains
        no discriminator.
      discriminator: its sizes.
    """

    l1: float = 1.0
    l2: float = 0.0
    edge: float = 1.0
    commit: float = 0.25
    decay: float = 0.99
    revive_below: float = 0.03
    revive_until: float = 0.8
    gan: float = 0.0
    gan_start: int = 0
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


class TokenizerTask:
    """See `progemu_jax.train.fit` for the protocol; batches hold image uint8 [B, S, S]."""

    name = "tokenizer"

    def __init__(self, model: VQGANConfig, loss: TokenizerLossConfig, train: TrainConfig, image_size: int):
        self.model_config, self.config, self.train, self.image_size = model, loss, train, image_size
        self.model, self.discriminator = VQGAN(model), Discriminator(loss.discriminator)
        self.optimizer = make_optimizer(train)

    def init(self, key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 2)
        variables = vqgan.init_variables(self.model_config, keys[0])
        embedding = variables["params"]["quantize"]["embedding"]
        state = {
            "params": variables["params"],
            "batch_stats": variables.get("batch_stats", {}),
            "opt_state": self.optimizer.init(variables["params"]),
            "codes": {"counts": jnp.ones(embedding.shape[0]), "sums": jnp.array(embedding, jnp.float32, copy=True)},
            "step": jnp.zeros((), jnp.int32),
        }
        if self.config.gan:
            params = discriminator.init_params(self.config.discriminator, keys[1], self.model_config.out_channels)
            state["disc"] = {"params": params, "opt_state": self.optimizer.init(params)}
        return state

    def inference_variables(self, state: dict[str, Any]) -> dict[str, Any]:
        """What `model.Tokenizer` needs: {"params"} and, with the temporal path, {"batch_stats"}."""
        return {k: state[k] for k in ("params", "batch_stats") if state[k]}

    def pixels(self, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W] -> f32 [B, H, W, C] in [-1, 1]."""
        x = images.astype(jnp.float32)[..., None] / 127.5 - 1
        return jnp.repeat(x, self.model_config.in_channels, axis=-1)

    def _forward(self, params: Any, stats: Any, x: jax.Array, train: bool) -> tuple:
        variables = {"params": params, **({"batch_stats": stats} if stats else {})}
        if train and stats:
            (y, codes, aux), new = self.model.apply(variables, x, train, mutable=["batch_stats"])
            return y, codes, aux, new["batch_stats"]
        y, codes, aux = self.model.apply(variables, x, train)
        return y, codes, aux, stats

    def _terms(self, x: jax.Array, y: jax.Array, aux: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        c = self.config
        terms = {
            "l1": jnp.abs(x - y).mean(),
            "l2": jnp.square(x - y).mean(),
            "edge": losses.edge_loss(x, y),
            "commit": aux["commit_loss"],
        }
        loss = sum(getattr(c, name) * value for name, value in terms.items())
        mse = jnp.square((x - y) / 2).mean((1, 2, 3))
        metrics = {**terms, "psnr": (-10 * jnp.log10(mse + 1e-10)).mean(), "perplexity": aux["perplexity"]}
        return loss, metrics

    def train_step(self, state: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array) -> tuple[dict, dict]:
        c, x = self.config, self.pixels(batch["image"])

        def loss(params: Any) -> tuple:
            y, _, aux, stats = self._forward(params, state["batch_stats"], x, True)
            value, metrics = self._terms(x, y, aux)
            return value, (y, aux, stats, metrics)

        (value, (y, aux, stats, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
        new = dict(state)
        if c.gan:
            grads, new["disc"], more = self._adversarial(state, x, y, grads)
            metrics |= more
        updates, new["opt_state"] = self.optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        embedding, new["codes"], revived = self._upkeep(state, aux, key)
        params = {**params, "quantize": {"embedding": embedding}}
        new |= {"params": params, "batch_stats": stats, "step": state["step"] + 1}
        return new, {"loss": value, **metrics, "revived": revived}

    def _upkeep(self, state: dict[str, Any], aux: dict[str, jax.Array], key: jax.Array) -> tuple:
        """Moving averages of the codes; the unused ones go to latents of the batch."""
        c, old = self.config, state["params"]["quantize"]["embedding"]
        embedding, counts, sums = vqgan.ema_update(old, state["codes"]["counts"], state["codes"]["sums"], aux, c.decay)
        latents = aux["latents"]
        even = latents.shape[0] / embedding.shape[0]
        # All codes start on latents: a random start leaves most of them where no latent ever is.
        first = state["step"] == 0
        early = state["step"] < c.revive_until * self.train.steps
        dead = first | (early & (counts < c.revive_below * even))
        chosen = latents[jax.random.randint(key, (embedding.shape[0],), 0, latents.shape[0])]
        embedding = jnp.where(dead[:, None], chosen, embedding)
        counts = jnp.where(dead, even, counts)
        sums = jnp.where(dead[:, None], chosen * even, sums)
        return embedding, {"counts": counts, "sums": sums}, dead.sum()

    def _adversarial(self, state: dict[str, Any], x: jax.Array, y: jax.Array, grads: Any) -> tuple:
        """Adds the generator's hinge gradient with VQGAN's adaptive weight; trains the discriminator."""
        c, disc = self.config, state["disc"]

        def judge(params: Any, images: jax.Array) -> jax.Array:
            return self.discriminator.apply({"params": params}, images)

        def fool(params: Any) -> jax.Array:
            out, _, _, _ = self._forward(params, state["batch_stats"], x, True)
            return losses.hinge_generator(judge(disc["params"], out))

        gan_grads = jax.grad(fool)(state["params"])
        last = ("decoder", "conv_out", "kernel")

        def at(tree: Any) -> jax.Array:
            for name in last:
                tree = tree[name]
            return tree

        weight = c.gan * losses.adaptive_weight(at(grads), at(gan_grads))
        weight = jnp.where(state["step"] >= c.gan_start, weight, 0.0)
        grads = jax.tree.map(lambda g, a: g + weight * a, grads, gan_grads)
        y = jax.lax.stop_gradient(y)
        value, disc_grads = jax.value_and_grad(
            lambda params: losses.hinge_discriminator(judge(params, x), judge(params, y))
        )(disc["params"])
        updates, opt_state = self.optimizer.update(disc_grads, disc["opt_state"], disc["params"])
        params = optax.apply_updates(disc["params"], updates)
        return grads, {"params": params, "opt_state": opt_state}, {"loss_disc": value, "gan_weight": weight}

    def eval_step(self, state: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        x = self.pixels(batch["image"])
        y, _, aux, _ = self._forward(state["params"], state["batch_stats"], x, False)
        loss, metrics = self._terms(x, y, aux)
        return {"loss": loss, **metrics, "weight": jnp.asarray(x.shape[0], jnp.float32)}
