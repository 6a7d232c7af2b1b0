"""ProgEmu in JAX: counterfactual chest X-rays and the text that explains them. For research only.

import progemu_jax
model = progemu_jax.load("phantom")
out = model.counterfactual(prior, "New small left pleural effusion.", num_samples=4, seed=0)
"""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("progemu-jax")
__all__ = ["load"]


def load(path, tokenizer=None, quantize=None):
    """The model "phantom", or of a run, an export or a Hugging Face folder; see `progemu_jax.inference.load.load`."""
    from progemu_jax.inference.load import load as load_model

    return load_model(path, tokenizer, quantize)
