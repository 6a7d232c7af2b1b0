"""python -m progemu_jax.main --config=configs/progemu_8b_nf4.py --workdir=runs/8b-nf4 --stages=plan

ProgEmu at its own size, fine-tuned on one card of 24 GB: LoRA on Emu3-8B in 4 bits (docs/finetuning.md), one row of
9,216 tokens at a time, 16 an update; the layers are computed again in the backward pass, nothing is offloaded. Training
needs `--config.progemu.init=DIR` and `--config.tokenizer.init=DIR` (Emu3's weights) and a cohort. Not trained: no GPU
and no weights were reachable, so no score is known.
"""

from progemu_jax.configs import progemu_8b


def get_config():
    """See the module."""
    config = progemu_8b.get_config()
    config.name = "ProgEmu 8B, LoRA on 4 bits"
    config.progemu.model.update(lora_rank=16, lora_alpha=32.0, lora_base="nf4", padded_vocab_size=None)
    # Rates and rows an update as in QLoRA (Dettmers et al. 2023, appendix B).
    once = {"learning_rate": 2e-4, "final_learning_rate": 2e-5, "moment_dtype": "float32", "batch_size": 16}
    config.progemu.stage2.update(once, accumulate=16, clip=0.3, weight_decay=0.0)
    config.mesh.fsdp = 1
    config.sample = {"batch_size": 1}
    config.plan = {"devices": (1,), "accelerators": ("RTX 4090", "L40S", "v6e"), "cases": 1}
    return config
