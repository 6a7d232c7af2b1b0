"""python -m progemu_jax.main --config=configs/nih_cxr14_256.py --config.data.root=DIR --workdir=runs/nih-256

The whole of NIH ChestX-ray14 (112,120 films of 30,805 patients, no agreement to sign) at 256 x 256 on one GPU of 80 GB:
32 x 32 codes, 330 million weights. By `--stages=plan --config.plan.devices=1 --config.plan.rows=32` a training step
takes 0.17 s on an H100 at best (165 TFLOP, 12 GB): stage 1, stage 2 and reading, 80,000 steps, 3.8 hours at best. Count
on three times that, and on some hours for tokenizer and scorers, which are not planned. Not run: no accelerator was
lent; no score is known.
"""

from ml_collections import ConfigDict

from progemu_jax.configs.common import TASK

LENGTH = 2304  # two images of 32 x 32 codes, a prompt, a text


def get_config():
    """See the module."""
    train = {
        "warmup_steps": 500, "final_learning_rate": 1e-5, "weight_decay": 0.05, "dtype": "bfloat16", "save_every": 1000,
        "eval_every": 5000,
    }  # fmt: skip
    return ConfigDict(
        {
            "name": "NIH ChestX-ray14 at 256 x 256",
            "vocabulary": "radiology",
            "data": {
                "source": "nih_cxr14",
                "root": "",
                "journeys": {"pairs": "both", "views": ("PA", "AP"), "finding": False, "split": "csv"},
                "no_change_share": 0.3,
                "tree_size": 512,
                "image_size": 256,
            },
            "tokenizer": {
                "model": {"ch": 96, "patch": 4, "ch_mult": (1, 2), "attn_levels": (), "codebook_size": 4096},
                "train": {**train, "steps": 40_000, "batch_size": 32, "learning_rate": 3e-4},
            },
            "decoder": {"train": {**train, "steps": 10_000, "batch_size": 32, "learning_rate": 3e-4}},
            "progemu": {
                "model": {
                    "hidden_size": 1024, "num_layers": 24, "num_heads": 16, "num_kv_heads": 16, "head_dim": 64,
                    "intermediate_size": 2816, "rope_theta": 1e4, "prior_alignment": True, "prior_beside": True,
                    "learned_positions": LENGTH,
                },
                "task": {**TASK, "length": LENGTH, "prompt_budget": 64},
                "words": {**train, "steps": 2000, "batch_size": 64, "learning_rate": 5e-4},
                "stage1": {**train, "steps": 10_000, "batch_size": 32, "learning_rate": 5e-4},
                "stage2": {**train, "steps": 60_000, "batch_size": 32, "learning_rate": 5e-4},
                "reading": {"train": {**train, "steps": 10_000, "batch_size": 32, "learning_rate": 2e-4}},
            },
            "scorer": {
                "net": {"widths": (32, 64, 128, 256)},
                "train": {**train, "steps": 10_000, "batch_size": 64, "learning_rate": 5e-4},
            },
            "identity": {"train": {**train, "steps": 10_000, "batch_size": 64, "learning_rate": 5e-4}},
            "sample": {
                "batch_size": 64,
                "policy": {
                    "temperature": 0.7, "top_k": 256, "guidance": 2.0, "keep_prior": True, "text_temperature": 0.0,
                    "max_text": 96,
                },
            },
        }
    )  # fmt: skip
