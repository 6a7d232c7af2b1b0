"""A model's parts, and one batch of cases through them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from progemu_jax import provenance
from progemu_jax.checkpoints.arrays import flatten
from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import from_dict
from progemu_jax.inference import request
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.sampling.engine import Grammar
from progemu_jax.sampling.generate import generate, prepared
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import Prompts, pad_prompts
from progemu_jax.text import sequence
from progemu_jax.text.sequence import Layout
from progemu_jax.text.vocabulary import TEXT_FILE, VISION_FILE, Vocabulary


@dataclasses.dataclass(frozen=True)
class Samples:
    """A case a row: images uint8 [B, H, W]; texts, B of them, or None; codes int32 [B, h, w]."""

    images: np.ndarray
    texts: list[str] | None
    codes: np.ndarray


class Sampler:
    """Tokenizer, transformer and vocabulary, and what they do with a batch of cases.

    A part that the folder did not hold is None, and what needs it is a UserError. `stops`: ids that end a text
    (None: EOS).
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
    ):
        self.params, self.config, self.layout = params, config, layout
        self.vocabulary, self.tokenizer, self.policy, self.name = vocabulary, tokenizer, policy, name
        self.grammar = vocabulary and Grammar.of(vocabulary, stops)
        self._logits, self.mesh, self._programs = jax.jit(self._forward), None, {}

    def on(self, mesh: jax.sharding.Mesh) -> Sampler:
        """The same, working on a mesh of this host's devices: cases over its data axes, heads over tensor."""
        self.mesh, self._programs = mesh, {}
        if self.tokenizer:
            self.tokenizer.on(mesh)
        if self.params is not None:
            axes = (self.params, transformer.LOGICAL_AXES, mesh, sharding.SAMPLING_RULES)
            self.params = jax.device_put(self.params, sharding.param_shardings(*axes))
        return self

    def tokenize(self, images: np.ndarray, **options: Any) -> np.ndarray:
        """Images to codes; see `Tokenizer.tokenize`."""
        return self._need("tokenizer").tokenize(images, **options)

    def detokenize(self, codes: np.ndarray, **options: Any) -> np.ndarray:
        """Codes to images; see `Tokenizer.detokenize`."""
        return self._need("tokenizer").detokenize(codes, **options)

    def resize(self, image: Any) -> np.ndarray:
        """An image as Emu3's image processor resizes it; see `Tokenizer.resize`."""
        return self._need("tokenizer").resize(image)

    def _need(self, part: str) -> Any:
        value = getattr(self, part)
        if value is None:
            remedy = {
                "tokenizer": "an image tokenizer; give its folder, load(DIR, tokenizer=DIR2)",
                "params": "a language model; load the folder of one and give this as tokenizer=",
                "vocabulary": f"a text tokenizer; put {TEXT_FILE} and {VISION_FILE} beside the weights",
            }
            raise UserError(f"{self.name}: holds no {remedy[part].removeprefix('an ').removeprefix('a ')}")
        return value

    def _forward(self, params: Any, tokens: jax.Array) -> jax.Array:
        hidden, _ = Transformer(self.config).apply({"params": params}, tokens)
        return transformer.logits(params, hidden, (0, self.config.vocab_size))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Next-token logits f32 [B, T, V] of token ids int32 [B, T], with consecutive positions."""
        params = self._need("params")
        tokens = np.asarray(tokens, np.int32)
        if tokens.ndim != 2 or tokens.size == 0:
            raise UserError(f"tokens: expected int32 [B, T], got shape {tokens.shape}")
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise UserError(
                f"tokens: ids must lie in [0, {self.config.vocab_size}), got {tokens.min()}..{tokens.max()}"
            )
        return np.asarray(self._logits(params, tokens))

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the weights of both parts: the model's identity, wherever its folder lies."""
        arrays = {f"language_model.{k}": v for k, v in flatten(self.params or {}).items()}
        if self.tokenizer is not None:
            arrays |= {f"tokenizer.{k}": v for k, v in flatten(self.tokenizer.variables).items()}
        return provenance.weights_hash(arrays)

    def policy_with(self, **sampling: Any) -> Sampling:
        """The model's default policy with some fields changed; UserError names an unknown or bad one."""
        return from_dict(Sampling, {**dataclasses.asdict(self.policy), **sampling}, "sampling")

    def check(self, case: Case) -> None:
        """Raises UserError for a case that cannot be sampled; nothing is computed on the device."""
        request.prompt(case.prompt, empty=True)
        if case.prior is not None:
            grid = (self.layout.height, self.layout.width)
            if request.codes(case.prior, grid, self.vocabulary.codebook_size) is None:
                raise UserError(f"prior: expected codes, int {list(grid)}")
        sequence.prompt_tokens(self.vocabulary, self.layout, case.prior, case.prompt)

    def _generate(self, policy: Sampling, text: bool, config: TransformerConfig) -> Any:
        """`generate` of this model as a function of parameters, prompts, keys, keep and codes."""

        def run(params: Any, prompts: Prompts, keys: jax.Array, keep: jax.Array, codes: jax.Array) -> Any:
            return generate(
                params, config, self.layout, self.grammar, policy, prompts, keys, keep=keep, codes=codes, text=text
            )

        return run

    def over_mesh(self, policy: Sampling, text: bool, config: TransformerConfig) -> Any:
        """The same over the mesh: each data part its own cases; only a tensor axis exchanges anything."""
        if (policy, text) not in self._programs:
            names, sides = sharding.RULES["batch"], 2 if policy.guided else 1
            generate_local = self._generate(policy, text, config)

            def local(params: Any, prompts: Prompts, *rest: jax.Array) -> Any:
                prompts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prompts)  # cases, then their twins
                return generate_local(params, prompts, *rest)

            spread = jax.shard_map(
                local,
                mesh=self.mesh,
                in_specs=(PartitionSpec(), PartitionSpec(None, names), *(PartitionSpec(names),) * 3),
                out_specs=PartitionSpec(names),
                axis_names=set(names),
                check_vma=False,
            )

            def run(params: Any, prompts: Prompts, *rest: jax.Array) -> Any:
                prompts = jax.tree.map(lambda x: jnp.reshape(x, (sides, -1, *x.shape[1:])), prompts)
                return spread(params, prompts, *rest)

            self._programs[policy, text] = jax.jit(run)
        return self._programs[policy, text]

    def sample(
        self,
        cases: Sequence[Case],
        seed: int = 0,
        policy: Sampling | None = None,
        *,
        keep: np.ndarray | None = None,
        codes: np.ndarray | None = None,
        text: bool = True,
    ) -> Samples:
        """One counterfactual per case, in one batch; a case's prior of None drops prior and prompt (null prompt).

        keep, codes, text: as `sampling.engine.generate` takes them.
        """
        seed, policy = request.seed(seed), policy or self.policy
        for case in cases:
            with request.about(f"case {case.pair_id}"):
                self.check(case)
        prompts = pad_prompts(
            self.vocabulary,
            self.layout,
            [c.prior for c in cases],
            [c.prompt for c in cases],
            policy=policy,
        )
        keys = jax.vmap(jax.random.key)(np.asarray([c.fold(seed) for c in cases], np.uint32))
        grid = (len(cases), self.layout.height, self.layout.width)
        keep = np.zeros(grid, bool) if keep is None else np.asarray(keep, bool)
        codes = np.zeros(grid, np.int32) if codes is None else np.asarray(codes, np.int32)
        params, config = prepared(self.params, self.config, self.grammar)
        spread = self.mesh and len(cases) % sharding.data_parts(self.mesh) == 0
        run = (self.over_mesh if spread else self._generate)(policy, text, config)
        out = run(params, prompts, keys, keep, codes)
        rows = np.asarray(out.text) if text else ()
        texts = [self.vocabulary.decode([int(t) for t in row if t >= 0]).strip() for row in rows]
        drawn = np.asarray(out.codes)
        return Samples(self.detokenize(drawn), texts if text else None, drawn)
