"""python -m progemu_jax.main --config=configs/medjourney.py --workdir=runs/medjourney

MedJourney on the built-in phantom at 64 x 64: two stages, the progression description as the prompt.
"""

from progemu_jax.configs.diffusion import phantom


def get_config():
    """See the module."""
    return phantom("medjourney")
