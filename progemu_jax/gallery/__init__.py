"""Pictures of held-out phantom patients, edited by any model: `python -m progemu_jax.gallery`."""
