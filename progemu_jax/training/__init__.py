"""The one training loop, its optimizers and losses."""
