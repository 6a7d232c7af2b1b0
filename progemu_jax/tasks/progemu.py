"""ProgEmu's training task: next-token prediction over the packed sequence (`progemu_jax.text.sequence`)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.devices import sharding
from progemu_jax.kernels import head_loss
from progemu_jax.kernels.head_loss import SoftCodes
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.tasks import lora
from progemu_jax.tasks.embeddings import PROJECTION, first_projection, word_embeddings
from progemu_jax.tasks.lora import TuneConfig
from progemu_jax.tasks.reading import ReadingConfig, changed_tokens
from progemu_jax.tasks.word_vectors import WordVectors
from progemu_jax.text import rules, sequence
from progemu_jax.text.findings import NO_CHANGE, PHANTOM, Finding
from progemu_jax.text.plain import statements
from progemu_jax.text.prompt_changes import restated
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.text.timeline import MOST_OLDER, TEXT, TOKEN, Timeline, of_example
from progemu_jax.text.vocabulary import Vocabulary
from progemu_jax.training import optim
from progemu_jax.training.loop import TrainConfig


@dataclass(frozen=True)
class ProgEmuConfig:
    """Sequence, augmentation and loss weights. The weights of the reference are all 1.

    Attributes:
      length: tokens of a packed row.
      prompt_budget: see `sequence.Layout`.
      null_prompt, shuffle_sentences, drop_negative: probabilities of the training augmentations (ProgEmu).
      empty_prompt: probability of dropping the prompt alone, which unlocks guidance that keeps the prior
        (`Sampling.keep_prior`).
      weight_*: of the loss on each kind of token; EOS counts as text, padding never counts. Tokens of weight 0 do not
        go through the head.
      changed_weight: extra weight of a visual token whose code is as far from the prior's at the same place as two
        random codes are from each other; it grows with the squared distance, up to four times that. Exact codes
        change almost everywhere between two films; what disease changes is what changes much.
      soften: what is learnt of a code that differs from the prior's is spread over the codes that look like it, by a
        Gaussian of their distances: its squared width, in mean squared distances of a code from its nearest
        neighbour. Any of them would have done. 0: the exact code, as in ProgEmu.
      word_vectors: embeddings of whole words are the vectors that stand beside the vocabulary (`tasks.word_vectors`)
        under one learnt projection: a word that no prompt had is taken for those that are near to it.
      init_from_codebook: embeddings of visual tokens start as a projection of the tokenizer's code vectors and of
        their squared norms, so that codes that look alike start alike.
      loss_chunk: tokens of each row that go through the head at a time (`kernels.head_loss`).
      restate: share of training prompts that are told in other words (`text.prompt_changes.restated`); 0: as the shards
        have them.
      word_dropout: BPE-dropout of training prompts (`Vocabulary.encode`).
      dictionary: share of the rows of words alone that say what a word means (`tasks.words`).
      rehearse: share of the rows of the later trainings, up to `reading`, that are rows of words alone.
      complete: how often a prompt that is told in other words names every change that the interpretation tells. What is
        not named then stays as it is, so that a model learns to leave it.
      identity: probability that the follow-up is the prior itself, and the prompt and text say that nothing changed.
      read: probability that a pair teaches the text alone, read from the images: without its prompt, and without loss
        on the image. Guidance with `text_guidance=0` then draws the text so.
      omitted_weight: extra weight of the sentences of the interpretation on findings that the prompt does not name.
      interval: share of the pairs whose row says the days from prior to follow-up, where they are known. interval_text:
        as a sentence behind the prompt, not as a token of its own (`text.timeline`).
      older: most films before the prior that a row has; how many it has is drawn evenly. Token shards must hold them
        (`config.tokens.time`, `config.data.journeys.history`).
    """

    length: int = 9216
    prompt_budget: int = 0
    null_prompt: float = 0.01
    empty_prompt: float = 0.0
    shuffle_sentences: float = 0.05
    drop_negative: float = 0.05
    weight_prior: float = 1.0
    weight_prompt: float = 1.0
    weight_structure: float = 1.0
    weight_visual: float = 1.0
    weight_text: float = 1.0
    changed_weight: float = 0.0
    soften: float = 0.0
    word_vectors: bool = False
    init_from_codebook: bool = False
    loss_chunk: int = 256
    restate: float = 0.0
    word_dropout: float = 0.0
    dictionary: float = 0.0
    rehearse: float = 0.0
    complete: float = 0.0
    identity: float = 0.0
    read: float = 0.0
    omitted_weight: float = 0.0
    interval: float = 0.0
    interval_text: bool = False
    older: int = 0

    def __post_init__(self):
        for name in ("restate", "read", "dictionary", "rehearse", "complete", "identity", "interval"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a share, 0 to 1")
        if not 0 <= self.older <= MOST_OLDER:
            raise ValueError(f"older={self.older}: expected 0 to {MOST_OLDER} films before the prior")

    def layout(self, height: int, width: int) -> Layout:
        """Of the run's rows, for code maps of a size."""
        interval = "" if not self.interval else TEXT if self.interval_text else TOKEN
        return Layout(height, width, self.length, self.prompt_budget, self.older, interval)


