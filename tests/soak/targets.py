"""What is killed, and how often: the stages of two toy runs, conversion both ways, `eval` and `scorers`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import diffusion_models, emu3_folders

from progemu_jax import main
from progemu_jax.config import Config
from progemu_jax.files.settings import from_dict
from progemu_jax.files.stages import Stage
from progemu_jax.run import build_stages

CONFIGS = {
    "progemu": """
from progemu_jax.configs.common import phantom, refine

def get_config():
    config = phantom(name="toy", patients=24, tokenizer_steps=9, crops=2, stage1_steps=4, stage2_steps=6,
                     scorer_images=64, scorer_steps=6, words_steps=4, decoder_steps=6)
    config.data.phantom.size = config.data.tree_size = 64
    config.data.image_size = 32
    config.data.processes = 1
    config.tokenizer.model.update(ch=16, patch=8, ch_mult=(1,))
    config.progemu.model.num_layers = 1
    config.scorer.net.widths = (8, 16)
    config.scorer.valid_images = 16
    config.progemu.refine = refine()
    config.progemu.refine.update(rounds=1, requests=6, futures=2)
    config.progemu.refine.train.steps = 4
    config.progemu.refine.scorer.update(images=64, valid_images=16)
    config.progemu.refine.scorer.net.widths = (8, 16)
    config.progemu.refine.scorer.train.steps = 6
    for part in (config.tokenizer.train, config.decoder.train, config.progemu.words, config.progemu.stage1,
                 config.progemu.stage2, config.progemu.refine.train, config.progemu.refine.scorer.train,
                 config.scorer.train):
        part.batch_size, part.save_every, part.warmup_steps = 4, 2, 0
    config.sample.batch_size = 4
    config.sample.max_cases = 6
    return config
""",
    "diffusion": """
from progemu_jax.configs.diffusion import phantom

def get_config():
    config = phantom("medjourney", small=True)
    config.data.phantom.patients = 24
    config.data.phantom.size = config.data.tree_size = 64
    config.data.image_size = 32
    config.data.processes = 1
    config.scorer.net.widths = (8, 16)
    config.scorer.update(images=64, valid_images=16)
    config.scorer.train.steps = 6
    for part in (config.autoencoder.train, config.diffusion.stage1, config.diffusion.stage2, config.scorer.train):
        part.batch_size, part.save_every = 4, 2
    config.diffusion.stage2.show_every = 6
    config.sample.batch_size = 4
    config.sample.max_cases = 6
    return config
