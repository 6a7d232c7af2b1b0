"""python -m progemu_jax.main --config=configs/phantom_course.py --workdir=runs/phantom_course

Intervals and history: a phantom whose findings run a course, films before the prior kept beside each pair, and a model
that is told the days and up to two earlier films. `make course`. No whole run has been made yet: minutes and scores are
not known.
"""

from progemu_jax.configs.common import phantom


def get_config():
    """See the module."""
    config = phantom(
        name="ProgEmu on a phantom with a course",
        patients=2400,
        tokenizer_steps=600,
        crops=2,
        stage1_steps=100,
        stage2_steps=6000,
        scorer_images=4000,
        scorer_steps=500,
        words_steps=400,
        decoder_steps=600,
    )
    config.data.phantom.dynamics = "course"
    config.data.journeys.history = 2
    config.data.no_change_share = 1.0  # a course says how often nothing changes
    config.tokens.update(time=True, slack=1.5)
    config.progemu.model.update(num_layers=6, prior_beside=True, learned_positions=640)
    config.progemu.task.update(length=384, interval=0.8, older=2, empty_prompt=0.4, complete=0.5)
    config.sample.policy.update(guidance=3.0, temperature=0.3)
    return config
