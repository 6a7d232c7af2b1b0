"""What the configs of diffusion models share: the compared systems, at phantom size and at full size.

A system is what is trained on what with which prompt; `SYSTEMS` names those of MedJourney's tables 1 and 2.
"""

from ml_collections import ConfigDict

from progemu_jax.configs.common import phantom as progemu_phantom

# name -> prompt, whether the prior is an input, whether stage 1 (single images) and stage 2 (pairs) are trained
SYSTEMS = {
    "medjourney": ("description", True, True, True),
    "medjourney-impression": ("impression", True, True, True),
    "medjourney-one-stage": ("description", True, False, True),
    "medjourney-impression-one-stage": ("impression", True, False, True),
    "instructpix2pix": ("description", True, False, True),
    "text-only": ("impression", False, True, False),
}
GUIDANCE = {"guidance": 5.0, "image_guidance": 1.5}


def _system(config: ConfigDict, name: str) -> ConfigDict:
    """`config` as the system of that name."""
    prompt, conditioned, single, pairs = SYSTEMS[name]
    config.name = f"{config.name}: {name}"
    diffusion = config.diffusion
    diffusion.name, diffusion.task.prompt = name, prompt
    diffusion.model.in_channels = 8 if conditioned else 4
    # One budget for every system: what is not spent on one stage goes to the other.
    total = diffusion.stage1.steps + diffusion.stage2.steps
    if not (single and pairs):
        diffusion.stage1.steps, diffusion.stage2.steps = (total, 0) if single else (0, total)
    config.sample.systems = (name, "shuffled-prompts", "null-prompt") if conditioned else (name, "shuffled-prompts")
    return config


