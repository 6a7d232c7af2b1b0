"""Where a prompt would change an image, read off the model itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.text import sequence
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.text.vocabulary import Vocabulary

CHANGE_THRESHOLD = 0.08
"""Total variation from which a place belongs to the automatic mask: where changed and unchanged codes of the phantom's
validation pairs are told apart best (Youden's J)."""


@functools.cache
def _distributions(config: TransformerConfig, rows: tuple[int, int]) -> Callable[..., jax.Array]:
    @jax.jit
    def run(params: Any, tokens: jax.Array, positions: jax.Array, aligned: jax.Array, at: jax.Array) -> jax.Array:
        hidden, _ = Transformer(config).apply({"params": params}, tokens, positions, aligned=aligned)
        hidden = jnp.take_along_axis(hidden, at[..., None], axis=1)
        return jax.nn.softmax(transformer.logits(params, hidden, rows), axis=-1)

    return run


def change_maps(
    params: Any,
    config: TransformerConfig,
    layout: Layout,
    vocabulary: Vocabulary,
    cases: Sequence[tuple[np.ndarray, str]],
    reference: str,
) -> np.ndarray:
    """How much a prompt moves the model at each place of an image that has not changed so far.

    The prior's own codes are fed as the target, once under the prompt and once under `reference`; the map is the total
    variation of the two distributions of the next code. As DiffEdit (Couairon et al. 2022, section 3.2) contrasts two
    prompts to find where an image must change, but exact and in one pass: no noise, nothing drawn.

    Args:
      cases: (prior codes int [h, w], prompt) each.
      reference: a prompt of no change.

    Returns:
      f32 [B, h, w] in [0, 1].
    """
    rows = [
        sequence.pack(vocabulary, layout, prior, prompt, prior, "")
        for prior, text in cases
        for prompt in (text, reference)
    ]
    batch = {k: np.stack([row[k] for row in rows]) for k in ("tokens", "positions", "aligned", "kinds")}
    at = np.stack([np.flatnonzero(kinds == Kind.VISUAL) - 1 for kinds in batch["kinds"]])
    # Padding is on the right, where a causal model does not look; it is cut so that no pass is spent on it.
    used = int((batch["kinds"] != Kind.PAD).sum(1).max())
    used = min(-(-used // 32) * 32, layout.length)
    tokens, positions, aligned = (batch[k][:, :used] for k in ("tokens", "positions", "aligned"))
    visual = (vocabulary.visual_start, vocabulary.visual_start + vocabulary.codebook_size)
    found = _distributions(config, visual)(params, tokens, positions, aligned, at)
    pairs = np.asarray(found).reshape(len(cases), 2, layout.height, layout.width, -1)
    return 0.5 * np.abs(pairs[:, 0] - pairs[:, 1]).sum(-1)
