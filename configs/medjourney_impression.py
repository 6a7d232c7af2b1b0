"""python -m progemu_jax.main --config=configs/medjourney_impression.py --workdir=runs/medjourney-impression

MedJourney with the follow-up's impression as the prompt, in place of the progression description.
On the built-in phantom at 64 x 64.
"""

from progemu_jax.configs.diffusion import phantom


def get_config():
    """See the module."""
    return phantom("medjourney-impression")
