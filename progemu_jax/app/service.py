"""What the page asks of a model, without Gradio: patients, prompts, answers; one decode at a time."""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from progemu_jax.app import uploads
from progemu_jax.data import images
from progemu_jax.errors import UserError
from progemu_jax.eval.metrics.text import agreement_counts
from progemu_jax.gallery import cases
from progemu_jax.gallery.cases import HeldOut
from progemu_jax.inference import pixels, request
from progemu_jax.inference.counterfactual import Counterfactual, CounterfactualModel
from progemu_jax.inference.load import find, load
from progemu_jax.inference.progemu import ProgEmu
from progemu_jax.sampling.watch import Progress, Watch
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.text import rules
from progemu_jax.text.findings import FINDINGS, GRADES, PHANTOM, names
from progemu_jax.text.understood import Understood, understood

PATIENTS = 6
MOST_FUTURES, MOST_STEPS = 8, 6
GRADE_NAMES = ("as written", *GRADES)
"""Of the severity slider, from 0."""
MOST_WAITING = 16
"""Requests, of all pages; further ones are refused."""
_TELL_EVERY = 0.2  # seconds
_PARTS = {"codes": "drawing the image", "tokens": "writing the text", "steps": "denoising"}


Tell = Callable[[float | None, str], None]
"""Is called about five times a second with the share of the present part (an image, a text) that is done, None before
the first, and a line for the user."""


class Stopped(Exception):
    """A request was stopped by its user."""


@dataclass(frozen=True)
class Ask:
    """A request of the page.

    prior: uint8 [H, W] at the model's size. prompts: one, or a course, one a step. grade: of GRADES, or None: as
    written. mask: bool [h, w], or None: everywhere.
    """

    prior: np.ndarray
    prompts: tuple[str, ...]
    futures: int = 1
    seed: int = 0
    grade: str | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Step:
    """What came of one prompt, S futures.

    out: the model's result. pngs: S PNG files with their provenance. scores: {finding that the prompt moves: its
    probabilities, f32 [S, 2], in (prior, future)}. marks: for each future its text's sentences, each with True where
    the scorer sees all that it states on the image, False where it does not, None where it states nothing of that kind
    or there is no scorer.
    """

    out: Counterfactual
    pngs: list[bytes]
    scores: dict[str, np.ndarray]
    marks: list[list[tuple[str, bool | None]]]

    def before(self, future: int) -> np.ndarray:
        """The prior that a future was drawn from, uint8 [H, W], as the model sees it."""
        return self.out.prior if self.out.prior.ndim == 2 else self.out.prior[future]


@dataclass(frozen=True)
class Answer:
    """steps: one a prompt; folder: a ZIP of the predictions folder(s); seconds: that it took."""

    steps: list[Step]
    folder: bytes
    seconds: float


class _Meter:
    """The `Watch` of a request, which another thread reads; raises Stopped once `stop` is set."""

    def __init__(self, stop: threading.Event):
        self._stop = stop
        self._seen: tuple[Progress, float, Progress, float] | None = None  # first of a part, newest; when they came

    def __call__(self, progress: Progress) -> None:
        if self._stop.is_set():
            raise Stopped
        now = time.monotonic()
        first, since = self._seen[:2] if self._seen else (progress, now)
        if (first.step, first.unit) != (progress.step, progress.unit):
            first, since = progress, now
        self._seen = first, since, progress, now

    def read(self) -> tuple[float, str] | None:
        """(share of the present part that is done, a line for the user), None before the first block."""
        if self._seen is None:
            return None
        first, since, now, at = self._seen
        text = f"Step {now.step} of {now.steps}: {_PARTS[now.unit]}" if now.steps > 1 else _PARTS[now.unit].capitalize()
        if made := now.done - first.done:
            left = (now.of - now.done) * (at - since) / made
            text += f", {'at most' if now.unit == 'tokens' else 'about'} {math.ceil(left)} s left"
        return now.done / now.of, text