def packer(
    vocab: Vocabulary,
    layout: Layout,
    task: ProgEmuConfig,
    codebook: np.ndarray,
    train: bool,
    reading: ReadingConfig | None = None,
    findings: tuple[Finding, ...] = PHANTOM,
) -> Callable[[dict[str, Any], np.random.Generator], dict[str, np.ndarray]]:
    """Example of a token shard -> packed row with its loss `weights` f32 [length]; augmented when `train`.

    An example whose interpretation is None teaches the image alone.

    codebook: f32 [Q, E] code vectors, for the distances of `changed_weight`. reading: rows without a prompt have a
    structured report as text (`tasks.reading`). findings: of the cohort.
    """
    codebook = np.asarray(codebook, np.float32)
    apart = 2 * codebook.var(0).sum()  # mean squared distance of two random codes

    def room(interpretation: str) -> int:
        """Tokens that a prompt may have beside it."""
        block = len(sequence.header(vocab, layout.height, layout.width)) + layout.image_tokens
        images = 2 * block + layout.older * (block + 1)
        rest = layout.length - images - len(vocab.encode(interpretation)) - 4  # BOS, EOS, and for other orders
        return min(rest, (layout.prompt_budget or layout.length) - 1)

    def fits(text: str, interpretation: str) -> bool:
        return len(vocab.encode(text)) <= room(interpretation)

    def dropped(prompt: str, interpretation: str, rng: np.random.Generator) -> list[int] | None:
        words = vocab.encode(prompt, rng, task.word_dropout)
        return words if len(words) <= room(interpretation) else None

    def told_anew(example: dict[str, Any], rng: np.random.Generator) -> tuple[str | None, str, bool]:
        """Prompt (None: without prior) and text of a training row, and whether it teaches to read."""
        prompt, text = example["prompt"], example["interpretation"]
        reads = bool(task.read) and rng.random() < task.read
        null, empty = rng.random() < task.null_prompt, rng.random() < task.empty_prompt
        if task.restate:
            prompt = restated(
                prompt,
                rng,
                task.restate,
                text,
                fits=lambda new: fits(new, text),
                complete=task.complete,
                findings=findings,
            )
        shuffled = rules.augment(prompt, rng, task.shuffle_sentences, 0.0)
        fewer = rules.augment(text, rng, task.shuffle_sentences, task.drop_negative)
        if fits(shuffled, fewer):  # in another order a text can have more tokens
            prompt, text = shuffled, fewer
        return "" if reads or (empty and not null) else None if null else prompt, text, reads

    def when(example: dict[str, Any], rng: np.random.Generator) -> Timeline | None:
        """What a row tells of time: in evaluation all that is known."""
        told = of_example(example, task.older, task.interval > 0)
        if told and train:
            told = told.cut(int(rng.integers(len(told.older) + 1)), rng.random() < task.interval)
        return told

    def expects(prompt: str | None, told: Timeline | None) -> bool:
        """Whether a row teaches what is to be expected: how likely a change is must be learnt as it is, unweighted."""
        return prompt == "" and told is not None and told.days is not None

    def structured(text: str) -> tuple[str, np.ndarray | None]:
        """The text of a row without a prompt, and what tells a change in it."""
        said = statements(text, findings) if reading else None
        told = " ".join(part for part, _ in said or ())
        return (told, changed_tokens(vocab, said)) if said and room(told) >= 0 else (text, None)

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        prior, prompt, text, reads = example["prior"], example["prompt"], example["interpretation"], False
        change, told = None, when(example, rng)
        if train and text is not None:
            if task.identity and rng.random() < task.identity:
                example = {**example, "followup": prior, "prompt": NO_CHANGE, "interpretation": NO_CHANGE}
                told = told and told.twin
            prompt, text, reads = told_anew(example, rng)
            prior = None if prompt is None else prior
            text, change = structured(text) if prompt == "" else (text, None)
        words = dropped(prompt, text or "", rng) if train and prompt and task.word_dropout else None
        if told and 0 < layout.prompt_budget <= len(vocab.encode(prompt or "") if words is None else words):
            told = told.twin  # such a prompt leaves no place for the days
        between = rng if train else None  # two steps of the scale
        row = sequence.pack(vocab, layout, prior, prompt, example["followup"], text or "", words, told, between)
        row["weights"] = np.ones(layout.length, np.float32)
        if text is None:
            row["weights"][row["kinds"] == Kind.EOS] = 0
        elif change is not None:
            row["weights"][row["kinds"] == Kind.TEXT] += reading.changed_weight * change
        elif task.omitted_weight:
            told = omitted_tokens(vocab, example["prompt"], text, findings)
            row["weights"][row["kinds"] == Kind.TEXT] += task.omitted_weight * told
        if reads:
            row["weights"][(row["kinds"] != Kind.TEXT) & (row["kinds"] != Kind.EOS)] = 0
        elif prior is not None and task.changed_weight and not expects(prompt, told):
            distance = np.square(codebook[example["followup"]] - codebook[prior]).sum(-1) / apart
            extra = task.changed_weight * np.minimum(distance, 4.0)
            row["weights"][row["kinds"] == Kind.VISUAL] += extra.reshape(-1)
        return row

    return transform


