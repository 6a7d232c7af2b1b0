"""A model's parts, and one batch of cases through them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Self, TypeVar

import jax
import numpy as np

from progemu_jax import provenance
from progemu_jax.checkpoints.arrays import flatten
from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case, Prediction
from progemu_jax.files.settings import from_dict
from progemu_jax.inference import request
from progemu_jax.inference.counterfactual import Samples
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.sampling.engine import Grammar
from progemu_jax.sampling.generate import generate, prepare
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.sampling.queue import Request, Result, sample_queue
from progemu_jax.sampling.watch import Watch
from progemu_jax.text import sequence
from progemu_jax.text.findings import PHANTOM, Finding
from progemu_jax.text.sequence import Layout
from progemu_jax.text.vocabulary import TEXT_FILE, VISION_FILE, Vocabulary

_Part = TypeVar("_Part")


@partial(jax.jit, static_argnums=0)
def _logits(config: TransformerConfig, params: Any, tokens: jax.Array) -> jax.Array:
    hidden, _ = Transformer(config).apply({"params": params}, tokens)
    return transformer.logits(params, hidden, (0, config.vocab_size))


class Sampler:
    """Tokenizer, transformer and vocabulary, and what they do with a batch of cases.

    A part that the folder did not hold is None, and what needs it is a UserError. `stops`: ids that end a text
    (None: EOS). `slack`: how far the follow-ups that it learnt from lean to their priors (`Tokenizer.tokenize`).
    `findings`: of the cohort that it was trained on. The parameters as decoding reads them are made for the first
    request and kept (`prepared`).
    """

    def __init__(
        self,
        params: Any,
        config: TransformerConfig | None,
        layout: Layout | None,
        vocabulary: Vocabulary | None,
        tokenizer: Tokenizer | None,
        policy: Sampling,
        name: str,
        stops: tuple[int, ...] | None = None,
        slack: float = 0.0,
        findings: tuple[Finding, ...] = PHANTOM,
    ):
        self.params, self.config, self.layout = params, config, layout
        self.vocabulary, self.tokenizer, self.policy, self.name = vocabulary, tokenizer, policy, name
        self.slack, self.findings = slack, findings
        self.grammar = None if vocabulary is None else Grammar.of(vocabulary, stops)
        self.mesh: jax.sharding.Mesh | None = None
        self._prepared: tuple[Any, tuple[Any, TransformerConfig]] | None = None  # of which parameters, and what

    def on(self, mesh: jax.sharding.Mesh) -> Self:
        """Puts the model on a mesh of this host's devices, in place, and returns it: cases over its data axes, heads
        over tensor. A batch that does not divide over the data axes runs unsplit."""
        self.mesh, self._prepared = mesh, None
        if self.tokenizer:
            self.tokenizer.on(mesh)
        if self.params is not None:
            axes = (self.params, transformer.LOGICAL_AXES, mesh, sharding.SAMPLING_RULES)
            self.params = jax.device_put(self.params, sharding.param_shardings(*axes))
        return self

    def tokenize(self, images: np.ndarray, **options: Any) -> np.ndarray:
        """Images to codes; see `Tokenizer.tokenize`."""
        return self._held(self.tokenizer, "tokenizer").tokenize(images, **options)

    def detokenize(self, codes: np.ndarray, **options: Any) -> np.ndarray:
        """Codes to images; see `Tokenizer.detokenize`."""
        return self._held(self.tokenizer, "tokenizer").detokenize(codes, **options)

    def resize(self, image: Any) -> np.ndarray:
        """An image as Emu3's image processor resizes it; see `Tokenizer.resize`."""
        return self._held(self.tokenizer, "tokenizer").resize(image)

    def _held(self, part: _Part | None, name: str) -> _Part:
        """The part; UserError says how to come by one that the folder did not hold."""
        if part is None:
            remedy = {
                "tokenizer": "an image tokenizer; give its folder, load(DIR, tokenizer=DIR2)",
                "params": "a language model; load the folder of one and give this as tokenizer=",
                "vocabulary": f"a text tokenizer; put {TEXT_FILE} and {VISION_FILE} beside the weights",
            }
            raise UserError(f"{self.name}: holds no {remedy[name].removeprefix('an ').removeprefix('a ')}")
        return part

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Next-token logits f32 [B, T, V] of token ids int32 [B, T], with consecutive positions."""
        params, config = self._held(self.params, "params"), self._held(self.config, "params")
        tokens = request.array("tokens", tokens, np.int32)
        if tokens.ndim != 2 or tokens.size == 0:
            raise UserError(f"tokens: expected int32 [B, T], got shape {tokens.shape}")
        if tokens.shape[1] > config.max_length:
            raise UserError(f"tokens: rows of {tokens.shape[1]}, the model has {config.max_length} positions")
        if tokens.min() < 0 or tokens.max() >= config.vocab_size:
            raise UserError(f"tokens: ids must lie in [0, {config.vocab_size}), got {tokens.min()}..{tokens.max()}")
        return np.asarray(_logits(config, params, tokens))

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the weights of both parts: the model's identity, wherever its folder lies."""
        arrays = {f"language_model.{k}": v for k, v in flatten(self.params or {}).items()}
        if self.tokenizer is not None:
            arrays |= {f"tokenizer.{k}": v for k, v in flatten(self.tokenizer.variables).items()}
            if self.tokenizer.painter:
                arrays |= {f"decoder.{k}": v for k, v in flatten(self.tokenizer.painter[0]).items()}
        return provenance.weights_hash(arrays)

    def policy_with(self, **sampling: Any) -> Sampling:
        """The model's default policy with some fields changed; UserError names an unknown or bad one."""
        return from_dict(Sampling, {**dataclasses.asdict(self.policy), **sampling}, "sampling")

    def check(self, case: Case) -> None:
        """Raises UserError for a case that cannot be sampled; nothing is computed on the device."""
        layout, words = self._held(self.layout, "params"), self._held(self.vocabulary, "vocabulary")
        request.prompt(case.prompt, empty=True)
        if case.prior is not None:
            grid = (layout.height, layout.width)
            if request.codes(case.prior, grid, words.codebook_size) is None:
                raise UserError(f"prior: expected codes, int {list(grid)}")
            older = case.timeline.older if case.timeline else ()
            if any(request.codes(film.codes, grid, words.codebook_size) is None for film in older):
                raise UserError(f"older: expected codes, int {list(grid)}")
        sequence.prompt_tokens(words, layout, case.prior, case.prompt, timeline=case.timeline)

    def prepared(self) -> tuple[Any, TransformerConfig]:
        """Parameters and config as decoding reads them (`sampling.generate.prepare`): first arguments of `generate` and
        `sample_queue`. Made for the first request, kept for the next ones, and freed with the model."""
        if self._prepared is None or self._prepared[0] is not self.params:
            self._prepared = None  # two would not fit where one does
            params, config = self._held(self.params, "params"), self._held(self.config, "params")
            self._prepared = params, prepare(params, config, self._held(self.grammar, "vocabulary"))
        return self._prepared[1]

    def sample(
        self,
        cases: Sequence[Case],
        seed: int = 0,
        policy: Sampling | None = None,
        *,
        keep: np.ndarray | None = None,
        codes: np.ndarray | None = None,
        text: bool = True,
        watch: Watch | None = None,
    ) -> Samples:
        """One counterfactual per case, in one batch; a case's prior of None drops prior and prompt (null prompt).

        keep, codes, text, watch: as `sampling.generate.generate` takes them. UserError names a case that cannot be
        sampled.

        The batch is filled up to a `sharding.bucket` with its last case, which then goes the same way several times:
        that takes no further pass. At one bucket, and one of prompt slots (`pad_prompts`), a case's result depends on
        nothing but the case and the seed.
        """
        seed, policy = request.seed(seed), policy or self.policy
        layout, words = self._held(self.layout, "params"), self._held(self.vocabulary, "vocabulary")
        for case in cases:
            with request.prefix_errors(f"case {case.pair_id}"):
                self.check(case)
        count, size = len(cases), sharding.bucket(len(cases), self.mesh)
        batch = [*cases, *list(cases[-1:]) * (size - count)]
        prompts = pad_prompts(
            words,
            layout,
            [c.prior for c in batch],
            [c.prompt for c in batch],
            policy=policy,
            timelines=[c.timeline for c in batch],
        )
        keys = jax.vmap(jax.random.key)(np.asarray([c.fold(seed) for c in batch], np.uint32))
        out = generate(
            *self.prepared(),
            layout,
            self._held(self.grammar, "vocabulary"),
            policy,
            prompts,
            keys,
            keep=None if keep is None else sharding.fill(keep, size),
            codes=None if codes is None else sharding.fill(codes, size),
            text=text,
            mesh=self.mesh,
            watch=watch,
        )
        rows = np.asarray(out.text)[:count] if text else ()
        texts = [self._words(row) for row in rows]
        drawn = np.asarray(out.codes)[:count]
        return Samples(self._images(drawn, cases), texts if text else None, drawn)

    def sample_queued(
        self, batches: Sequence[Sequence[Case]], seed: int = 0, policy: Sampling | None = None, *, slots: int
    ) -> Iterator[list[Prediction | UserError]]:
        """`sample` of many batches, one after the other, their cases drawn through a queue (`sampling.queue`).

        Args:
          batches: of one size; the last may be shorter.
          seed, policy: as there.
          slots: cases at a time, filled up to a `sharding.bucket`; so many codes at a time become images, too. At one
            number of slots a case's result depends on the case and the seed alone.

        Yields:
          What became of a batch, in order, as soon as all of it is drawn; a case that cannot be sampled is its error.
        """
        seed, policy, size = request.seed(seed), policy or self.policy, sharding.bucket(slots, self.mesh)
        layout, words = self._held(self.layout, "params"), self._held(self.vocabulary, "vocabulary")
        requests = (
            Request(case.prior, case.prompt, case.fold(seed), tag=(number, i), timeline=case.timeline)
            for number, batch in enumerate(batches)
            for i, case in enumerate(batch)
        )
        parts = (*self.prepared(), layout, self._held(self.grammar, "vocabulary"), policy, words, requests)
        results, found = sample_queue(*parts, slots=size, mesh=self.mesh), {}
        for number, batch in enumerate(batches):
            own = [(number, i) for i in range(len(batch))]
            while not all(tag in found for tag in own):
                result = next(results)
                found[result.request.tag] = result
            yield self._predictions(batch, [found.pop(tag) for tag in own], size)

    def _predictions(self, batch: Sequence[Case], results: list[Result], size: int) -> list[Prediction | UserError]:
        """Images in one batch shape, filled up to so many, whatever failed."""
        drawn = [(case, r.codes) for case, r in zip(batch, results, strict=True) if r.codes is not None]
        images: Iterator[np.ndarray] = iter(())
        if drawn:
            cases, size = [case for case, _ in drawn], max(size, len(drawn))
            codes = sharding.fill(np.stack([codes for _, codes in drawn]), size)
            images = iter(self._images(codes, [*cases, *cases[-1:] * (size - len(cases))]))
        return [r.error or Prediction(next(images), self._words(r.text)) for r in results]

    def _words(self, ids: Sequence[int]) -> str:
        return self._held(self.vocabulary, "vocabulary").decode([int(t) for t in ids if t >= 0]).strip()

    def _images(self, codes: np.ndarray, cases: Sequence[Case]) -> np.ndarray:
        """uint8 [B, H, W] of codes drawn for cases, painted with the priors' pixels where they have them."""
        painter = self._held(self.tokenizer, "tokenizer").painter
        with_pixels = [i for i, case in enumerate(cases) if case.pixels is not None and painter]
        if len(with_pixels) == len(cases):
            prior, near = (np.stack([getattr(case, name) for case in cases]) for name in ("pixels", "prior"))
            return self.detokenize(codes, prior=prior, prior_codes=near)
        images = self.detokenize(codes)
        if with_pixels:
            prior, near = (np.stack([getattr(cases[i], name) for i in with_pixels]) for name in ("pixels", "prior"))
            images[with_pixels] = self.detokenize(codes[with_pixels], prior=prior, prior_codes=near)
        return images
