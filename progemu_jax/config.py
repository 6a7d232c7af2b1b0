"""ConfigDict file -> frozen dataclasses. An unknown key or a value of the wrong type is an error.

A config file (`configs/*.py`) is short Python with `get_config() -> ml_collections.ConfigDict`. It names only
what differs from the defaults below. `main` turns it into a `Config` before any work starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from progemu_jax.data.journeys import Options
from progemu_jax.data.texts import TextOptions
from progemu_jax.models.autoencoder import AutoencoderConfig
from progemu_jax.models.prior_decoder import PriorDecoderConfig
from progemu_jax.models.text_encoder import TextEncoderConfig
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.models.unet import UNetConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.sampling.diffusion import DiffusionSampling
from progemu_jax.sampling.policy import Sampling
from progemu_jax.tasks.autoencoder import AutoencoderLossConfig
from progemu_jax.tasks.diagonal import DiagonalConfig
from progemu_jax.tasks.diffusion import DiffusionConfig
from progemu_jax.tasks.lora import TuneConfig
from progemu_jax.tasks.prior_decoder import PriorDecoderLossConfig
from progemu_jax.tasks.progemu import ProgEmuConfig
from progemu_jax.tasks.reading import ReadingConfig
from progemu_jax.tasks.refine import RefineConfig
from progemu_jax.tasks.reidentification import IdentityConfig
from progemu_jax.tasks.scorer import ScorerConfig
from progemu_jax.tasks.tokenizer import TokenizerLossConfig
from progemu_jax.training.loop import TrainConfig


@dataclass(frozen=True)
class PhantomConfig:
    """The built-in phantom cohort; ignored for other sources."""

    patients: int = 1000
    studies_per_patient: int = 4
    size: int = 128  # pixels of the square images written in the source layout
    dynamics: str = "steps"  # one of progemu_jax.data.phantom.DYNAMICS: how its findings change from study to study


@dataclass(frozen=True)
class DataConfig:
    """Which cohort, and how it becomes shards (`progemu_jax.data.build`)."""

    source: str = "phantom"  # one of progemu_jax.data.sources.SOURCES
    root: str = ""  # folder of the download; the phantom writes its own
    reports: str = ""  # MIMIC: folder of the report texts, where not under the root
    mimic_iv: str = ""  # MIMIC: folder of patients.csv.gz and admissions.csv.gz, where not under the root
    mimic_cxr: str = ""  # ICG-CXR: root of MIMIC-CXR-JPG or MIMIC-CXR, for its images
    chexpertplus: str = ""  # ICG-CXR: root of CheXpert Plus, for its images and reports
    exclude: str = ""  # a file with a patient id a line, to be left out: those a benchmark is scored on
    journeys: Options = field(default_factory=Options)  # views, pairs, filters, splits
    texts: TextOptions = field(default_factory=TextOptions)  # who writes prompts and interpretations
    tree_size: int = 512  # pixels of registered images
    image_size: int = 512  # pixels of images in the shards
    no_change_share: float = 1.0  # share kept of pairs whose reports show no change
    processes: int = 0  # 0: one per core
    beam: tuple[str, ...] = ()  # arguments of Apache Beam, which then works on patients and shards instead
    phantom: PhantomConfig = field(default_factory=PhantomConfig)


@dataclass(frozen=True)
class TokenizerConfig:
    """VQGAN: model, training and loss.

    Attributes:
      init: folder to start from: a run directory, an export, a Hugging Face folder with Emu3's image tokenizer, or a
        VQGAN in taming-transformers' names (a file, too). The sizes are then its own; of `model`, dtype, param_dtype
        and dropout count. steps=0 takes it as it is.
      freeze: parts that are not trained (`tasks.tokenizer.PARTS`).
    """

    init: str = ""
    freeze: tuple[str, ...] = ()
    model: VQGANConfig = field(default_factory=VQGANConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: TokenizerLossConfig = field(default_factory=TokenizerLossConfig)


@dataclass(frozen=True)
class TokensConfig:
    """Token shards.

    Attributes:
      crops: views of each training pair that become tokens, as it is and then randomly cropped (MedJourney).
      slack: a follow-up to learn from keeps the prior's code where that fits nearly as well: at most this many mean
        quantisation errors further away than the nearest code. Else most codes of an unchanged region differ.
      flip: each training pair once more, mirrored, with left and right exchanged in its texts (`data.augment`).
      time: token shards also carry the days between the films and the older films' codes (`data.journeys.history`; of
        a source that gives ages and no time, without older films, `data.journeys.coarse_days`).
    """

    crops: int = 1
    slack: float = 0.0
    flip: bool = False
    time: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """What paints a follow-up from its codes and the prior's pixels; train.steps=0: nothing does."""

    model: PriorDecoderConfig = field(default_factory=PriorDecoderConfig)
    loss: PriorDecoderLossConfig = field(default_factory=PriorDecoderLossConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=0))


