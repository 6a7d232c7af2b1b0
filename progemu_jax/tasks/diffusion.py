"""Training a latent diffusion model of the next radiograph: noise prediction (MedJourney, section 3.3).

Stage 1 sees single images with their reports and a constant-128 prior, stage 2 pairs. Autoencoder and text encoder are
frozen; they travel in the state, so that a checkpoint holds the whole model and a mesh can split them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.data.augment import shifted
from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.models import pixels, unet
from progemu_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from progemu_jax.models.unet import UNet, UNetConfig
from progemu_jax.text.controls import DUMMY_PRIOR
from progemu_jax.text.findings import PHANTOM, Finding
from progemu_jax.text.prompt_changes import restated
from progemu_jax.text.text_tokenizers import TextTokenizer
from progemu_jax.training import optim
from progemu_jax.training.loop import TrainConfig

PROMPTS = ("description", "impression")


@dataclass(frozen=True)
class DiffusionConfig:
    """Conditioning and schedule.

    Attributes:
      prompt: the text: "description" (the progression, as ProgEmu has it) or "impression" (the follow-up's report).
      drop_text, drop_prior, drop_both: probabilities of dropping a condition, which unlock both guidances
        (InstructPix2Pix: 0.05 each). A dropped text is the empty one, a dropped prior's latent is zero.
      crop: reach of the random crop, as a share of the side; a pair moves as one. The paper also flips left and
        right, which makes every side in the text wrong: there is no flip here.
      schedule: of the noise.
      restate: share of the pairs' training prompts that are told in other words (`prompt_changes.restated`); 0: as the
        shards have them. Of "description" alone: an impression is no prompt.
    """

    prompt: str = "description"
    drop_text: float = 0.05
    drop_prior: float = 0.05
    drop_both: float = 0.05
    crop: float = 0.0625
    schedule: Schedule = field(default_factory=Schedule)
    restate: float = 0.0

    def __post_init__(self):
        if self.prompt not in PROMPTS:
            raise ValueError(f"prompt={self.prompt!r}: choose 'description' or 'impression'")
        rates = (self.drop_text, self.drop_prior, self.drop_both)
        if min(rates) < 0 or sum(rates) > 1:
            raise ValueError(f"drop_text, drop_prior, drop_both={rates}: expected shares that sum to at most 1")
        if not 0 <= self.restate <= 1:
            raise ValueError(f"restate={self.restate}: expected a share, 0 to 1")
        if not 0 <= self.crop < 0.5:
            raise ValueError(f"crop={self.crop}: expected 0 up to 0.5")


def packer(
    task: DiffusionConfig,
    tokenizer: TextTokenizer,
    length: int,
    text_of: Callable[[dict], str],
    train: bool,
    findings: tuple[Finding, ...] = PHANTOM,
) -> Callable[[dict[str, Any], np.random.Generator], dict[str, np.ndarray]]:
    """Example of a shard -> {prior, image uint8 [S, S]; tokens int32, mask bool [length]}.

    A single image (no key "followup") gets the constant-128 prior. text_of: the prompt of an example. findings:
    of the cohort.
    """

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = example["followup"] if "followup" in example else example["image"]
        prior = example["prior"] if "followup" in example else np.full_like(image, DUMMY_PRIOR)
        both = np.stack([prior, image])
        if train and task.crop:
            both = shifted(both, rng, max(1, int(image.shape[0] * task.crop)))
        text = text_of(example)
        if train and task.restate and task.prompt == "description" and "followup" in example:
            text = restated(text, rng, task.restate, example.get("interpretation", ""), findings=findings)
        tokens, mask = tokenizer([text], length)
        return {"prior": both[0], "image": both[1], "tokens": tokens[0], "mask": mask[0]}

    return transform


class DiffusionTask:
    """See `progemu_jax.training.loop.fit` for the protocol; batches are as `packer` makes them.

    frozen: {"autoencoder": params, "text_encoder": params}. null_text: ids int32 and mask bool [L] of the empty text.
    """

    name = "diffusion"

    def __init__(
        self,
        model: UNetConfig,
        codec: AutoencoderConfig,
        text: TextEncoderConfig,
        task: DiffusionConfig,
        train: TrainConfig,
        frozen: Any,
        null_text: tuple[np.ndarray, np.ndarray],
    ):
        if model.out_channels != codec.latent_channels:
            raise UserError(f"unet.out_channels={model.out_channels}: latents have {codec.latent_channels} channels")
        if (model.text_dim or model.cross_attention_dim) != text.hidden_size:
            raise UserError(
                f"unet.text_dim={model.text_dim}, cross_attention_dim={model.cross_attention_dim}: the text encoder's "
                f"states have width {text.hidden_size}"
            )
        self.model_config, self.codec_config, self.text_config = model, codec, text
        self.config, self.train, self.frozen, self.null = task, train, frozen, null_text
        self.unet, self.codec, self.text = UNet(model), Autoencoder(codec), TextEncoder(text)
        self.optimizer = optim.make_optimizer(train)

    def init(self, key: jax.Array) -> dict[str, Any]:
        return self.from_params(unet.init_params(self.model_config, key))

    def from_params(self, params: Any) -> dict[str, Any]:
        """The state before the first step, of a UNet's parameters."""
        frozen = jax.tree.map(jnp.asarray, self.frozen)
        return {**optim.start(self.optimizer, self.train, params), "frozen": frozen}

    def inference_params(self, state: dict[str, Any]) -> Any:
        """The UNet's parameters to sample from: their moving average where there is one."""
        return optim.averaged(state)

    def state_shardings(self, mesh: jax.sharding.Mesh, abstract_state: dict[str, Any]) -> Any:
        """Every large array is split over "fsdp" along its last axis that divides; the rest is on every device."""

        def one(leaf: Any) -> jax.sharding.NamedSharding:
            axes: list[str | None] = [None] * len(leaf.shape)
            if leaf.size >= 2**14 and leaf.shape[-1] % mesh.shape["fsdp"] == 0:
                axes[-1] = "embed"
            return sharding.sharding(mesh, axes, leaf.shape)

        return jax.tree.map(one, abstract_state)

    def conditions(self, frozen: Any, batch: dict[str, jax.Array], drop: jax.Array | None) -> tuple:
        """(prior's latent [B, h, w, Z] or None, text states, their mask or None); drop int [B]: 1 text, 2 prior,
        3 both, 0 neither."""
        tokens, mask = batch["tokens"], batch["mask"]
        if drop is not None:
            silent = (drop == 1) | (drop == 3)
            tokens = jnp.where(silent[:, None], jnp.asarray(self.null[0]), tokens)
            mask = jnp.where(silent[:, None], jnp.asarray(self.null[1]), mask)
        text = self.text.apply({"params": frozen["text_encoder"]}, tokens, mask)
        prior = None
        if self.model_config.conditioned:
            prior = self._encode(frozen, batch["prior"], "encode")
            if drop is not None:
                prior = jnp.where((drop >= 2)[:, None, None, None], 0.0, prior)
        return prior, text, mask if self.text_config.masked else None

    def _encode(self, frozen: Any, images: jax.Array, method: str) -> Any:
        x = pixels.normalize(images, self.codec_config.in_channels)
        return self.codec.apply({"params": frozen["autoencoder"]}, x, method=method)

    def _loss(self, params: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array, train: bool) -> tuple:
        c, B = self.config, batch["image"].shape[0]
        keys = jax.random.split(key, 5)
        drop = None
        if train:
            edges = jnp.cumsum(jnp.asarray([c.drop_both, c.drop_prior, c.drop_text]))
            draw = jax.random.uniform(keys[0], (B,))
            drop = 3 - jnp.sum(draw[:, None] >= edges, axis=1)
        mean, logvar = self._encode(frozen, batch["image"], "moments")
        latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(keys[1], mean.shape) if train else mean
        latents = latents * self.codec_config.scale
        prior, text, mask = self.conditions(frozen, batch, drop)
        # Stratified over the batch: every part of the schedule is in every step.
        even = (jnp.arange(B) + jax.random.uniform(keys[2], (B,))) / B
        times = jnp.minimum((even * c.schedule.steps).astype(jnp.int32), c.schedule.steps - 1)
        noise = jax.random.normal(keys[3], latents.shape)
        inputs = c.schedule.add_noise(latents, noise, times)
        if prior is not None:
            inputs = jnp.concatenate([inputs, prior], axis=-1)
        rngs = {"dropout": keys[4]} if train and self.model_config.dropout else None
        found = self.unet.apply({"params": params}, inputs, times, text, mask, train, rngs=rngs)
        loss = jnp.square(found - noise).mean()
        return loss, {"noise_std": found.std()}

    def train_step(self, state: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array) -> tuple[dict, dict]:
        def loss(params: Any, batch: Any, key: jax.Array) -> tuple:
            return self._loss(params, state["frozen"], batch, key, True)

        (value, metrics), grads = optim.value_and_grad_accumulated(
            loss, state["params"], batch, key, self.train.accumulate
        )
        return optim.advance(self.optimizer, self.train, state, grads), {"loss": value, **metrics}

    def eval_step(self, state: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        # The same noise and times at every evaluation: the numbers of one run can be compared.
        loss, metrics = self._loss(optim.averaged(state), state["frozen"], batch, jax.random.key(0), False)
        return {"loss": loss, **metrics, "weight": jnp.asarray(batch["image"].shape[0], jnp.float32)}
