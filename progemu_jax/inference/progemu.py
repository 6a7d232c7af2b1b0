"""ProgEmu as users meet it. Built by `progemu_jax.load`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from progemu_jax.checkpoints import export
from progemu_jax.convert import folders, taming
from progemu_jax.convert.components import PRIOR_DECODER, PROGEMU
from progemu_jax.convert.config_reader import Reader
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.convert.emu3 import transfer as emu3_transfer
from progemu_jax.convert.emu3.image_processor import ImageProcessor
from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.files import findings as findings_file
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import from_dict, to_dict
from progemu_jax.inference import films, request
from progemu_jax.inference.change_map import CHANGE_THRESHOLD, change_maps
from progemu_jax.inference.counterfactual import Counterfactual
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.inference.pixels import gray
from progemu_jax.inference.sampler import Sampler
from progemu_jax.models import linear, transformer
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.sampling import memory
from progemu_jax.sampling.engine import Engine
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.watch import Progress, Watch
from progemu_jax.scorers.reidentification import IDENTITY, Reidentifier
from progemu_jax.text import findings, rules
from progemu_jax.text.controls import DUMMY_PRIOR
from progemu_jax.text.findings import NO_CHANGE, PHANTOM
from progemu_jax.text.sequence import Layout
from progemu_jax.text.timeline import Older, Timeline


class ProgEmu(Sampler):
    """A trained ProgEmu, a `counterfactual.CounterfactualModel` that also takes masks, days and earlier films, and can
    `dial`, `rollout` and `explain`. One patient at a time; `sample` takes many cases at once.

    reidentifier: of a run that has trained one, for films that may be of another patient; else None.
    """

    reidentifier: Reidentifier | None = None

    def counterfactual(
        self,
        prior: Any = None,
        prompt: str = "",
        num_samples: int = 1,
        seed: int = 0,
        *,
        days: float | None = None,
        priors: Sequence[Any] | None = None,
        intervals: Sequence[float | None] | None = None,
        mask: Any = None,
        text: bool = True,
        watch: Watch | None = None,
        **sampling: Any,
    ) -> Counterfactual:
        """What the radiograph would look like, and the text that explains it.

        Args:
          prior: the prior radiograph: uint8 or float [0, 1] array [H, W], PIL image or path (resized to the model's
            size), or its codes, int32 [h, w]. None: no patient, the image is made from the prompt alone.
          prompt: progression prompt, e.g. "New small left pleural effusion." Empty, with `days`: what is expected.
          num_samples: S futures.
          seed: 0 <= seed < 2**32; the same seed gives the same futures.
          days: from the (newest) prior to the follow-up; None: unknown.
          priors: in place of `prior`, films of one patient, the oldest first, each as `prior`; those before the last
            are registered onto it, but where they are codes. intervals: days from each film to the next, None: unknown.
          mask: where the image may change: bool [H, W] of the model's image size or bool [h, w], see `request.mask`;
            "auto" takes `change_mask`. Outside it the prior's codes are kept. None: everywhere.
          text: False leaves the interpretation out.
          watch: is told how far it is, and can end it, as for `counterfactual.CounterfactualModel`.
          **sampling: fields of `sampling.policy.Sampling` to change.

        Raises:
          UserError: an image, prompt, mask, seed or setting that cannot be used; days or films that the model has not
            learnt; films out of order, or of which one has no match on the last.

        Warns (`errors.PromptWarning`) as `request.warn_unread` says.
        """
        given_films, apart = films.asked(prior, priors, intervals)
        empty = days is not None
        asked = self._checked([prompt], num_samples, seed, mask, text, sampling, empty=empty, days=days, older=apart)
        codes, given = self._codes_of(given_films[-1])
        if prompt:
            request.warn_unread(prompt, self.findings)
        when = self._timeline(asked.days, given_films, apart, codes, given)
        samples = range(asked.num_samples)
        cases = [Case("request", codes, asked.prompts[0], sample, given, when) for sample in samples]
        return self._futures(asked, [prompt], cases, given, watch)[0]

    def over_days(
        self,
        prior: Any = None,
        prompt: str = "",
        days: Sequence[float] = (7, 30, 90),
        num_samples: int = 1,
        seed: int = 0,
        *,
        priors: Sequence[Any] | None = None,
        intervals: Sequence[float | None] | None = None,
        mask: Any = None,
        text: bool = True,
        watch: Watch | None = None,
        **sampling: Any,
    ) -> dict[float, Counterfactual]:
        """The same prompt, or none, after so many days each: {7: ..., 30: ..., 90: ...}.

        Films, seed and noise are the same for all, so that what differs is the time's doing. Arguments as for
        `counterfactual`.
        """
        if isinstance(days, str) or not isinstance(days, Sequence) or not days or None in days:
            raise UserError("days: expected a list of days, such as (7, 30, 90)")
        given_films, apart = films.asked(prior, priors, intervals)
        together, samples = len(days), range(request.num_samples(num_samples))
        asked = [
            self._checked([prompt], num_samples, seed, mask, text, sampling, empty=True, together=together, days=one,
                          older=apart)
            for one in days
        ]  # fmt: skip
        codes, given = self._codes_of(given_films[-1])
        if prompt:
            request.warn_unread(prompt, self.findings)
        when = self._timeline(None, given_films, apart, codes, given)
        cases = [
            Case("request", codes, one.prompts[0], sample, given, dataclasses.replace(when, days=one.days))
            for one in asked
            for sample in samples
        ]
        return dict(zip(days, self._futures(asked[0], [prompt] * len(days), cases, given, watch), strict=True))

    def dial(
        self,
        prior: Any,
        prompt: str,
        num_samples: int = 1,
        seed: int = 0,
        *,
        mask: Any = None,
        text: bool = True,
        watch: Watch | None = None,
        **sampling: Any,
    ) -> dict[str, Counterfactual]:
        """The same change in each grade of severity: {"mild": ..., "moderate": ..., "severe": ...}.

        The grade of every finding that the prompt says is there is set (`rules.with_grade`: "New left pleural
        effusion." with small, moderate, large); prior, seed and noise are the same for all, so that what differs is the
        grade's doing. Arguments as for `counterfactual`. UserError also for a prompt without such a finding.
        """
        read = request.prompt(prompt)
        graded = {grade: rules.with_grade(read, grade, self.findings) for grade in findings.GRADES}
        prompts = {grade: text for grade, text in graded.items() if text is not None}
        if len(prompts) < len(graded):
            raise UserError(
                "prompt: names no finding whose grade can be set; say what is new or worse, "
                "e.g. 'New left pleural effusion.'"
            )
        asked = self._checked(list(prompts.values()), num_samples, seed, mask, text, sampling, together=len(prompts))
        codes, given = self._codes_of(prior)
        request.warn_unread(prompt, self.findings)
        samples = range(asked.num_samples)
        cases = [Case("request", codes, graded, sample, given) for graded in asked.prompts for sample in samples]
        return dict(zip(prompts, self._futures(asked, asked.prompts, cases, given, watch), strict=True))

    def rollout(
        self,
        prior: Any,
        prompts: Sequence[str],
        num_samples: int = 1,
        seed: int = 0,
        *,
        mask: Any = None,
        text: bool = True,
        watch: Watch | None = None,
        **sampling: Any,
    ) -> list[Counterfactual]:
        """A course: each step's images are the priors of the next, one result a prompt.

        The codes themselves are handed on, so no step pays the tokenizer's error again; where the tokenizer paints with
        the prior's pixels, these are the image painted last. Each future goes its own way.
        The first step is `counterfactual(prior, prompts[0], ...)`. Arguments as there.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
            raise UserError("prompts: expected a list of prompts, one a step")
        asked = self._checked(prompts, num_samples, seed, mask, text, sampling)
        codes, given = self._codes_of(prior)
        for prompt in dict.fromkeys(prompts):
            request.warn_unread(prompt, self.findings)
        priors, pixels, out = [codes] * asked.num_samples, [given] * asked.num_samples, []
        for step, (prompt, read) in enumerate(zip(prompts, asked.prompts, strict=True)):
            name = f"request/{step}" if step else "request"
            cases = [Case(name, priors[sample], read, sample, pixels[sample]) for sample in range(len(priors))]
            told = watch and partial(_watch_step, watch, step + 1, len(prompts))
            out += self._futures(asked, [prompt], cases, given, told, own_priors=step > 0)
            priors, pixels, given = list(np.asarray(out[-1].codes)), list(out[-1].images), None
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
        asked = self._checked([prompt], num_samples, seed, None, True, sampling, empty=True)
        before = self._codes_of(prior)[0]
        after = self._codes_of(followup, "followup", near=before)[0]
        cases = [Case("request", before, asked.prompts[0], sample) for sample in range(asked.num_samples)]
        keep, codes = (np.stack([x] * asked.num_samples) for x in (np.ones(after.shape, bool), after))
        return self.sample(cases, asked.seed, asked.policy, keep=keep, codes=codes).texts or []

    def change_map(self, prior: Any, prompt: str) -> np.ndarray:
        """How much the prompt moves the model at each place, f32 [h, w] in [0, 1]; see `change_map.change_maps`."""
        asked = self._checked([prompt])
        case = self._codes_of(prior)[0], asked.prompts[0]
        config, layout = self._held(self.config, "params"), self._held(self.layout, "params")
        return change_maps(self.params, config, layout, self._held(self.vocabulary, "vocabulary"), [case], NO_CHANGE)[0]

    def change_mask(self, prior: Any, prompt: str, threshold: float = CHANGE_THRESHOLD) -> np.ndarray:
        """Where the prompt would change the image, bool [h, w]: the automatic mask, to be used or edited.

        It is `change_map` from `threshold` on; empty for a prompt that says by its words that nothing changed
        (`rules.says_no_change`), so that such a prompt returns the prior.
        """
        found = self.change_map(prior, prompt)
        return np.zeros(found.shape, bool) if rules.says_no_change(prompt) else found >= threshold

    def prior_codes(self, prior: Any) -> np.ndarray:
        """int32 [h, w] codes of a prior given in any of the forms that `counterfactual` takes."""
        self._checked()
        return self._codes_of(prior)[0]

    def _checked(
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
        days: float | None = None,
        older: Sequence[float | None] = (),
    ) -> request.Checked:
        """Everything of a request but its images, checked before any work.

        empty: prompts may be. together: how many times num_samples are in one batch. days: to the follow-up. older:
        from each film before the prior to it.
        """
        tokenizer, config = self._held(self.tokenizer, "tokenizer"), self._held(self.config, "params")
        layout, grammar = self._held(self.layout, "params"), self._held(self.grammar, "vocabulary")
        grid, read, days = (layout.height, layout.width), [], request.days(days)
        blank = np.zeros(grid, np.int32)
        when = Timeline(days, tuple(Older(blank, one) for one in older))
        for step, prompt in enumerate(prompts):
            with request.prefix_errors(f"step {step + 1}") if len(prompts) > 1 else contextlib.nullcontext():
                read.append(request.prompt(prompt, empty=empty))
                self.check(Case("request", blank, read[-1], timeline=when))
        if isinstance(mask, str):
            if mask != "auto":
                raise UserError(f"mask={mask[:40]!r}: expected a bool array, 'auto' or None")
        else:
            factor = tokenizer.config.factor
            mask = np.ones(grid, bool) if mask is None else request.mask(mask, grid, factor)
        num_samples, seed = request.num_samples(num_samples), request.seed(seed)
        policy = self.policy_with(**(sampling or {}))
        with request.prefix_errors("num_samples"):
            engine = Engine(config, layout, grammar, policy)
            rows = sharding.bucket(num_samples * together, self.mesh)
            memory.check(engine, rows, layout.length - layout.image_tokens)
        return request.Checked(read, num_samples, seed, policy, mask, text, days)

    def _timeline(
        self,
        days: float | None,
        given_films: Sequence[Any],
        apart: Sequence[float | None],
        prior: np.ndarray,
        given: Any,
    ) -> Timeline:
        """The films before the last, registered onto it, with their days. prior: codes of the last film; given: its
        pixels, or None."""
        older = []
        for number, (film, before) in enumerate(zip(given_films[:-1], apart, strict=True)):
            codes, pixels = self._codes_of(film, f"priors[{number}]", near=prior)
            if pixels is not None and given is not None:
                films.warn_stranger(self.reidentifier, given, pixels, f"priors[{number}]")
                codes = self.tokenize(films.onto(given, pixels, f"priors[{number}]"), near=prior, slack=self.slack)
            older.append(Older(codes, before))
        return Timeline(days, tuple(older))

    def _codes_of(
        self, image: Any, name: str = "prior", near: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(codes int32 [h, w], pixels uint8 [H, W] as given, or None) of an image in any form.

        near: the prior's codes, to which a follow-up leans as in training.
        """
        layout, words = self._held(self.layout, "params"), self._held(self.vocabulary, "vocabulary")
        grid, factor = (layout.height, layout.width), self._held(self.tokenizer, "tokenizer").config.factor
        size = (grid[0] * factor, grid[1] * factor)
        if image is None:
            return self.tokenize(np.full(size, DUMMY_PRIOR, np.uint8)), None
        with request.prefix_errors(name):
            codes = request.codes(image, grid, words.codebook_size)
            if codes is not None:
                return codes, None
            pixels = gray(image, size)
        leaning: dict[str, Any] = {} if near is None else {"near": near, "slack": self.slack}
        return self.tokenize(pixels, **leaning), pixels

    def _futures(
        self,
        asked: request.Checked,
        prompts: Sequence[str],
        cases: Sequence[Case],
        given: np.ndarray | None,
        watch: Watch | None,
        own_priors: bool = False,
    ) -> list[Counterfactual]:
        """Samples cases, num_samples of each prompt after each other, in one batch; a result for each prompt, in order.

        prompts: of the results, in the user's own words. own_priors: each sample has its own prior, and the results'
        priors and masks a leading axis S.
        """
        priors = np.stack([np.asarray(case.prior) for case in cases])
        if isinstance(asked.mask, str):  # automatic: one map for a prior and prompt, however many futures
            keys = [(prior.tobytes(), case.prompt) for prior, case in zip(priors, cases, strict=True)]
            first = dict(zip(keys, cases, strict=True))
            masks = {key: self.change_mask(case.prior, case.prompt) for key, case in first.items()}
            free = np.stack([masks[key] for key in keys])
        else:
            free = np.stack([asked.mask] * len(cases))
        made = self.sample(cases, asked.seed, asked.policy, keep=~free, codes=priors, text=asked.text, watch=watch)
        before, out = self._images(priors, cases), []  # in the images' own batch shape: equal codes give equal bits
        for prompt, start in zip(prompts, range(0, len(cases), asked.num_samples), strict=True):
            at = slice(start, start + asked.num_samples)
            own = at if own_priors else start
            when = cases[start].timeline or Timeline()
            settings = {
                "seed": asked.seed,
                "checkpoint": self.name,
                "sampling": {
                    **to_dict(asked.policy),
                    **when.summary(),
                    "free_codes": free[at].sum(axis=(1, 2)).tolist(),
                },
            }
            out.append(
                Counterfactual(
                    images=made.images[at],
                    texts=made.texts and made.texts[at],
                    codes=np.asarray(made.codes)[at],
                    prior=before[own],
                    prior_codes=priors[own],
                    mask=free[own],
                    prompt=prompt,
                    given=given,
                    settings=settings,
                    model_hash=lambda: self.hash,
                    findings=self.findings,
                )
            )
        return out


def _watch_step(watch: Watch, step: int, steps: int, progress: Progress) -> None:
    watch(progress._replace(step=step, steps=steps))


def load(path: str | os.PathLike, tokenizer: str | os.PathLike | None = None, quantize: str | None = None) -> ProgEmu:
    """ProgEmu from a run directory, an export or a folder of Emu3's or ProgEmu's weights; arguments as in `load.load`.

    Raises:
      UserError: nothing there that can be loaded, or parts that do not belong together.
    """
    parts = _load_parts(Path(path))
    if quantize and "params" in parts:
        parts["params"] = linear.quantize(parts["params"])
    if tokenizer is not None:
        other = _load_parts(Path(tokenizer), emu3_folder.TOKENIZER)
        if "tokenizer" not in other:
            raise UserError(f"{tokenizer}: holds no image tokenizer; give the folder of one as tokenizer=")
        parts["tokenizer"] = other["tokenizer"]
    found = parts.get("vocabulary")
    if found and "tokenizer" in parts and found.codebook_size != parts["tokenizer"].config.codebook_size:
        raise UserError(
            f"{path}: its vocabulary has {found.codebook_size} visual tokens, the image tokenizer "
            f"{parts['tokenizer'].config.codebook_size} codes; use those that belong together"
        )
    if found and found.size > parts["config"].vocab_size:
        raise UserError(
            f"{path}: its vocabulary has {found.size} ids, the model {parts['config'].vocab_size}; use its own"
        )
    names = ("params", "config", "layout", "vocabulary", "tokenizer", "stops")
    name = f"{Path(path).name}@{parts['hash'][:12]}"
    given: dict[str, Any] = {key: parts.get(key) for key in names}
    given |= {"policy": parts.get("policy", Sampling()), "slack": parts.get("slack", 0.0), "name": name}
    model = ProgEmu(**given, findings=parts.get("findings", PHANTOM))
    if (place := Path(path) / IDENTITY).exists():
        model.reidentifier = Reidentifier.load(place)
    return model


def _load_parts(path: Path, only: str | None = None) -> dict[str, Any]:
    """What a folder holds, as arguments of `ProgEmu` (and "hash"); only: one of its parts."""
    kind = folders.detect(path)
    if kind == folders.HUGGING_FACE:
        return _load_hugging_face(emu3_folder.open_folder(path), only)
    if kind == folders.VQGAN:
        vqgan = taming.open_model(path)
        return {"hash": "", "tokenizer": Tokenizer(vqgan.params(), vqgan.model)}
    parts: dict[str, Any] = {}
    found = folders.exports(path, (*PROGEMU, PRIOR_DECODER))
    for part, folder in found.items():
        if only not in (None, part) or part == PRIOR_DECODER:
            continue
        if part == emu3_folder.TOKENIZER:
            parts = {"hash": str(export.read_export_config(folder).get("hash", "")), **parts}
            parts["tokenizer"] = Tokenizer.load(folder, found.get(PRIOR_DECODER))
            continue
        layout = _layout(folder)
        params, config, model = export.load_model(
            folder, lambda c: from_dict(TransformerConfig, c["model"], "model"), transformer.init_params
        )
        with export.reading(folder):
            policy, where = folders.run_policy(path) or (config["policy"], "sampling")
            parts |= {
                "params": params,
                "config": model,
                "layout": layout,
                "policy": from_dict(Sampling, policy, where),
                "vocabulary": folders.vocabulary(folder, config),
                "stops": tuple(config["stops"]) if config.get("stops") else None,
                "slack": Reader(folder / "export.json", config).number("slack", 0.0),
                "hash": str(config["hash"]),
                "findings": findings_file.read(folder),
            }
    return parts


def _layout(folder: Path) -> Layout:
    config = export.read_export_config(folder)
    with export.reading(folder):
        layout = from_dict(Layout, config["layout"], "layout")
        layout.check()
    return layout


def _load_hugging_face(folder: emu3_folder.Folder, only: str | None) -> dict[str, Any]:
    parts: dict[str, Any] = {"hash": ""}
    for kind, part in folder.parts.items():
        if only not in (None, kind):
            continue
        if kind == emu3_folder.TOKENIZER:
            processor = from_dict(ImageProcessor, emu3_transfer.tokenizer_settings(folder)["image"], "image")
            parts["tokenizer"] = Tokenizer(part.params(), part.model, processor)
            continue
        settings = emu3_transfer.language_settings(folder)
        parts |= {
            "params": part.params(),
            "config": part.model,
            "layout": from_dict(Layout, settings["layout"], "layout"),
            "policy": from_dict(Sampling, settings["policy"], "sampling"),
            "vocabulary": folder.vocabulary(),
            "stops": tuple(settings["stops"]) or None,
            "slack": settings["slack"],
        }
    return parts