""",
}
# Kills of each stage, and its last save: a pattern of operations on files, as "os.rename scorer/export.tmp".
STAGES = {
    "progemu": {
        "data": (4, r"data/shards/icg_cxr/single"),
        "tokenizer": (6, r"tokenizer/(checkpoints/9\b|export)"),
        "tokens": (4, r"data/shards/icg_cxr/.*tokens"),
        "decoder": (5, r"decoder/(checkpoints/6\b|export)"),
        "reward": (4, r"reward/(checkpoints/6\b|export)"),
        "train": (12, r"train/(refine0/checkpoints/4\b|export)"),
        "scorer": (4, r"scorer/(checkpoints/6\b|export)"),
        "sample": (5, r"predictions/reconstruction"),
        "score": (4, r"scores/\.?(mean|counterfactual)"),
        "evaluate": (3, r"report/|metrics.json"),
    },
    "diffusion": {
        "data": (3, r"data/shards/icg_cxr/single"),
        "autoencoder": (5, r"autoencoder/(checkpoints/8\b|export)"),
        "text_encoder": (3, r"text_encoder/export"),
        "train": (8, r"train/(stage2/checkpoints/6\b|unet)"),
        "scorer": (3, r"scorer/(checkpoints/6\b|export)"),
        "sample": (4, r"predictions/reconstruction"),
        "score": (3, r"scores/\.?(mean|counterfactual)"),
        "evaluate": (2, r"report/|metrics.json"),
    },
}
TRAINED = {"tokenizer", "decoder", "reward", "train", "scorer", "autoencoder"}


@dataclass(frozen=True)
class Target:
    """One command that is killed.

    Attributes:
      kills: how often. last: pattern of the operations of its last save. trains: SIGTERM has it save first.
      command: module and arguments; "{folder}" is where it works, "{base}" where the undisturbed results lie.
      home: its working folder among the undisturbed results. outputs: what is compared, relative to it.
      absent: what is not there before it, relative to `home`. copies: what is, from the undisturbed results.
      complete: once this is there, relative to `home`, the same command has nothing to do and says so; "": no such.
      needs: names of the targets whose undisturbed results it takes. sources: {folder among the results: makes it}.
    """

    name: str
    kills: int
    last: str
    command: tuple[str, ...]
    home: str
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    trains: bool = False
    absent: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    complete: str = ""
    sources: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)

    def is_complete(self, folder: Path) -> bool:
        """Whether the command would find nothing to do, and say so."""
        return bool(self.complete) and (folder / self.complete).exists()

    def clear(self, folder: Path) -> None:
        """Removes from `folder` what is not there before the command."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / name for name in self.absent):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def prepare(self, base: Path, folder: Path) -> None:
        """`folder` as it is before the command starts."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.copies:
            for place, source in self.copies.items():
                shutil.copytree(base / source, folder / place)
        elif self.absent:
            gone = {base / self.home / name for name in self.absent}
            shutil.copytree(
                base / self.home, folder, ignore=lambda at, names: {n for n in names if Path(at) / n in gone}
            )
        else:
            folder.mkdir(parents=True)

    def called(self, work: Path, folder: Path) -> tuple[str, ...]:
        """The command for a folder."""
        base = work / "undisturbed"
        return tuple(part.format(folder=folder, base=base, work=work) for part in self.command)


def all_targets(work: Path) -> list[Target]:
    """In an order in which each finds what it needs; writes the configs to `work`."""
    return [*_of_run(work, "progemu"), *_of_run(work, "diffusion"), *_of_commands()]


def _of_run(work: Path, system: str) -> list[Target]:
    path = work / f"{system}.py"
    path.write_text(CONFIGS[system])
    stages = build_stages(from_dict(Config, main._load_config(str(path))))
    assert [stage.name for stage in stages] == list(STAGES[system])
    return [_of_stage(system, stages, number) for number in range(len(stages))]


def _of_stage(system: str, stages: list[Stage], number: int) -> Target:
    stage = stages[number]
    kills, last = STAGES[system][stage.name]
    absent = [".stages", ".cache", ".lock", "config.json"]
    for later in stages[number:]:
        absent += [*later.outputs, *(f"{output}.stage.json" for output in later.outputs), f".made/{later.name}.json"]
    return Target(
        name=f"{system}.{stage.name}",
        kills=kills,
        last=last,
        command=(
            "progemu_jax.main", f"--config={{work}}/{system}.py", "--workdir={folder}", f"--stages={stage.name}",
        ),
        home=system,
        outputs=stage.outputs,
        needs=tuple(f"{system}.{earlier.name}" for earlier in stages[:number]),
        trains=stage.name in TRAINED,
        absent=tuple(absent),
    )  # fmt: skip


def _emu3(folder: Path) -> None:
    emu3_folders.checkpoint_folder(folder, "both", shards=2)


def _diffusers(folder: Path) -> None:
    diffusion_models.pipeline(folder)


def _of_commands() -> list[Target]:
    def converted(name: str, source: str, **options: Any) -> Target:
        return Target(
            name=f"convert.{name}",
            kills=3,
            last=r"(rename out\.tmp/out|rmdir out\.tmp)$",
            command=("progemu_jax.convert", f"--source={{base}}/{source}", "--target={folder}/out"),
            home=f"convert.{name}",
            outputs=("out",),
            complete="out",
            **options,
        )

    run = "{base}/progemu"
    return [
        converted("emu3-in", "emu3", sources={"emu3": _emu3}),
        converted("emu3-out", "convert.emu3-in/out", needs=("convert.emu3-in",)),
        converted("diffusers-in", "diffusers", sources={"diffusers": _diffusers}),
        converted("diffusers-out", "convert.diffusers-in/out", needs=("convert.diffusers-in",)),
        Target(
            name="scorers",
            kills=3,
            last=r"scores/\.?mean|predictions/",
            command=(
                "progemu_jax.scorers", f"--scorer=phantom:{run}/scorer/export", "--references={folder}/references",
                "--predictions={folder}/predictions",
            ),
            home="scorers",
            outputs=("references/scores", "predictions"),
            needs=("progemu.sample",),
            copies={"references": "progemu/data/references", "predictions": "progemu/predictions/progemu"},
        ),
        Target(
            name="eval",
            kills=3,
            last=r" out/report/",
            command=(
                "progemu_jax.eval", f"--predictions=progemu={run}/predictions/progemu",
                f"--predictions=shuffled-prompts={run}/predictions/shuffled-prompts",
                f"--references={run}/data/references", "--out={folder}/out", "--bootstrap=200", "--subsamples=4",
            ),
            home="eval",
            outputs=("out",),
            needs=("progemu.score",),
        ),
    ]  # fmt: skip
