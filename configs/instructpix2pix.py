"""python -m progemu_jax.main --config=configs/instructpix2pix.py --workdir=runs/instructpix2pix

InstructPix2Pix: the description as the prompt, pairs only, no stage of single images.
On the built-in phantom at 64 x 64.
"""

from progemu_jax.configs.diffusion import phantom


def get_config():
    """See the module."""
    return phantom("instructpix2pix")
