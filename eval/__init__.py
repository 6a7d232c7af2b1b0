"""Evaluation of counterfactual chest X-rays. NumPy only, never jax."""
