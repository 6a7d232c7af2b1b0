"""Reports, prompts and tokens as text: no jax."""
