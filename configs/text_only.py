"""python -m progemu_jax.main --config=configs/text_only.py --workdir=runs/text-only

Text-only diffusion (Stable Diffusion, RoentGen): the impression as the prompt, no prior, single images only.
On the built-in phantom at 64 x 64.
"""

from progemu_jax.configs.diffusion import phantom


def get_config():
    """See the module."""
    return phantom("text-only")