class Service:
    """A model as the page needs it. One thread does all work on the model, a request after the other."""

    def __init__(
        self,
        model: CounterfactualModel,
        patients: Sequence[HeldOut] = (),
        scorer: PhantomScorer | None = None,
        cohort: str = "phantom",
    ):
        self.model, self.cohort = model, cohort
        self.progemu = model if isinstance(model, ProgEmu) else None  # masks, text and courses are its alone
        if self.progemu:
            factor = self.progemu.tokenizer.config.factor
            self.grid = (self.progemu.layout.height, self.progemu.layout.width)
            self.size = (self.grid[0] * factor, self.grid[1] * factor)
        else:
            self.grid, self.size = None, (model.image_size, model.image_size)
        self.scorer = scorer if scorer is not None and self.size == (scorer.image_size,) * 2 else None
        self.patients = [(case, images.resize(case.prior, self.size)) for case in patients]
        self._worker, self._lock = ThreadPoolExecutor(1, "model"), threading.Lock()
        self._works: list[Future] = []  # in their order

    @classmethod
    def load(cls, path: str, patients: int = PATIENTS) -> Service:
        """The model of what `progemu_jax.load` takes; where it was trained on the phantom, with held-out patients and
        a scorer. UserError: nothing to load, or a part that is missing."""
        place = find(path)
        origin = cases.origin(place)
        model, known = load(place), origin.cohort == "phantom"
        if isinstance(model, ProgEmu):
            model.prior_codes(None)  # says which part is missing
        scorer = PhantomScorer.load(origin.scorer) if known and origin.scorer else None
        with tempfile.TemporaryDirectory() as work:
            found = cases.held_out(Path(work), patients, origin.film, origin.tree) if known and patients else []
        return cls(model, found, scorer, origin.cohort)

    @property
    def findings(self):
        """That the model was trained on."""
        return getattr(self.model, "findings", PHANTOM)

    @cached_property
    def warm(self) -> Future:
        """The first request, whose programs are compiled or read back; it is started when this is first looked at."""
        ramp = np.linspace(0, 255, self.size[1]).astype(np.uint8)[None].repeat(self.size[0], 0)
        prior = self.patients[0][1] if self.patients else ramp
        ask = Ask(prior, ("New small left pleural effusion.",))
        return self._submit(self._make, ask, _Meter(threading.Event()))[0]

    def upload(self, path: str) -> tuple[np.ndarray, str]:
        """(uint8 [H, W] at the model's size, what to know of it) of a file; UserError is one sentence."""
        image, note = uploads.read(path)
        if self.cohort == "phantom":
            note = f"{note} This model knows the drawn phantom alone: what it makes of a real film means nothing."
        return pixels.gray(image, self.size), note.strip()

    def graded(self, prompt: str, grade: str | None) -> str:
        """The prompt with its grade words set, as `ProgEmu.dial` sets them; UserError where there is none to set."""
        if grade is None:
            return prompt
        if (found := rules.with_grade(request.prompt(prompt), grade, self.findings)) is None:
            raise UserError("severity: the prompt names no finding whose grade can be set; say what is new or worse")
        return found

    def read(self, prompt: str, grade: str | None = None) -> tuple[str, Understood]:
        """(the prompt as it is sent, what the rules read in it). UserError for one that no model takes."""
        request.prompt(prompt)
        sent = self.graded(prompt, grade)
        return sent, understood(sent, self.findings)

    def change_mask(
        self, prior: np.ndarray, prompt: str, tell: Tell = lambda share, text: None, stop: threading.Event | None = None
    ) -> np.ndarray:
        """Where the prompt would change the image, bool [h, w]: the automatic mask. The rest as for `answer`."""
        return self._wait(tell, stop or threading.Event(), lambda meter: self.progemu.change_mask(prior, prompt))

    def answer(self, ask: Ask, tell: Tell = lambda share, text: None, stop: threading.Event | None = None) -> Answer:
        """Makes an answer; waits until those that were asked for before are there.

        stop: ends the request when it is set. The model is free for the next one after the block of passes, or the
        compilation, that it is at.

        Raises:
          UserError: what is wrong with the request; too many wait.
          Stopped: `stop` was set.
        """
        return self._wait(tell, stop or threading.Event(), lambda meter: self._make(ask, meter))

    def _wait(self, tell: Tell, stop: threading.Event, function: Callable[[_Meter], Any]) -> Any:
        meter = _Meter(stop)
        work, before = self._submit(function, meter)
        while True:
            try:
                return work.result(timeout=_TELL_EVERY)
            except TimeoutError:
                if work.done():
                    raise
            if stop.is_set():
                work.cancel()
                raise Stopped
            if ahead := sum(not one.done() for one in before):
                tell(None, f"Waiting: {ahead} request{'s' if ahead > 1 else ''} before yours")
            else:
                tell(*meter.read() or (None, "Getting ready; the first request of its kind takes longest"))

    def _submit(self, function: Callable, *arguments: Any) -> tuple[Future, list[Future]]:
        """The function's work on the model's thread, and those before it."""
        with self._lock:
            before = [work for work in self._works if not work.done()]
            if len(before) > MOST_WAITING:
                raise UserError(f"busy: {MOST_WAITING} requests wait; ask again in a while")
            work = self._worker.submit(function, *arguments)
            self._works = [*before, work]
        return work, before

    def _make(self, ask: Ask, watch: Watch) -> Answer:
        start = time.monotonic()
        prompts = [self.graded(prompt, ask.grade) for prompt in ask.prompts]
        if self.progemu and len(prompts) > 1:
            outs = self.progemu.rollout(ask.prior, prompts, ask.futures, ask.seed, mask=ask.mask, watch=watch)
        elif len(prompts) > 1:
            raise UserError("course: a diffusion model makes one step at a time; give one prompt")
        else:
            more = {"mask": ask.mask} if self.progemu else {}
            outs = [self.model.counterfactual(ask.prior, prompts[0], ask.futures, ask.seed, watch=watch, **more)]
        with tempfile.TemporaryDirectory() as work:
            saved = Path(work) / "predictions"
            folders = [saved / f"step-{n}" for n in range(1, len(outs) + 1)] if len(outs) > 1 else [saved]
            steps = []
            for out, folder in zip(outs, folders, strict=True):
                out.save(folder, "app")
                pngs = [(folder / f"images/app-{s}.png").read_bytes() for s in range(len(out.images))]
                steps.append(self._judged(out, pngs))
            packed = Path(shutil.make_archive(f"{work}/predictions", "zip", work, "predictions")).read_bytes()
        return Answer(steps, packed, time.monotonic() - start)

    def _judged(self, out: Counterfactual, pngs: list[bytes]) -> Step:
        texts, count = out.texts or [""] * len(out.images), len(out.images)
        sentences = [rules.sentences(text) for text in texts]
        if self.scorer is None:
            return Step(out, pngs, {}, [[(sentence, None) for sentence in found] for found in sentences])
        priors = np.broadcast_to(out.prior, out.images.shape)
        seen = self.scorer(np.concatenate([priors, out.images]), "phantom", batch_size=2 * MOST_FUTURES)["finding_prob"]
        moved = [name for name, way in rules.changes(out.prompt).items() if way]
        columns = [FINDINGS.index(name) for name in moved]
        scores = {n: np.stack([seen[:count, c], seen[count:, c]], 1) for n, c in zip(moved, columns, strict=True)}
        return Step(out, pngs, scores, [supported(s, p) for s, p in zip(sentences, seen[count:], strict=True)])


def supported(sentences: Sequence[str], probabilities: np.ndarray) -> list[tuple[str, bool | None]]:
    """Each sentence, and whether a scorer sees on the image what it states: `eval.metrics.text.agreement_counts`.

    probabilities: f32 [F], of FINDINGS. None: it states of no finding that it is there or not.
    """
    claims = np.full((len(sentences), len(FINDINGS)), np.nan)
    for row, sentence in enumerate(sentences):
        for name, present in rules.states(sentence).items():
            claims[row, FINDINGS.index(name)] = present
    seen = np.broadcast_to(probabilities, claims.shape)
    agree, count = agreement_counts(claims, seen, names(PHANTOM), np.ones(claims.shape, bool), PHANTOM)
    verdicts = [bool(a == c) if c else None for a, c in zip(agree, count, strict=True)]
    return list(zip(sentences, verdicts, strict=True))
