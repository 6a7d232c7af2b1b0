"""python -m progemu_jax.main --config=configs/instructpix2pix.py --workdir=runs/instructpix2pix

InstructPix2Pix: the description as the prompt, pairs only, no stage of single images. On the built-in phantom at 64 x
64, on registered pairs. 2,000 steps; no run of that length is recorded. `make tables` has it unregistered, with 1,200
(13 min on 2 cores with AVX2): direction 0.70, AUROC on findings that changed 0.46, group kept 0.39; on registered
pairs, as here, 0.68, 0.37, 0.78 (its row "one stage").
"""

from progemu_jax.configs.diffusion import phantom


def get_config():
    """See the module."""
    return phantom("instructpix2pix")
