"""Evaluation of counterfactual chest X-rays. NumPy only, never jax.

`evaluate` scores any system's predictions folder against `references.jsonl`; see `evaluate.py` for what
is measured, `metrics/` for each formula with its source, and `python -m progemu_jax.eval --help`.
"""

from progemu_jax.eval.evaluate import System, evaluate

__all__ = ["System", "evaluate"]
