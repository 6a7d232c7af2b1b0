"""python -m progemu_jax.main --config=configs/progemu_8b.py --workdir=runs/8b --stages=plan

ProgEmu at its own size: Emu3-8B on two 64 x 64 images, 9,216 tokens. `--stages=plan` says what fits where. Training
needs `--config.vocabulary=DIR` (Emu3's vocabulary files), a cohort, and on several hosts `--multihost`. Planning for 64
TPU v5p took 103 s (training) and 172 s (sampling) on 2 cores, each with all 32 layers; for 64 v6e 212 s (training). Not
trained: no accelerator and no weights were reachable, so no score is known.
"""

import dataclasses

from ml_collections import ConfigDict

from progemu_jax.models.transformer import emu3_8b
from progemu_jax.models.vqgan import emu3_vq


def get_config():
    """See the module."""
    train = {
        "batch_size": 64,
        "learning_rate": 1e-5,
        "final_learning_rate": 1e-6,
        "warmup_steps": 30,
        "clip": 5.0,
        "dtype": "bfloat16",
        "moment_dtype": "bfloat16",
        "save_every": 200,
    }
    return ConfigDict(
        {
            "name": "ProgEmu 8B",
            "data": {"source": "mimic_cxr", "image_size": 512},
            "tokenizer": {"model": dataclasses.asdict(emu3_vq())},
            "progemu": {
                # 184,622 rows, padded so that they divide by any tensor axis up to 64.
                "model": dataclasses.asdict(emu3_8b(dropout=0.0, padded_vocab_size=184_640)),
                "task": {"length": 9216},
                "stage1": {**train, "steps": 0},
                "stage2": {**train, "steps": 4500},
            },
            "mesh": {"data": -1, "fsdp": 8, "tensor": 1},
        }
    )
