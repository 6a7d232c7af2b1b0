"""VQGAN training: reconstruction, edges, LPIPS, commitment, moving-average codes, dead-code revival, hinge GAN.

Also fine-tuning: of our own tokenizers and of Emu3's, whose temporal path has batch norms. Those keep their stored
statistics in training, as they do in use, since a still image repeated four times has none of motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from progemu_jax.errors import UserError
from progemu_jax.models import discriminator, lpips, pixels, vqgan
from progemu_jax.models.discriminator import Discriminator, DiscriminatorConfig
from progemu_jax.models.vqgan import VQGAN, VQGANConfig
from progemu_jax.training import losses, optim
from progemu_jax.training.loop import TrainConfig

PARTS = ("encoder", "quant_conv", "quantize", "post_quant_conv", "decoder")


@dataclass(frozen=True)
class TokenizerLossConfig:
    """Weights of the loss and upkeep of the code-book.

    Attributes:
      l1, l2, edge: of the reconstruction terms (`losses.edge_loss` stands in for a perceptual loss).
      perceptual: of LPIPS, whose weights are in the safetensors file perceptual_weights (`convert.lpips`).
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
    perceptual: float = 0.0
    perceptual_weights: str = ""
    commit: float = 0.25
    decay: float = 0.99
    revive_below: float = 0.03
    revive_until: float = 0.8
    gan: float = 0.0
    gan_start: int = 0
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