@dataclass(frozen=True)
class LanguageModelConfig:
    """Decoder-only transformer: model, task and the two stages of the curriculum.

    Attributes:
      init: folder to start from: a run directory, an export, or a Hugging Face folder of Emu3 or ProgEmu. The sizes are
        then its own; of `model`, what says how to compute and what to add counts (`imported.OURS`).
      tune: which parameters are trained; LoRA is `model.lora_rank`.
      words: the training before stage 1 on the words of prompts alone (`tasks.words`); steps=0 skips it.
      reading: the training after stage 2 that teaches to read the images (`tasks.reading`).
      refine: rounds of learning from its own best futures (`tasks.refine`).
      diagonal: what anti-diagonal decoding needs, trained on the finished model (`tasks.diagonal`).
    """

    init: str = ""
    tune: TuneConfig = field(default_factory=TuneConfig)
    model: TransformerConfig = field(default_factory=TransformerConfig)
    task: ProgEmuConfig = field(default_factory=ProgEmuConfig)
    words: TrainConfig = field(default_factory=lambda: TrainConfig(steps=0))
    stage1: TrainConfig = field(default_factory=TrainConfig)  # single images, constant-128 prior; steps=0 skips it
    stage2: TrainConfig = field(default_factory=TrainConfig)  # pairs
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    diagonal: DiagonalConfig = field(default_factory=DiagonalConfig)


@dataclass(frozen=True)
class CodecConfig:
    """KL autoencoder of a diffusion model; weights: a Diffusers folder that holds one, instead of training."""

    weights: str = ""
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)


@dataclass(frozen=True)
class TextConfig:
    """Frozen text encoder; weights: a folder that holds one, instead of a random one."""

    weights: str = ""
    model: TextEncoderConfig = field(default_factory=TextEncoderConfig)


@dataclass(frozen=True)
class DenoiserConfig:
    """A diffusion model: UNet, task, the two stages of the curriculum, and how it is sampled.

    name: of the system, its predictions folder and row in the tables. weights: a Diffusers folder whose UNet
    training starts from. steps=0 skips a stage.
    """

    name: str = "medjourney"
    weights: str = ""
    model: UNetConfig = field(default_factory=UNetConfig)
    task: DiffusionConfig = field(default_factory=DiffusionConfig)
    stage1: TrainConfig = field(default_factory=TrainConfig)
    stage2: TrainConfig = field(default_factory=TrainConfig)
    policy: DiffusionSampling = field(default_factory=DiffusionSampling)


@dataclass(frozen=True)
class SampleConfig:
    """Which held-out pairs are sampled, how many futures each, and how.

    queue: ProgEmu draws through a queue of `batch_size` slots, each refilled as its case ends (`sampling.queue`); else
    batch by batch, as diffusion does. What was begun by a version without the key ends batch by batch.
    free_prompts: contradicting prompts are told in free language (`controls.contradicting_sentence`); for a model whose
    training restates prompts (`task.restate`).
    """

    split: str = "test"
    max_cases: int = 0  # 0: all
    num_samples: int = 1
    batch_size: int = 32
    queue: bool = True
    seed: int = 0
    systems: tuple[str, ...] = ("progemu", "shuffled-prompts", "text-only")
    free_prompts: bool = False
    policy: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class EvaluateConfig:
    """Intervals and pages of the report."""

    bootstrap: int = 1000
    seed: int = 0
    cases: int = 12  # on the sheet
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class MeshConfig:
    """Mesh axis sizes (`progemu_jax.devices.sharding`); data -1 takes the devices that the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class PlanConfig:
    """`--stages=plan` (`progemu_jax.plan`).

    Attributes:
      devices: sizes of the slice or cluster; the mesh's data axis takes what fsdp and tensor leave.
      accelerators: of `plan.ACCELERATORS`; TPUs are compiled for, GPUs counted.
      rows: sequences in a microbatch on each part of the batch, in training.
      cases: on each part of the batch, in sampling.
    """

    devices: tuple[int, ...] = (8, 64, 256)
    accelerators: tuple[str, ...] = ("H100", "H200", "v5p", "v6e")
    rows: int = 1
    cases: int = 4


# What numbers make sense, by key: the least and the greatest. A stage that comes hours later must not find out.
_INF = float("inf")
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, _INF),
    "data.phantom.patients": (1, _INF),
    "data.phantom.studies_per_patient": (1, _INF),
    "data.phantom.size": (32, 4096),
    "data.tree_size": (32, 4096),
    "data.image_size": (1, 4096),
    "data.no_change_share": (0, 1),
    "data.processes": (0, _INF),
    "tokens.crops": (1, _INF),
    "tokens.slack": (0, _INF),
    "sample.max_cases": (0, _INF),
    "sample.num_samples": (1, _INF),
    "sample.batch_size": (1, _INF),
    "sample.seed": (0, 2**31 - 1),
    "scorer.seed": (0, _INF),
    "scorer.images": (1, _INF),
    "scorer.valid_images": (1, _INF),
    "evaluate.bootstrap": (0, 100_000),
    "evaluate.seed": (0, _INF),
    "evaluate.cases": (0, _INF),
    "plan.rows": (1, _INF),
    "plan.cases": (1, _INF),
}


@dataclass(frozen=True)
class Config:
    """Everything one run needs; written to `config.json` of the run directory.

    system: "progemu" (sections tokenizer, tokens, decoder, progemu) or "diffusion" (autoencoder, text_encoder,
    diffusion).
    """

    name: str = "run"
    system: str = "progemu"
    seed: int = 0
    vocabulary: str = ""  # folder with Emu3's vocabulary files, radiology or english; empty: the default
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    progemu: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    autoencoder: CodecConfig = field(default_factory=CodecConfig)
    text_encoder: TextConfig = field(default_factory=TextConfig)
    diffusion: DenoiserConfig = field(default_factory=DenoiserConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
