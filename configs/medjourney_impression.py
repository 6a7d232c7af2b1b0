"""python -m progemu_jax.main --config=configs/medjourney_impression.py --workdir=runs/medjourney-impression

MedJourney with the follow-up's impression as the prompt, in place of the progression description. On the built-in
phantom at 64 x 64. 2,000 steps; no run of that length is recorded. To expect, by `make tables` with 1,200: direction
0.69, AUROC on findings that changed 0.39, group kept 0.89.
"""

from progemu_jax.configs.diffusion import phantom


def get_config():
    """See the module."""
    return phantom("medjourney-impression")