def omitted_tokens(vocab: Vocabulary, prompt: str, text: str, findings: tuple[Finding, ...] = PHANTOM) -> np.ndarray:
    """Which tokens of a text stand in a sentence on a finding that the prompt does not name: f32 of 0 and 1."""
    out: list[np.ndarray] = []
    for number, (sentence, omitted) in enumerate(_omitted_sentences(prompt, text, findings)):
        out.append(np.full(len(vocab.encode(f" {sentence}" if number else sentence)), omitted, np.float32))
    told, tokens = np.concatenate(out) if out else np.zeros(0, np.float32), len(vocab.encode(text))
    return np.pad(told, (0, max(0, tokens - len(told))))[:tokens]


@functools.lru_cache(maxsize=1 << 16)
def _omitted_sentences(prompt: str, text: str, findings: tuple[Finding, ...]) -> tuple[tuple[str, bool], ...]:
    named = {m.finding for m in rules.mentions(prompt, findings)}
    return tuple((s, any(m.finding not in named for m in rules.mentions(s, findings))) for s in rules.sentences(text))


def soft_codes(codebook: np.ndarray, soften: float, start: int) -> SoftCodes:
    """What `ProgEmuConfig.soften` spreads over, without the tokens (`on` None).

    codebook: f32 [Q, E]. start: id of code 0.
    """
    codebook = np.asarray(codebook, np.float32)
    norms = np.square(codebook).sum(1)
    least = []  # squared distance of each code from its nearest neighbour, a block at a time: Q x Q would be 4 GB
    for first in range(0, len(codebook), 1024):
        rows = codebook[first : first + 1024]
        distance = np.maximum(np.square(rows).sum(1)[:, None] + norms - 2 * rows @ codebook.T, 0)
        distance[np.arange(len(rows)), first + np.arange(len(rows))] = np.inf
        least.append(distance.min(1))
    return SoftCodes(None, codebook, max(soften * float(np.concatenate(least).mean()), 1e-12), start)


