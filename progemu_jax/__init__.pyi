from progemu_jax.inference.load import load as load

__version__: str
