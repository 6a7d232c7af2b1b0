"""What the phantom configs share: a 64 x 64 phantom, 8 x 8 codes, a small transformer."""

from ml_collections import ConfigDict

TOKENIZER = {"ch": 48, "patch": 4, "ch_mult": (1, 2), "attn_levels": (), "codebook_size": 512}
TRANSFORMER = {
    "hidden_size": 128,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 32,
    "intermediate_size": 352,
    "rope_theta": 1e4,
    "prior_alignment": True,
    "learned_positions": 256,
}
# Prompts in free language: a training prompt is told anew each time, and names every change of its pair.
TASK = {
    "length": 224,
    "prompt_budget": 48,
    "null_prompt": 0.02,
    "empty_prompt": 0.1,
    "restate": 0.9,
    "complete": 0.9,
    "identity": 0.05,
    "word_dropout": 0.05,
    "dictionary": 0.25,
    "weight_prior": 0.0,
    "weight_prompt": 0.0,
    "weight_structure": 0.0,
    "changed_weight": 4.0,
    "soften": 0.5,
    "init_from_codebook": True,
    "loss_chunk": 64,
}


def phantom(
    *,
    name: str,
    patients: int,
    tokenizer_steps: int,
    crops: int,
    stage1_steps: int,
    stage2_steps: int,
    scorer_images: int,
    scorer_steps: int,
    words_steps: int = 250,
    decoder_steps: int = 300,
    batch_size: int = 16,
    weight_text: float = 2.0,
) -> ConfigDict:
    """The phantom run at a given budget; everything else follows.

    words_steps: on the words of prompts alone. decoder_steps: of what paints with the prior's pixels. weight_text: a
    text has a quarter of an image's tokens, and the distances of codes weigh those up.
    """
    return ConfigDict(
        {
            "name": name,
            "vocabulary": "radiology",
            "data": {
                "source": "phantom",
                "phantom": {"patients": patients, "studies_per_patient": 4, "size": 128},
                "tree_size": 128,
                "image_size": 64,
                "journeys": {"pairs": "both"},
                "no_change_share": 0.5,
            },
            "tokenizer": {
                "model": TOKENIZER,
                "train": {
                    "steps": tokenizer_steps,
                    "batch_size": 32,
                    "learning_rate": 1e-3,
                    "final_learning_rate": 5e-5,
                    "weight_decay": 0.01,
                    "b2": 0.95,
                    "save_every": 200,
                    "eval_every": tokenizer_steps,
                },
            },
            "tokens": {"crops": crops, "slack": 2.0},
            "decoder": {
                "train": {
                    "steps": decoder_steps,
                    "batch_size": 32,
                    "learning_rate": 2e-3,
                    "final_learning_rate": 5e-5,
                    "warmup_steps": 20,
                    "save_every": 200,
                },
            },
            "progemu": {
                "model": TRANSFORMER,
                "task": {**TASK, "weight_text": weight_text},
                "words": {
                    "steps": words_steps,
                    "batch_size": 32,
                    "learning_rate": 2e-3,
                    "final_learning_rate": 5e-4,
                    "weight_decay": 0.05,
                    "optimizer": "muon",
                    "eval_every": words_steps or 1,
                    "save_every": 200,
                },
                "stage1": {
                    "steps": stage1_steps,
                    "batch_size": batch_size,
                    "learning_rate": 2e-3,
                    "final_learning_rate": 5e-4,
                    "weight_decay": 0.05,
                    "optimizer": "muon",
                    "eval_every": stage1_steps or 1,
                    "save_every": 200,
                },
                "stage2": {
                    "steps": stage2_steps,
                    "batch_size": batch_size,
                    "learning_rate": 2e-3,
                    "final_learning_rate": 5e-5,
                    "weight_decay": 0.05,
                    "optimizer": "muon",
                    "eval_every": max(stage2_steps // 4, 1),
                    "save_every": 200,
                },
            },
            "scorer": {
                "images": scorer_images,
                "valid_images": 500,
                "net": {"severity": True},
                "train": {
                    "steps": scorer_steps,
                    "batch_size": 64,
                    "learning_rate": 2e-3,
                    "final_learning_rate": 5e-5,
                    "weight_decay": 0.02,
                    "eval_every": scorer_steps,
                    "save_every": 200,
                },
            },
            "sample": {
                "batch_size": 32,
                "free_prompts": True,
                "systems": ("progemu", "shuffled-prompts", "text-only", "contradicting-prompts", "null-prompt"),
                "policy": {
                    "temperature": 0.5,
                    "top_k": 64,
                    "guidance": 2.0,
                    "keep_prior": True,
                    "text_temperature": 0.0,
                    "max_text": 60,
                },
            },
        }
    )


def reading(steps: int) -> dict:
    """The training that teaches to read the images, after stage 2."""
    return {
        "share": 0.8,
        "changed_weight": 1.0,
        "train": {
            "steps": steps,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "final_learning_rate": 5e-5,
            "weight_decay": 0.05,
            "optimizer": "muon",
            "eval_every": steps,
            "save_every": 200,
        },
    }


def refine() -> dict:
    """Rounds of preference among own futures, ranked by a scorer like the evaluating one, of other patients."""
    return {
        "rounds": 6,
        "requests": 512,
        "others": 0.7,
        "anchor": 0.3,
        "pairs": 3,
        "scorer": {
            "seed": 1,
            "images": 4000,
            "valid_images": 500,
            "net": {"severity": True},
            "train": {
                "steps": 500,
                "batch_size": 64,
                "learning_rate": 2e-3,
                "final_learning_rate": 5e-5,
                "weight_decay": 0.02,
                "eval_every": 500,
                "save_every": 200,
            },
        },
        "train": {
            "steps": 128,
            "batch_size": 4,
            "learning_rate": 3e-4,
            "final_learning_rate": 5e-5,
            "warmup_steps": 10,
            "weight_decay": 0.05,
            "optimizer": "muon",
            "eval_every": 128,
            "save_every": 64,
        },
    }
