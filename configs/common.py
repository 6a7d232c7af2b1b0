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
    batch_size: int = 32,
    weight_text: float = 1.0,
) -> ConfigDict:
    """The phantom run at a given budget; everything else follows.

    weight_text: a text has a quarter of an image's tokens, and the distances of codes weigh those up; a short run
    learns the text only when it counts more.
    """
    return ConfigDict(
        {
            "name": name,
            "data": {
                "source": "phantom",
                "phantom": {"patients": patients, "studies_per_patient": 4, "size": 128},
                "tree_size": 128,
                "image_size": 64,
                "journeys": {"pairs": "all"},
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
            "progemu": {
                "model": TRANSFORMER,
                "task": {
                    "length": 224,
                    "prompt_budget": 24,
                    "null_prompt": 0.02,
                    "empty_prompt": 0.1,
                    "weight_prior": 0.1,
                    "weight_prompt": 0.1,
                    "weight_structure": 0.1,
                    "weight_text": weight_text,
                    "changed_weight": 4.0,
                    "soften": 0.5,
                    "init_from_codebook": True,
                },
                "stage1": {
                    "steps": stage1_steps,
                    "batch_size": batch_size,
                    "learning_rate": 2e-3,
                    "final_learning_rate": 5e-4,
                    "weight_decay": 0.05,
                    "eval_every": stage1_steps or 1,
                    "save_every": 200,
                },
                "stage2": {
                    "steps": stage2_steps,
                    "batch_size": batch_size,
                    "learning_rate": 2e-3,
                    "final_learning_rate": 5e-5,
                    "weight_decay": 0.05,
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
                "systems": ("progemu", "shuffled-prompts", "text-only", "contradicting-prompts", "null-prompt"),
                "policy": {
                    "temperature": 0.5,
                    "top_k": 64,
                    "guidance": 3.0,
                    "keep_prior": True,
                    "text_temperature": 0.0,
                    "max_text": 60,
                },
            },
        }
    )