class TokenizerTask:
    """See `progemu_jax.training.loop.fit` for the protocol; batches hold image uint8 [B, S, S].

    freeze: parts that are not trained, of encoder, quant_conv, quantize (the code-book), post_quant_conv, decoder;
      without the first three, codes keep their meaning for a language model. The state holds them as "frozen".
    fresh: False when training goes on from given variables: then no code is put anew at the first step.
    perceptual: LPIPS' parameters (`convert.lpips.load`), where the loss asks for them.
    """

    name = "tokenizer"

    def __init__(
        self,
        model: VQGANConfig,
        loss: TokenizerLossConfig,
        train: TrainConfig,
        image_size: int,
        freeze: Sequence[str] = (),
        fresh: bool = True,
        perceptual: Any = None,
    ):
        self.model_config, self.config, self.train, self.image_size = model, loss, train, image_size
        self.freeze, self.fresh = tuple(freeze), fresh
        self.model, self.discriminator = VQGAN(model), Discriminator(loss.discriminator)
        self.optimizer = optim.make_optimizer(train)
        self.perceptual = perceptual
        if loss.perceptual and perceptual is None:
            raise UserError("config.tokenizer.loss.perceptual needs .perceptual_weights: LPIPS' weights, safetensors")
        unknown = [name for name in self.freeze if name not in PARTS]
        if unknown or set(PARTS) <= set(self.freeze):
            raise UserError(f"config.tokenizer.freeze={list(self.freeze)}: give some of {', '.join(PARTS)}, not all")

    def init(self, key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 2)
        return self.from_variables(vqgan.init_variables(self.model_config, keys[0]), keys[1])

    def from_variables(self, variables: Any, key: jax.Array) -> dict[str, Any]:
        """The state that starts from given variables; key: of the discriminator's parameters."""
        params = variables["params"]
        embedding = params["quantize"]["embedding"]
        frozen = {name: part for name, part in params.items() if name in self.freeze}
        state = {
            **optim.start(self.optimizer, self.train, {n: p for n, p in params.items() if n not in frozen}),
            "batch_stats": variables.get("batch_stats", {}),
            "step": jnp.zeros((), jnp.int32),
        }
        if frozen:
            state["frozen"] = frozen
        if "quantize" not in frozen:
            # Codes that come trained have been used evenly before, as far as one knows.
            even = 1.0 if self.fresh else self._latents() / embedding.shape[0]
            counts = jnp.full(embedding.shape[0], even, jnp.float32)
            state["codes"] = {"counts": counts, "sums": counts[:, None] * embedding.astype(jnp.float32)}
        if self.config.gan:
            params = discriminator.init_params(self.config.discriminator, key, self.model_config.out_channels)
            state["disc"] = {"params": params, "opt_state": self.optimizer.init(params)}
        return state

    def _latents(self) -> int:
        return self.train.batch_size * (self.image_size // self.model_config.factor) ** 2

    def inference_variables(self, state: dict[str, Any]) -> dict[str, Any]:
        """What `inference.image_tokenizer.Tokenizer` needs: {"params"} and, with the temporal path, {"batch_stats"}."""
        params = {**state.get("frozen", {}), **optim.averaged(state)}
        if "quantize" not in self.freeze:  # the codes are a moving average already
            params["quantize"] = state["params"]["quantize"]
        return {"params": params, **({"batch_stats": state["batch_stats"]} if state["batch_stats"] else {})}

    def _normalize(self, images: jax.Array) -> jax.Array:
        return pixels.normalize(images, self.model_config.in_channels)

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
        if self.perceptual is not None:
            terms["perceptual"] = lpips.distance(self.perceptual, x, y).mean()
        loss = sum(getattr(c, name) * value for name, value in terms.items())
        mse = jnp.square((x - y) / 2).mean((1, 2, 3))
        metrics = {**terms, "psnr": (-10 * jnp.log10(mse + 1e-10)).mean(), "perplexity": aux["perplexity"]}
        return loss, metrics

    def train_step(self, state: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array) -> tuple[dict, dict]:
        c, x, frozen = self.config, self._normalize(batch["image"]), state.get("frozen", {})

        def loss(params: Any) -> tuple:
            y, _, aux, stats = self._forward({**frozen, **params}, state["batch_stats"], x, True)
            value, metrics = self._terms(x, y, aux)
            return value, (y, aux, stats, metrics)

        (value, (y, aux, stats, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
        if c.gan:
            grads, disc, more = self._adversarial(state, x, y, grads)
            state = {**state, "disc": disc}
            metrics |= more
        new = optim.advance(self.optimizer, self.train, state, grads)
        if "codes" in state:
            embedding, new["codes"], metrics["revived"] = self._upkeep(state, aux, key)
            new["params"] = {**new["params"], "quantize": {"embedding": embedding}}
        new |= {"batch_stats": stats, "step": state["step"] + 1}
        return new, {"loss": value, **metrics}

    def _upkeep(self, state: dict[str, Any], aux: dict[str, jax.Array], key: jax.Array) -> tuple:
        """Moving averages of the codes; the unused ones go to latents of the batch."""
        c, old = self.config, state["params"]["quantize"]["embedding"]
        embedding, counts, sums = vqgan.ema_update(old, state["codes"]["counts"], state["codes"]["sums"], aux, c.decay)
        latents = aux["latents"]
        even = latents.shape[0] / embedding.shape[0]
        # All codes start on latents: a random start leaves most of them where no latent ever is.
        first = (state["step"] == 0) & self.fresh
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
            out, _, _, _ = self._forward({**state.get("frozen", {}), **params}, state["batch_stats"], x, True)
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
        """Means over the batch, and "codes", float32 [Q]: how often each code was used (summed over batches)."""
        x, variables = self._normalize(batch["image"]), self.inference_variables(state)
        y, _, aux, _ = self._forward(variables["params"], variables.get("batch_stats"), x, False)
        loss, metrics = self._terms(x, y, aux)
        return {"loss": loss, **metrics, "codes": aux["counts"], "weight": jnp.asarray(x.shape[0], jnp.float32)}

    @staticmethod
    def summarize(sums: dict[str, np.ndarray]) -> dict[str, float]:
        """Of the whole split: share of the codes that are used at all, and the perplexity of their frequencies."""
        counts = np.asarray(sums["codes"], np.float64)
        share = counts[counts > 0] / max(counts.sum(), 1.0)
        entropy = -(share * np.log(share)).sum()
        return {"codes_used": float((counts > 0).mean()), "perplexity_all": float(np.exp(entropy))}

    def pictures(self, state: dict[str, Any], batch: dict[str, np.ndarray]) -> np.ndarray:
        """uint8 [N, S, 2 S]: up to eight images of a batch beside their reconstructions."""
        images = np.asarray(batch["image"][:8])
        x, variables = self._normalize(jnp.asarray(images)), self.inference_variables(state)
        y = self._forward(variables["params"], variables.get("batch_stats"), x, False)[0]
        return np.concatenate([images, pixels.to_uint8(np.asarray(y.mean(-1)))], axis=2)