def phantom(
    name: str, *, patients: int = 500, steps: int = 2000, codec_steps: int = 600, size: int = 64, small: bool = False
):
    """A system on the phantom at 64 x 64, for a CPU, or at 256 x 256, for a GPU.

    small: every stage, at a size that says nothing about quality.
    """
    base = progemu_phantom(
        name="Diffusion on the phantom",
        patients=100 if small else patients,
        tokenizer_steps=1,
        crops=1,
        stage1_steps=1,
        stage2_steps=1,
        scorer_images=256 if small else 3000,
        scorer_steps=10 if small else 250,
    )
    steps, codec_steps = (8, 8) if small else (steps, codec_steps)
    train = {"batch_size": 16, "final_learning_rate": 5e-5, "save_every": 200, "b2": 0.99, "ema": 0.999}
    single = steps // 4
    config = ConfigDict({key: base[key] for key in ("name", "data", "scorer", "sample")})
    config.sample.policy = {}
    config.update(
        {
            "system": "diffusion",
            "autoencoder": {
                # 16 x 16 latents of 4 channels; no convolution at the full size, which would cost most on a CPU.
                "model": {"channels": (64,), "layers": 2, "patch": 4},
                "train": {"steps": codec_steps, "learning_rate": 2e-3, "eval_every": codec_steps, **train},
            },
            # Random and frozen: distinct vectors for distinct words, which the cross-attention learns to read.
            "text_encoder": {"model": {"hidden_size": 128, "num_layers": 1, "text_length": 48}},
            "diffusion": {
                "model": {
                    "in_channels": 8, "channels": (48, 96), "layers": 1, "attention": (False, True), "heads": 4,
                    "cross_attention_dim": 96, "text_dim": 128,
                },
                "task": {"restate": 0.9},
                "stage1": {"steps": single, "learning_rate": 1e-3, "eval_every": max(single, 1), **train},
                "stage2": {"steps": steps - single, "learning_rate": 1e-3, "eval_every": max(steps // 4, 1), **train},
                "policy": {"solver": "dpm++", "steps": 4 if small else 20, **GUIDANCE},
            },
        }
    )  # fmt: skip
    if size != 64:
        _enlarge(config, size)
        # Factor 8, as Stable Diffusion's.
        config.autoencoder.model = {"channels": (64, 128, 256), "layers": 2, "patch": 2}
        config.diffusion.model.update(
            channels=(128, 256, 512), layers=2, attention=(True, True, True), heads=8, cross_attention_dim=512,
            dtype="bfloat16",
        )  # fmt: skip
        for part in (config.autoencoder.train, config.diffusion.stage1, config.diffusion.stage2):
            part.batch_size, part.learning_rate, part.warmup_steps, part.ema = 32, 2e-4, 500, 0.9995
    return _system(config, name)


def _enlarge(config: ConfigDict, size: int) -> None:
    """Images of `size`, drawn and registered at twice that."""
    config.data.image_size = size
    config.data.phantom.size = config.data.tree_size = 2 * size


# size -> steps of each diffusion model, over both stages
STEPS = {64: 1200, 256: 20_000}


def for_tables(system: str, *, registered: bool, steps: int, small: bool, size: int = 64) -> ConfigDict:
    """A run of `progemu_jax.tables`: a system of `SYSTEMS`, or "progemu" (`make demo`'s), and nothing but its row."""
    large = size != 64
    if system == "progemu":
        config = progemu_phantom(
            name="ProgEmu on the phantom",
            patients=100 if small else 2400 if large else 500,
            tokenizer_steps=20 if small else steps // 3,
            crops=2 if small else 3,
            stage1_steps=5 if small else steps // 24,
            stage2_steps=10 if small else steps * 5 // 6,
            scorer_images=256 if small else 3000,
            scorer_steps=10 if small else 250,
            **({"words_steps": 5, "decoder_steps": 5} if small else {}),
        )
        if large:
            _enlarge(config, size)
            config.tokenizer.model.update(ch=64, codebook_size=1024)
            config.progemu.model.update(
                hidden_size=512, num_layers=8, num_heads=8, num_kv_heads=8, head_dim=64, intermediate_size=1408,
                dtype="bfloat16", remat=True,
            )  # fmt: skip
            side = size // 8
            config.progemu.task.length = -(-(2 * side * (side + 1) + 112) // 32) * 32  # two images of codes, and texts
            config.progemu.model.learned_positions = config.progemu.task.length + 64
            for part in (config.progemu.stage1, config.progemu.stage2):
                part.learning_rate, part.final_learning_rate, part.warmup_steps = 5e-4, 5e-5, 500
        config.sample.systems = ("progemu",)
    else:
        more = {"patients": 2400, "codec_steps": steps // 2, "size": size} if large else {}
        config = phantom(system, steps=steps, small=small, **more)
        config.sample.systems = (system,)
    config.data.journeys.register = registered
    return config


def full(name: str) -> ConfigDict:
    """A system at the paper's size, 256 x 256, for one GPU or more; the cohort and the weights are named by flags:

    --config.data.source, --config.data.root: see docs/cohorts.md. --config.autoencoder.weights,
    --config.diffusion.weights: a folder of Stable Diffusion 1.x (InstructPix2Pix, RoentGen).
    --config.text_encoder.weights: of BiomedCLIP or PubMedBERT; for instructpix2pix and text-only, Stable
    Diffusion's own.
    """
    clip = name in ("instructpix2pix", "text-only")
    train = {
        "batch_size": 32, "learning_rate": 1e-4, "final_learning_rate": 1e-4, "weight_decay": 0.01, "b2": 0.999,
        "eps": 1e-8, "warmup_steps": 500, "clip": 1.0, "ema": 0.9999, "save_every": 2000, "eval_every": 5000,
        "show_every": 5000,
    }  # fmt: skip
    config = ConfigDict(
        {
            "name": "Diffusion, 256 x 256",
            "system": "diffusion",
            "data": {"image_size": 256},
            "autoencoder": {
                "model": {
                    "in_channels": 3, "out_channels": 3, "channels": (128, 256, 512, 512), "layers": 2, "patch": 1,
                    "group_channels": 1,
                },
            },
            "text_encoder": {},
            "diffusion": {
                "model": {
                    "channels": (320, 640, 1280, 1280), "layers": 2, "attention": (True, True, True, False),
                    "heads": 8, "cross_attention_dim": 768, "groups": 32, "text_dim": 0 if clip else 768,
                    "dtype": "bfloat16", "remat": True,
                },
                "task": {},
                "stage1": {"steps": 20_000, **train},
                "stage2": {"steps": 20_000, **train},
                "policy": {"solver": "dpm++", "steps": 25, "guidance": 7.5, "image_guidance": 1.5},
            },
            "sample": {"batch_size": 8},
        }
    )  # fmt: skip
    return _system(config, name)
