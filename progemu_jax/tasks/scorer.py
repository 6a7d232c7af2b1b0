"""Training of the phantom scorer, on patients that no generator sees and no test uses.

The scorer judges images: it never enters a loss of a generator, a selection, or features for tuning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from progemu_jax import optim, records
from progemu_jax.radtext import PRESENT
from progemu_jax.scorers.network import ScorerNet, ScorerNetConfig
from progemu_jax.train import TrainConfig

AGE_MEAN, AGE_STD = 60.0, 16.0  # years; the head predicts (age - mean) / std


@dataclass(frozen=True)
class ScorerConfig:
    """Scorer's data, network and training.

    Attributes:
      images, valid_images: phantom images rendered for training and validation, patients disjoint.
      seed: of its patients; their seed space is disjoint from every cohort's.
    """

    images: int = 8000
    valid_images: int = 1000
    seed: int = 0
    net: ScorerNetConfig = field(default_factory=ScorerNetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class ScorerTask:
    """Multi-head classification, regression and segmentation; see `progemu_jax.train.fit` for the protocol.

    Batches: image uint8 [B, H, W], findings f32 [B, 8] in {0, 1}, group int [B], age f32 [B] in years, sex int [B]
    (1 is F), masks bool [B, H, W, 6].
    """

    name = "scorer"

    def __init__(self, net: ScorerNetConfig, train: TrainConfig, image_size: int):
        self.net, self.train, self.image_size = ScorerNet(net), train, image_size
        self.optimizer = optim.make_optimizer(train)

    def init(self, key: jax.Array) -> dict[str, Any]:
        params = self.net.init(key, jnp.zeros((1, self.image_size, self.image_size)))["params"]
        return optim.start(self.optimizer, self.train, params)

    def loss(
        self, params: Any, images: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sum of the heads' losses; images f32 [B, H, W] in [0, 1]."""
        out = self.net.apply({"params": params}, images)
        terms = {
            "findings": optax.sigmoid_binary_cross_entropy(out["findings"], batch["findings"]).mean(),
            "group": optax.softmax_cross_entropy_with_integer_labels(out["group"], batch["group"]).mean(),
            "age": optax.huber_loss(out["age"], (batch["age"] - AGE_MEAN) / AGE_STD).mean(),
            "sex": optax.sigmoid_binary_cross_entropy(out["sex"], batch["sex"].astype(jnp.float32)).mean(),
            "organs": optax.sigmoid_binary_cross_entropy(out["organs"], batch["masks"].astype(jnp.float32)).mean(),
        }
        loss = 2 * terms["findings"] + 0.5 * terms["group"] + 0.5 * terms["age"] + 0.25 * terms["sex"] + terms["organs"]
        return loss, {f"loss_{k}": v for k, v in terms.items()}

    def train_step(self, state: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array) -> tuple[dict, dict]:
        images, batch = augment(key, batch)
        (loss, metrics), grads = jax.value_and_grad(self.loss, has_aux=True)(state["params"], images, batch)
        return optim.advance(self.optimizer, self.train, state, grads), {"loss": loss, **metrics}

    def eval_step(self, state: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        loss, metrics = self.loss(optim.averaged(state), batch["image"].astype(jnp.float32) / 255, batch)
        return {"loss": loss, **metrics}


def augment(key: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What a generator's images may look like, so that the judge minds anatomy and not sharpness.

    Exposure and gamma, blur (a tokenizer's), noise, shifts and black borders (registration's).

    Returns:
      images f32 [B, H, W] in [0, 1]; the batch with its masks shifted alike.
    """
    images = batch["image"].astype(jnp.float32) / 255
    b, h, w = images.shape
    keys = jax.random.split(key, 7)

    def uniform(k: jax.Array, low: float, high: float) -> jax.Array:
        return jax.random.uniform(k, (b, 1, 1), minval=low, maxval=high)

    images = jnp.clip(images, 1e-3, 1) ** uniform(keys[0], 0.85, 1.18) * uniform(keys[1], 0.9, 1.1)
    blurred = images
    for axis in (1, 2):
        blurred = (jnp.roll(blurred, 1, axis) + 2 * blurred + jnp.roll(blurred, -1, axis)) / 4
    images += uniform(keys[2], 0.0, 1.0) * (blurred - images)
    images += uniform(keys[3], 0.0, 0.03) * jax.random.normal(keys[4], images.shape)
    reach = h // 32
    shifts = jax.random.randint(keys[5], (b, 2), -reach, reach + 1)
    shift = jax.vmap(lambda x, s: jnp.roll(x, s, (0, 1)))
    images, masks = shift(images, shifts), shift(batch["masks"], shifts)
    rows, columns = jnp.arange(h)[None, :, None], jnp.arange(w)[None, None, :]
    low, high = shifts[:, :1, None], shifts[:, 1:, None]
    outside = (
        (rows < low) | (rows >= h + jnp.minimum(low, 0)) | (columns < high) | (columns >= w + jnp.minimum(high, 0))
    )
    images = jnp.where(outside, 0.0, jnp.clip(images, 0, 1))
    return images, {**batch, "masks": masks}


def labelled_arrays(
    path: str | os.PathLike, seed: int, start: int, n: int, render_size: int, image_size: int, processes: int
) -> dict[str, np.ndarray]:
    """Phantom images `start`..`start + n` of the scorer's own patients, as the cohort's chain would make them.

    Rendered at `render_size`, cropped to the foreground, resized to `image_size`; kept in `path` once made.

    Returns:
      The arrays of a batch (`ScorerTask`), with n rows.
    """
    from tqdm import tqdm

    path = Path(path)
    if path.exists():
        with np.load(path) as file:
            return dict(file)
    step = 64
    jobs = [(seed, start + i, min(step, n - i), render_size, image_size) for i in range(0, n, step)]
    with get_context("spawn").Pool(processes) as pool:
        parts = list(tqdm(pool.imap(_labelled_part, jobs), total=len(jobs), desc=f"render {path.stem}", unit="part"))
    arrays = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    records.write_npz(path, arrays)
    return arrays


def _labelled_part(job: tuple[int, int, int, int, int]) -> dict[str, np.ndarray]:
    from progemu_jax.data import foreground, images, phantom

    seed, start, n, render_size, image_size = job
    drawn = phantom.labelled_set(seed, n, render_size, start=start)
    out = {
        "image": np.empty((n, image_size, image_size), np.uint8),
        "masks": np.empty((n, image_size, image_size, drawn["masks"].shape[1]), bool),
        "findings": (drawn["findings"] >= PRESENT).astype(np.float32),
        **{k: drawn[k] for k in ("group", "age", "sex")},
    }
    for i, image in enumerate(drawn["image"]):
        corners = foreground.rectangle(image)

        def place(x: np.ndarray, corners: np.ndarray | None = corners) -> np.ndarray:
            return images.resize(x if corners is None else foreground.warp(x, corners), image_size)

        out["image"][i] = place(image)
        for organ, mask in enumerate(drawn["masks"][i]):
            out["masks"][i, :, :, organ] = place(mask.astype(np.uint8) * 255) >= 128
    return out


class ArrayBatches:
    """Endless shuffled batches of in-memory arrays; its state is the step, so a resumed run sees the same ones."""

    def __init__(self, arrays: dict[str, np.ndarray], batch_size: int, seed: int):
        self.arrays, self.batch_size, self.seed, self.step = arrays, batch_size, seed, 0
        self.size = len(next(iter(arrays.values())))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        per_epoch = max(1, self.size // self.batch_size)
        epoch, index = divmod(self.step, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.size)
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        self.step += 1
        return {k: v[rows] for k, v in self.arrays.items()}

    def get_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_state(self, state: dict[str, int]) -> None:
        self.step = int(state["step"])
