"""python -m progemu_jax.main --config=configs/text_only.py --workdir=runs/text-only

Text-only diffusion (Stable Diffusion, RoentGen): the impression as the prompt, no prior, single images only. On the
built-in phantom at 64 x 64. 2,000 steps; no run of that length is recorded. To expect, by `make tables` with 1,200
(12 min on 2 cores with AVX2): direction 0.70, AUROC on findings that changed 0.52, group kept 0.06: the patient is
lost.
"""

from progemu_jax.configs.diffusion import phantom


def get_config():
    """See the module."""
    return phantom("text-only")
