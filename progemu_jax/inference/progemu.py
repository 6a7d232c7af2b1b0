"""`progemu_jax.load`: a trained model as users meet it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import to_dict
from progemu_jax.inference import request
from progemu_jax.inference.change_map import CHANGE_THRESHOLD, change_maps
from progemu_jax.inference.counterfactual import Counterfactual
from progemu_jax.inference.pixels import gray
from progemu_jax.inference.sampler import Sampler
from progemu_jax.sampling import memory
from progemu_jax.sampling.engine import Engine
from progemu_jax.sampling.policy import Sampling
from progemu_jax.text import findings, rules
from progemu_jax.text.controls import DUMMY_PRIOR
from progemu_jax.text.findings import NO_CHANGE


@dataclasses.dataclass(frozen=True)
class _Ask:
    """A request without its images. mask: bool [h, w], or "auto"."""

    count: int
    seed: int
    policy: Sampling
    mask: np.ndarray | str
    text: bool


class Model(Sampler):
    """A trained model as users meet it. Built by `progemu_jax.load`.

    One prior at a time; `sample` takes many cases at once.
    """

    def counterfactual(
        self,
        prior: Any,
        prompt: str,
        num_samples: int = 1,
        seed: int = 0,
        *,
        mask: Any = None,
        text: bool = True,
        **sampling: Any,
    ) -> Counterfactual:
        """What the radiograph would look like, and the text that explains it.

        Args:
          prior: the prior radiograph: uint8 or float [0, 1] array [H, W], PIL image or path (resized to the model's
            size), or its codes, int32 [h, w]. None: no patient, the image is made from the prompt alone.
          prompt: progression prompt, e.g. "New small left pleural effusion."
          num_samples: S futures.
          seed: 0 <= seed < 2**32; the same seed gives the same futures.
          mask: where the image may change: bool [H, W] of the model's image size or bool [h, w], see `requests.mask`;
            "auto" takes `change_mask`. Outside it the prior's codes are kept. None: everywhere.
          text: False leaves the interpretation out.
          **sampling: fields of `sampling.policy.Sampling` to change.

        Raises:
          UserError: an image, prompt, mask, seed or setting that cannot be used.
        """
        ask = self._ask([prompt], num_samples, seed, mask, text, sampling)
        codes, given = self._codes(prior)
        return self._futures(ask, [("request", codes, prompt, sample) for sample in range(ask.count)], given)[0]

    def dial(
        self,
        prior: Any,
        prompt: str,
        num_samples: int = 1,
        seed: int = 0,
        *,
        mask: Any = None,
        text: bool = True,
        **sampling: Any,
    ) -> dict[str, Counterfactual]:
        """The same change in each grade of severity: {"mild": ..., "moderate": ..., "severe": ...}.

        The grade of every finding that the prompt says is there is set (`radtext.with_grade`: "New left pleural
        effusion." with small, moderate, large); prior, seed and noise are the same for all, so that what differs is the
        grade's doing. Arguments as for `counterfactual`. UserError also for a prompt without such a finding.
        """
        prompts = {grade: rules.with_grade(request.prompt(prompt), grade) for grade in findings.GRADES}
        if None in prompts.values():
            raise UserError(
                "prompt: names no finding whose grade can be set; say what is new or worse, "
                "e.g. 'New left pleural effusion.'"
            )
        ask = self._ask(list(prompts.values()), num_samples, seed, mask, text, sampling, together=len(prompts))
        codes, given = self._codes(prior)
        runs = [("request", codes, graded, sample) for graded in prompts.values() for sample in range(ask.count)]
        return dict(zip(prompts, self._futures(ask, runs, given), strict=True))

    def rollout(
        self,
        prior: Any,
        prompts: Sequence[str],
        num_samples: int = 1,
        seed: int = 0,
        *,
        mask: Any = None,
        text: bool = True,
        **sampling: Any,
    ) -> list[Counterfactual]:
        """A course: each step's images are the priors of the next, one result a prompt.

        The codes themselves are handed on, so no step pays the tokenizer's error again. Each future goes its own way.
        The first step is `counterfactual(prior, prompts[0], ...)`. Arguments as there.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
            raise UserError("prompts: expected a list of prompts, one a step")
        ask = self._ask(prompts, num_samples, seed, mask, text, sampling)
        codes, given = self._codes(prior)
        priors, out = [codes] * ask.count, []
        for step, prompt in enumerate(prompts):
            name = f"request/{step}" if step else "request"
            runs = [(name, prior, prompt, sample) for sample, prior in enumerate(priors)]
            out += self._futures(ask, runs, given, own_priors=step > 0)
            priors, given = list(out[-1].codes), None
        return out

    def explain(
        self, prior: Any, followup: Any, prompt: str = "", num_samples: int = 1, seed: int = 0, **sampling: Any
    ) -> list[str]:
        """The interpretation of a given pair of images: no image is made.

        Args:
          prior, followup: as `counterfactual` takes a prior; of one patient, registered.
          prompt: what is known of the change; may be empty.
          num_samples, seed, **sampling: as there.

        Returns:
          num_samples texts.
        """
        ask = self._ask([prompt], num_samples, seed, None, True, sampling, empty=True)
        before, after = self._codes(prior)[0], self._codes(followup, "followup")[0]
        cases = [Case("request", before, prompt, sample) for sample in range(ask.count)]
        keep, codes = (np.stack([x] * ask.count) for x in (np.ones(after.shape, bool), after))
        return self.sample(cases, ask.seed, ask.policy, keep=keep, codes=codes).texts

    def change_map(self, prior: Any, prompt: str) -> np.ndarray:
        """How much the prompt moves the model at each place, f32 [h, w] in [0, 1]; see `control.change_maps`."""
        self._ask([prompt])
        codes, _ = self._codes(prior)
        return change_maps(self.params, self.config, self.layout, self.vocabulary, [(codes, prompt)], NO_CHANGE)[0]

    def change_mask(self, prior: Any, prompt: str, threshold: float = CHANGE_THRESHOLD) -> np.ndarray:
        """Where the prompt would change the image, bool [h, w]: the automatic mask, to be used or edited.

        It is `change_map` from `threshold` on; empty for a prompt that says by its words that nothing changed
        (`radtext.says_no_change`), so that such a prompt returns the prior.
        """
        found = self.change_map(prior, prompt)
        return np.zeros(found.shape, bool) if rules.says_no_change(prompt) else found >= threshold

    def prior_codes(self, prior: Any) -> np.ndarray:
        """int32 [h, w] codes of a prior given in any of the forms that `counterfactual` takes."""
        self._ask()
        return self._codes(prior)[0]

    def _ask(
        self,
        prompts: Sequence[str] = (),
        num_samples: int = 1,
        seed: int = 0,
        mask: Any = None,
        text: bool = True,
        sampling: dict[str, Any] | None = None,
        *,
        empty: bool = False,
        together: int = 1,
    ) -> _Ask:
        """Everything of a request but its images, checked before any work.

        empty: prompts may be. together: how many times num_samples are in one batch.
        """
        for part in ("tokenizer", "params", "vocabulary"):
            self._need(part)
        grid = (self.layout.height, self.layout.width)
        for step, prompt in enumerate(prompts):
            with request.about(f"step {step + 1}") if len(prompts) > 1 else contextlib.nullcontext():
                request.prompt(prompt, empty=empty)
                self.check(Case("request", np.zeros(grid, np.int32), prompt))
        if isinstance(mask, str):
            if mask != "auto":
                raise UserError(f"mask={mask[:40]!r}: expected a bool array, 'auto' or None")
        else:
            factor = self.tokenizer.config.factor
            mask = np.ones(grid, bool) if mask is None else request.mask(mask, grid, factor)
        count, seed, policy = (
            request.num_samples(num_samples),
            request.seed(seed),
            self.policy_with(**(sampling or {})),
        )
        with request.about("num_samples"):
            engine = Engine(self.config, self.layout, self.grammar, policy)
            memory.check(engine, count * together, self.layout.length - self.layout.image_tokens)
        return _Ask(count, seed, policy, mask, text)

    def _codes(self, image: Any, name: str = "prior") -> tuple[np.ndarray, np.ndarray | None]:
        """(codes int32 [h, w], pixels uint8 [H, W] as given, or None) of an image in any form."""
        grid, factor = (self.layout.height, self.layout.width), self.tokenizer.config.factor
        size = (grid[0] * factor, grid[1] * factor)
        if image is None:
            return self.tokenize(np.full(size, DUMMY_PRIOR, np.uint8)), None
        with request.about(name):
            codes = request.codes(image, grid, self.vocabulary.codebook_size)
            if codes is not None:
                return codes, None
            pixels = gray(image, size)
        return self.tokenize(pixels), pixels

    def _futures(
        self,
        ask: _Ask,
        runs: Sequence[tuple[str, np.ndarray, str, int]],
        given: np.ndarray | None,
        own_priors: bool = False,
    ) -> list[Counterfactual]:
        """Samples (name, prior codes, prompt, sample) in one batch; a result for each prompt, in order.

        own_priors: each sample has its own prior, and the results' priors and masks a leading axis S.
        """
        cases = [Case(*run) for run in runs]
        priors = np.stack([case.prior for case in cases])
        if isinstance(ask.mask, str):  # automatic: one map for a prior and prompt, however many futures
            first = {(case.prior.tobytes(), case.prompt): case for case in cases}
            masks = {key: self.change_mask(case.prior, case.prompt) for key, case in first.items()}
            free = np.stack([masks[case.prior.tobytes(), case.prompt] for case in cases])
        else:
            free = np.stack([ask.mask] * len(cases))
        made = self.sample(cases, ask.seed, ask.policy, keep=~free, codes=priors, text=ask.text)
        before, out = self.detokenize(priors), []  # in the images' own batch shape: equal codes give equal bits
        for start in range(0, len(runs), ask.count):
            at = slice(start, start + ask.count)
            own = at if own_priors else start
            settings = {
                "seed": ask.seed,
                "checkpoint": self.name,
                "sampling": {**to_dict(ask.policy), "free_codes": free[at].sum(axis=(1, 2)).tolist()},
            }
            out.append(
                Counterfactual(
                    images=made.images[at],
                    texts=made.texts and made.texts[at],
                    codes=made.codes[at],
                    prior=before[own],
                    prior_codes=priors[own],
                    mask=free[own],
                    prompt=cases[start].prompt,
                    given=given,
                    settings=settings,
                    model_hash=lambda: self.hash,
                )
            )
        return out
