"""A language model in the smallest size, one batch for it, and its logits."""

import functools

import jax
import numpy as np

from progemu_jax.checkpoints.arrays import flatten
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.text.sequence import Kind
from progemu_jax.training.loop import TrainConfig

MODEL = TransformerConfig(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48,
)  # fmt: skip
OF_IMAGES = TransformerConfig(  # sees the prior at each place; give it a vocab_size
    hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48,
    prior_alignment=True, prior_beside=True,
)  # fmt: skip
TRAIN = TrainConfig(steps=10, batch_size=2, learning_rate=1e-2, warmup_steps=0)


def batch(length=12):
    tokens = np.random.default_rng(0).integers(1, 64, (2, length)).astype(np.int32)
    kinds = np.full(tokens.shape, Kind.VISUAL, np.int8)
    kinds[:, -3:], kinds[:, 0], kinds[1, -1] = Kind.TEXT, Kind.BOS, Kind.PAD
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    aligned = np.full(tokens.shape, -1, np.int32)
    return {"tokens": tokens, "kinds": kinds, "positions": positions, "aligned": aligned,
            "weights": np.ones(tokens.shape, np.float32)}  # fmt: skip


@functools.partial(jax.jit, static_argnums=1)
def logits(params, model, aligned=None):
    hidden, _ = Transformer(model).apply({"params": params}, batch()["tokens"], aligned=aligned)
    return transformer.logits(params, hidden)


def changed(first, last):
    """Names of the arrays that differ between two trees."""
    one, two = (flatten(x) for x in (first, last))
    return {name for name in one if np.any(np.asarray(one[name]) != np.asarray(two[name]))}