class ProgEmuTask:
    """See `progemu_jax.training.loop.fit` for the protocol; batches come from `packer`.

    visual_start, codebook (f32 [Q, E]) are those of the tokenizer; needed when `task.soften` is positive.
    tune: which parameters are trained. The state holds those as "params" and the others as "frozen".
    vectors: what the embeddings of words are made of (`ProgEmuConfig.word_vectors`). Their projection, `PROJECTION`, is
    one more parameter beside the model's; the rows of the table that it makes are written by `params`.
    """

    name = "progemu"
    logical_axes: ClassVar = {**transformer.LOGICAL_AXES, PROJECTION: (None, "embed")}

    def __init__(
        self,
        model: TransformerConfig,
        task: ProgEmuConfig,
        train: TrainConfig,
        visual_start: int = 0,
        codebook: np.ndarray | None = None,
        tune: TuneConfig | None = None,
        vectors: WordVectors | None = None,
    ):
        self.vectors = vectors
        self.model_config, self.config, self.train, self.tune = model, task, train, tune or TuneConfig()
        self.soft = soft_codes(codebook, task.soften, visual_start) if task.soften else None
        self.model, self.mesh = Transformer(model), None
        self.optimizer = optim.make_optimizer(train)
        weights = {
            Kind.PAD: 0.0,
            Kind.BOS: 0.0,
            Kind.PRIOR: task.weight_prior,
            Kind.PROMPT: task.weight_prompt,
            Kind.STRUCTURE: task.weight_structure,
            Kind.VISUAL: task.weight_visual,
            Kind.TEXT: task.weight_text,
            Kind.EOS: task.weight_text,
        }
        self.tokens_per_step = train.batch_size * task.length
        self.flops_per_step = self.tokens_per_step * transformer.training_flops(model, task.length)
        self.kind_weights = np.asarray([weights[k] for k in Kind], np.float32)

    def init(self, key: jax.Array) -> dict[str, Any]:
        params = transformer.init_params(self.model_config, key)
        return self.from_params(params)

    def from_params(self, params: Any) -> dict[str, Any]:
        """The state that starts from given parameters, with a fresh optimizer."""
        if self.vectors is not None and PROJECTION not in params:
            width = params["embed_tokens"].shape[1]
            params = {**params, PROJECTION: jnp.asarray(first_projection(self.vectors, width, self.train.seed))}
        params = lora.based(params, self.model_config)
        trained, frozen = lora.split(params, self.model_config, self.tune)
        state = optim.start(self.optimizer, self.train, trained)
        return {**state, "frozen": frozen} if frozen else state

    def params(self, state: dict[str, Any]) -> Any:
        """All parameters of a state, averaged where the training averages (`train.ema`)."""
        return self._projected(lora.join(optim.averaged(state), state.get("frozen", {})))

    def _projected(self, params: Any) -> Any:
        """Parameters whose embeddings of words are the vectors' projection."""
        if self.vectors is None:
            return params
        return word_embeddings(params, self.vectors, params[PROJECTION], self.model_config.initializer_range)

    def state_shardings(self, mesh: Any, abstract: Any) -> Any:
        """Parameters and optimizer state by the rules table of `progemu_jax.devices.sharding`."""
        self.mesh = mesh.abstract_mesh
        return sharding.param_shardings(abstract, self.logical_axes, mesh)

    def loss(
        self, params: Any, batch: dict[str, jax.Array], key: jax.Array | None, every: bool = False, embedded: Any = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Weighted mean cross-entropy of the next token, and its means by kind of token.

        key: None switches dropout off. every: also the means of kinds that have no weight in the loss, which cost as
        much as the others. embedded: see `Transformer`.
        """
        with self._on_mesh():
            return self._loss(self._projected(params), batch, key, every, embedded)

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return jax.sharding.use_abstract_mesh(self.mesh) if self.mesh else contextlib.nullcontext()

    def _loss(
        self, params: Any, batch: dict[str, jax.Array], key: jax.Array | None, every: bool, embedded: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self._cross_entropy(params, self._hidden(params, batch, key, embedded), batch, every)

    def _hidden(
        self, params: Any, batch: dict[str, jax.Array], key: jax.Array | None, embedded: Any = None
    ) -> jax.Array:
        """Final states [B, T - 1, M]: of every token what tells the next one."""
        hidden, _ = self.model.apply(
            {"params": params},
            batch["tokens"][:, :-1],
            batch["positions"][:, :-1],
            aligned=batch["aligned"][:, :-1],
            beside=batch["beside"][:, :-1] if "beside" in batch else None,
            segments=batch["segments"][:, :-1] if "segments" in batch else batch["kinds"][:, :-1] != Kind.PAD,
            deterministic=key is None or self.model_config.dropout == 0,
            rngs=None if key is None else {"dropout": key},
            embedded=embedded,
        )
        return hidden

    def _cross_entropy(
        self, params: Any, hidden: jax.Array, batch: dict[str, jax.Array], every: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        targets, kinds, aligned = batch["tokens"][:, 1:], batch["kinds"][:, 1:], batch["aligned"][:, :-1]
        changed = (aligned >= 0) & (aligned != targets)
        weights = jnp.asarray(self.kind_weights)[kinds] * batch["weights"][:, 1:]
        visual, text = kinds == Kind.VISUAL, (kinds == Kind.TEXT) | (kinds == Kind.EOS)
        counted = (kinds != Kind.PAD) & (kinds != Kind.BOS) if every else weights > 0
        loss, nll = head_loss.head_cross_entropy(
            hidden,
            transformer.head(params),
            targets,
            weights,
            chunk=self.config.loss_chunk,
            counted=counted,
            vocab_size=self.model_config.vocab_size,
            soft=self.soft and self.soft._replace(on=visual & (aligned != targets)),
        )

        def mean(w: jax.Array) -> jax.Array:
            w = jnp.where(counted, w, 0.0)  # the others have no cross-entropy
            return (nll * w).sum() / jnp.maximum(w.sum(), 1e-6)

        c = self.config
        parts = {
            "loss_prior": (c.weight_prior, kinds == Kind.PRIOR),
            "loss_prompt": (c.weight_prompt, kinds == Kind.PROMPT),
            "loss_structure": (c.weight_structure, kinds == Kind.STRUCTURE),
            "loss_visual": (c.weight_visual, visual),
            "loss_changed": (c.weight_visual, visual & changed),
            "loss_far": (c.weight_visual, jnp.where(visual, jnp.maximum(batch["weights"][:, 1:] - 1, 0.0), 0.0)),
            "loss_text": (c.weight_text, text),
        }
        means = {name: mean(which) for name, (weight, which) in parts.items() if weight or every}
        return loss, {"weight": weights.sum(), **means}

    def train_step(self, state: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array) -> tuple[dict, dict]:
        trained, frozen = state["params"], state.get("frozen", {})
        if self._few_rows(trained, batch["tokens"].size):
            (loss, metrics), grads = self._gradient_by_rows(trained, frozen, batch, key)
        else:
            (loss, metrics), grads = optim.value_and_grad_accumulated(
                lambda trained, *rest: self.loss(lora.join(trained, frozen), *rest),
                trained,
                batch,
                key,
                self.train.accumulate,
            )
        new = optim.advance(self.optimizer, self.train, state, grads)
        return new, {"loss": loss, "grad_norm": optim.global_norm(grads), **metrics}

    def _few_rows(self, trained: Any, tokens: int) -> bool:
        """Whether the gradient of the embedding is held as the rows that a batch has, not as a table of zeros.

        On CPU, and not where a batch is split over devices, each of which would need all of its rows.
        """
        split = self.mesh is not None and sharding.data_parts(self.mesh) > 1
        tied = self.model_config.tie_embeddings
        looked_up = 1 + self.model_config.prior_alignment + self.model_config.prior_beside
        few = 4 * tokens * looked_up <= self.model_config.vocab_size
        alone = self.train.accumulate == 1 and self.train.optimizer == "adamw"
        cpu = sharding.platform(self.mesh) == "cpu"
        whole = tied or self.vectors is not None
        return cpu and few and alone and not split and not whole and "embed_tokens" in trained

    def _gradient_by_rows(
        self, trained: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[tuple, dict]:
        others = {name: leaf for name, leaf in trained.items() if name != "embed_tokens"}
        table, tokens = trained["embed_tokens"], batch["tokens"][:, :-1]
        aligned, model = batch["aligned"][:, :-1], self.model_config
        priors = [aligned] * model.prior_alignment + [transformer.beside_of(aligned)] * model.prior_beside
        with self._on_mesh():
            embedded = transformer.embed(table, tokens, priors, jnp.dtype(model.dtype))

        def loss(wanted: tuple) -> tuple[jax.Array, dict[str, jax.Array]]:
            others, embedded = wanted
            params = lora.join({**others, "embed_tokens": table}, frozen)
            return self.loss(params, batch, key, embedded=embedded)

        value, (grads, of_rows) = jax.value_and_grad(loss, has_aux=True)((others, embedded))
        rows = [x.reshape(-1, table.shape[1]) for x in of_rows]
        ids = jnp.concatenate([jnp.maximum(x, 0).reshape(-1) for x in (tokens, *priors)])
        grads["embed_tokens"] = optim.Rows.of(ids, jnp.concatenate(rows), len(table))
        return value, grads

    def eval_step(self, state: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        loss, metrics = self.loss(self.params(state), batch, None, every=True)
        return {"loss": loss, **metrics}
