"""Longitudinal chest X-ray cohorts: sources -> ICG-CXR tree -> TFDS shards -> batches. NumPy only, never jax."""
