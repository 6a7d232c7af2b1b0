"""ProgEmu in JAX: counterfactual chest X-rays and the text that explains them. For research only.

import progemu_jax
model = progemu_jax.load("phantom")
out = model.counterfactual(prior, "New small left pleural effusion.", num_samples=4, seed=0)
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from types import TracebackType
from typing import Any

__version__ = version("progemu-jax")
__all__ = ["load"]


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What is printed of an error that ends the process: of ctrl-C one line."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# `python -m progemu_jax...` begins: before its main can catch ctrl-C, jax is imported for seconds.
if sys.argv[:1] == ["-m"] and any(word.startswith("progemu_jax") for word in sys.orig_argv):
    sys.excepthook = _one_line


def load(path: str | os.PathLike, tokenizer: str | os.PathLike | None = None, quantize: str | None = None) -> Any:
    """The model "phantom", or of a run, an export or a Hugging Face folder; see `progemu_jax.inference.load.load`."""
    from progemu_jax.inference.load import load as load_model

    return load_model(path, tokenizer, quantize)
