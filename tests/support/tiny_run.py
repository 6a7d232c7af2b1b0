"""A run directory with random weights: loads and samples in seconds, knows nothing."""

import types
from pathlib import Path

import jax
import numpy as np

from progemu_jax.models import transformer, vqgan
from progemu_jax.text import vocabulary
from support.emu3_reference import write_run

CODES, SIZE, GRID = 64, 32, (4, 4)
SIDE = SIZE // GRID[0]  # of a code, in pixels
PROMPT = "New small left pleural effusion."
POLICY = {"temperature": 1.0, "top_k": 0, "guidance": 2.0, "keep_prior": True, "max_text": 6}


def write(folder: Path) -> Path:
    """32 x 32 images, 4 x 4 codes of 64, one layer, prompts of up to 24 tokens."""
    words = vocabulary.load(None, CODES)
    model = transformer.TransformerConfig(
        vocab_size=words.size, hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=8,
        intermediate_size=48, prior_alignment=True, initializer_range=0.5, max_length=112,
    )  # fmt: skip
    vq = vqgan.VQGANConfig(ch=16, patch=4, ch_mult=(1, 2), attn_levels=(), codebook_size=CODES)
    tokenizer = types.SimpleNamespace(config=vq, variables=_random(lambda key: vqgan.init_variables(vq, key)))
    params = _random(lambda key: transformer.init_params(model, key))
    whole = types.SimpleNamespace(config=model, params=params, tokenizer=tokenizer)
    layout = {"height": GRID[0], "width": GRID[1], "length": 112, "prompt_budget": 24}
    write_run(folder, whole, words, layout, POLICY)
    return folder


def _random(init):
    """Parameters of the shapes that `init` gives, drawn by NumPy: compiling an initialiser takes longer than a test."""
    rng = np.random.default_rng(0)

    def draw(x):
        fan_in = max(int(np.prod(x.shape[:-1])), 1) if len(x.shape) > 1 else 1
        return (rng.standard_normal(x.shape) / np.sqrt(fan_in) + (len(x.shape) == 1)).astype(x.dtype)

    return jax.tree.map(draw, jax.eval_shape(init, jax.random.key(0)))
