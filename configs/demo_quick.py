"""python -m progemu_jax.main --config=configs/demo_quick.py --workdir=runs/demo-quick

Every stage at a size that says nothing about quality: the end-to-end check of the tests and of CI, `make demo-quick`.
No score is to be expected; its time was not recorded.
"""

from progemu_jax.configs.common import phantom


def get_config():
    """See the module."""
    return phantom(
        name="ProgEmu on the phantom: quick check",
        patients=100,
        tokenizer_steps=20,
        crops=2,
        stage1_steps=5,
        stage2_steps=10,
        scorer_images=256,
        scorer_steps=10,
        words_steps=5,
        decoder_steps=5,
    )
