"""What every model offers, whichever system it is of, and what it gives back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from progemu_jax.data.sources import safe_id
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case, Prediction, write_predictions
from progemu_jax.sampling.watch import Watch
from progemu_jax.text.findings import PHANTOM, Finding
from progemu_jax.text.understood import Understood, understood


@runtime_checkable
class CounterfactualModel(Protocol):
    """A trained model of either system: what users, and the stages of a run, ask of one. `progemu_jax.load` gives it.

    `inference.progemu.ProgEmu` can do more: `dial`, `rollout`, `explain`, masks.
    """

    @property
    def name(self) -> str:
        """What predictions call the model: its folder's name and the first digits of its checkpoint's hash."""

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the weights of all parts: the model's identity, wherever its folder lies."""

    def on(self, mesh: Mesh) -> Self:
        """Puts the model on a mesh of this host's devices, in place, and returns it: cases go over its data axes.

        A batch that does not divide over them runs unsplit.
        """

    def check(self, case: Case) -> None:
        """Raises UserError for a case that cannot be sampled; nothing is computed on a device."""

    def sample(self, cases: Sequence[Case], seed: int = 0, policy: Any = None) -> Samples:
        """One sample per case, in one batch.

        Args:
          cases: each with its prior as `files.predictions.Case` says.
          seed: 0 <= seed < 2**32; a case's own seed follows from it, its id and its sample number.
          policy: `sampling.policy.Sampling` or `sampling.diffusion.DiffusionSampling`; None takes the model's own.

        Raises:
          UserError: a seed or a case that cannot be used, naming the case.
        """

    def counterfactual(
        self,
        prior: Any,
        prompt: str,
        num_samples: int = 1,
        seed: int = 0,
        *,
        watch: Watch | None = None,
        **sampling: Any,
    ) -> Counterfactual:
        """num_samples futures of one prior (an image in any form) and prompt.

        watch: is called with a `sampling.watch.Progress` about ten times a second where a pass takes no longer; what
        it raises ends the call. The futures are the same: their programs are others, so but for draws near a tie.
        **sampling: fields of the policy.
        """


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a model makes of a batch of B cases, a case a row.

    images: uint8 [B, H, W]; texts: B interpretations, or None when none were asked for; codes: int32 [B, h, w]. A
    diffusion model has neither text nor codes: both are None.
    """

    images: np.ndarray
    texts: list[str] | None = None
    codes: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Counterfactual:
    """S futures of one prior and prompt. Synthetic: for research only.

    A diffusion model has no text, no codes and no mask: `texts`, `codes`, `prior_codes` and `mask` are None, what needs
    them (`entropy`, `composite`) is a UserError, and `prior` is `given`.

    Attributes:
      images: uint8 [S, H, W], for ProgEmu always `model.detokenize(codes)`. With a mask, pixels outside it are those of
        the tokenizer's decoder, which sees beyond a place: codes are kept exactly, pixels nearly; see `composite`.
      texts: S interpretations, or None when no text was asked for.
      codes: int32 [S, h, w].
      prior: uint8 [H, W], the prior as the model sees it: its codes, detokenized ([S, H, W] in a roll-out).
      prior_codes: int32 [h, w] ([S, h, w] in a roll-out).
      mask: bool [h, w], places that were free to change ([S, h, w] in a roll-out); elsewhere codes equal prior_codes.
      prompt: as asked; of a dial, with the grade.
      given: uint8 [H, W], the prior's pixels as given, at the model's size; None when codes or nothing were given.
      settings: seed, checkpoint and sampling, as PNG files carry them; free_codes counts each future's free places.
      model_hash: gives the hash of the weights (`CounterfactualModel.hash`), which takes a moment for a large model.
      findings: that the model was trained on.
    """

    images: np.ndarray
    texts: list[str] | None
    codes: np.ndarray | None
    prior: np.ndarray | None
    prior_codes: np.ndarray | None
    mask: np.ndarray | None
    prompt: str
    given: np.ndarray | None
    settings: dict[str, Any]
    model_hash: Callable[[], str] = dataclasses.field(repr=False)
    findings: tuple[Finding, ...] = dataclasses.field(default=PHANTOM, repr=False)

    @cached_property
    def understood(self) -> Understood:
        """What the rules read in the prompt, for whoever wrote it: the images do not depend on it.

        Plain data: `read`, a tuple of statements (finding, side, zone, grade, direction: text or None); `rest`, the
        words that were not read; `unknown`, findings that no model was trained on; `warning`, a sentence or None.
        `understood.to_dict()` is the same for JSON.
        """
        return understood(self.prompt, self.findings)

    @property
    def difference(self) -> np.ndarray:
        """images minus prior, int16 [S, H, W] gray levels: what the edit did. For ProgEmu without the tokenizer's own
        error; for a diffusion model with its autoencoder's. UserError where a diffusion model was given no prior."""
        if self.prior is None:
            raise UserError("difference: no prior was given")
        return self.images.astype(np.int16) - self.prior

    @cached_property
    def uncertainty(self) -> np.ndarray:
        """Standard deviation (n - 1) over the futures at each pixel, f32 [H, W], gray levels: the map whose calibration
        `progemu_jax.eval` measures. Needs two futures."""
        self._several()
        return self.images.std(axis=0, ddof=1, dtype=np.float64).astype(np.float32)

    @cached_property
    def entropy(self) -> np.ndarray:
        """Entropy over the futures of the code at each place, f32 [h, w], bits: 0 where all agree, log2(S) where no two
        do (the plug-in estimate, which a few futures cannot take further). Needs two futures, and codes."""
        self._several()
        if self.codes is None:
            raise UserError("entropy: a diffusion model has no codes; see uncertainty")
        out = np.empty(self.codes.shape[1:], np.float32)
        for place in np.ndindex(*out.shape):
            share = np.unique(self.codes[:, *place], return_counts=True)[1] / len(self.codes)
            out[place] = abs(share @ np.log2(share))
        return out

    def _several(self) -> None:
        if len(self.images) < 2:
            raise UserError("uncertainty: one future has none; ask for several, num_samples=8")

    def composite(self, feather: int | None = None) -> np.ndarray:
        """The futures with the prior's own pixels outside the mask, uint8 [S, H, W].

        Outside the mask they are exactly the prior given (or, where codes were given, those detokenized), so that the
        patient's fine detail, which the tokenizer loses, stays; where nothing was free they are the prior bit for bit.
        Inside, within `feather` pixels of the mask's border, prior and future are blended linearly. The result mixes
        real and synthetic pixels: `images` is what the model says, and what an evaluation should score.

        feather: None takes one less than half the side of a place.

        Raises UserError for a diffusion model, which takes no mask.
        """
        prior = self.prior if self.given is None else self.given
        if self.mask is None or self.codes is None or prior is None:
            raise UserError("composite: a diffusion model takes no mask")
        side = self.images.shape[1] // self.codes.shape[1]
        feather = max(side // 2 - 1, 0) if feather is None else feather
        mask = np.broadcast_to(self.mask, self.codes.shape)
        weight = _feathered(mask.repeat(side, axis=1).repeat(side, axis=2), feather)
        return np.rint(prior + weight * (self.images - prior.astype(np.float64))).astype(np.uint8)

    def save(self, folder: str | os.PathLike, name: str = "request") -> Path:
        """Writes a predictions folder: predictions.jsonl and a PNG a future, each with its provenance.

        name: of the case, its `pair_id`, and so part of the files' names. UserError when it cannot be, or when the
        folder already holds predictions.
        """
        folder = Path(folder)
        if not (isinstance(name, str) and safe_id(name)):
            raise UserError(f"name={name!r:.100}: expected letters, digits, '-', '_' and '.', and no path")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is no folder; choose another")
        if (folder / "predictions.jsonl").exists():
            raise UserError(f"{folder}: holds predictions already; choose another folder")
        texts: Sequence[str | None] = self.texts or [None] * len(self.images)
        made = {s: Prediction(image, text) for s, (image, text) in enumerate(zip(self.images, texts, strict=True))}
        cases = [Case(name, None, self.prompt, s) for s in made]
        return write_predictions(
            folder,
            cases,
            lambda batches: [[made[case.sample] for case in batch] for batch in batches],
            batch_size=len(cases),
            name="save",
            model=self.model_hash(),
            **self.settings,
        )


def _feathered(mask: np.ndarray, feather: int) -> np.ndarray:
    """bool [..., H, W] -> weights in [0, 1]: 0 outside, rising in feather + 1 steps from the border inwards.

    The image's own edge is no border.
    """
    total, inner = mask.astype(np.float64), mask
    for _ in range(feather):
        padded = np.pad(inner, [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
        height, width = mask.shape[-2:]
        windows = (padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3))
        inner = np.logical_and.reduce(list(windows))
        total += inner
    return total / (feather + 1)
