"""A page in the browser that edits films with any model: `python -m progemu_jax.app`. For research only."""
