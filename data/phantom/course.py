"""Findings that run a course: they grow and resolve in continuous time, at rates of the patient's own.

Given the patient the eight findings are independent. Each is absent, growing, resolving or stable. Within a mode its
severity s moves without chance: growing ds/dt = g (1 - s), resolving ds/dt = -k s, absent and stable ds/dt = 0. Modes
change by chance at the HAZARDS, and what has resolved to PRESENT is absent from then on. A patient's g and k of a
finding are lognormal and hold for life, so that two films tell what one does not: the mode, and how fast.

The process is stationary: a patient's first study is at no particular time. NumPy alone, float64 inside.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.text.findings import FINDINGS, PRESENT

from .patient import Patient, State, days_between, draw_sites, next_sites, prevalence

MODES = ("absent", "growing", "resolving", "stable")
ABSENT, GROWING, RESOLVING, STABLE = range(len(MODES))

# Days: median 1/g, median 1/k, and from onset to absence, so that the PREVALENCE comes out.
TIMES = {
    "left pleural effusion": (40, 30, 167),
    "right pleural effusion": (40, 30, 167),
    "left pneumothorax": (30, 20, 147),
    "right pneumothorax": (30, 20, 147),
    "cardiomegaly": (60, 50, 211),
    "pulmonary edema": (25, 20, 145),
    "atelectasis": (30, 25, 159),
    "consolidation": (30, 30, 175),
}
SPREAD = 0.7  # standard deviation of ln g and ln k over patients
HAZARDS = np.zeros((len(MODES), len(MODES)))  # jumps a day, from the row's mode to the column's
HAZARDS[ABSENT, GROWING] = 1  # times `Latent.onset`
HAZARDS[GROWING, RESOLVING] = 1 / 35  # a treatment begins
HAZARDS[GROWING, STABLE] = 1 / 80
HAZARDS[RESOLVING, STABLE] = 1 / 500
HAZARDS[RESOLVING, GROWING] = 1 / 1000  # relapse
HAZARDS[STABLE, GROWING] = 1 / 120
_MEDIANS, _DAYS = np.array([t[:2] for t in TIMES.values()], float), np.array([t[2] for t in TIMES.values()], float)
_TOTAL = HAZARDS.sum(1)
_CUMULATIVE = HAZARDS.cumsum(1) / _TOTAL[:, None]
_ONSET = (0.18, 0.40)  # severity at onset, uniform
_TRACE, _TRACES = 0.35, (0.02, 0.12)  # share of the absent that leave a trace, uniform
_BURN_IN = 1500.0  # days

NOISE = 0.04  # standard deviation of a severity as one film shows it
_LIBRARY, _PARTICLES = 60_000, 20_000


@dataclass(frozen=True)
class Latent:
    """All that the future depends on. Arrays of one shape, [..., 8] in the order of FINDINGS where not said otherwise.

    severity: float64 in [0, 1]. mode: int8, index into MODES. growth, decay: float64, g and k in 1/day, > 0. onset:
    float64, jumps from absent to growing a day.
    """

    severity: np.ndarray
    mode: np.ndarray
    growth: np.ndarray
    decay: np.ndarray
    onset: np.ndarray

    def __getitem__(self, index) -> Latent:
        return Latent(self.severity[index], self.mode[index], self.growth[index], self.decay[index], self.onset[index])

    def to_dict(self) -> dict:
        """Of shape [8], for "course" of a truth row; the severities are its disease's."""
        rates = {name: [float(x) for x in getattr(self, name)] for name in ("growth", "decay", "onset")}
        return {"mode": [MODES[m] for m in self.mode], **rates}


def true_state(row: dict) -> Latent:
    """The latent state, of shape [8], of a row of truth/studies.jsonl. UserError: its cohort has other dynamics."""
    course = row.get("course")
    if course is None:
        raise UserError(
            f"study {row['study_id']}: its truth tells no course; write the cohort with "
            f"config.data.phantom.dynamics=course"
        )
    mode = np.array([MODES.index(m) for m in course["mode"]], np.int8)
    rates = (np.array(course[name], float) for name in ("growth", "decay", "onset"))
    return Latent(np.asarray(row["disease"]["severities"], float), mode, *rates)


def drift(latent: Latent, days: float) -> np.ndarray:
    """Severities after `days` >= 0 if no mode changes: float32, shaped as latent's. Decay goes on below PRESENT."""
    return _flow(latent.mode, latent.severity, latent.growth, latent.decay, days).astype(np.float32)


def simulate(rng: np.random.Generator, latent: Latent, days: float, n: int) -> np.ndarray:
    """Draws n futures of one latent state, of shape [8]: the severities after `days` >= 0, float32 [n, 8]."""
    _check_days(days)
    start = Latent(*(np.broadcast_to(x, (n, *x.shape)) for x in vars(latent).values()))
    return advance(rng, start, days)[0].severity.astype(np.float32)


def futures(
    rng: np.random.Generator,
    patient: Patient,
    history: Sequence[tuple[float, Sequence[float]]],
    days: float,
    n: int,
    noise: float = NOISE,
) -> np.ndarray:
    """Draws from the true distribution of futures given films: severities float32 [n, 8], `days` >= 0 after the last.

    history: (day, severities [8]) of each film, oldest first, at least one. A severity is taken as the true one plus
    normal noise of standard deviation `noise` > 0; it may lie outside [0, 1]. Of the patient the congestion counts,
    which is taken as known; modes and rates are not. UserError: a history that is none.
    """
    _check_days(days)
    return advance(rng, posterior(rng, patient, history, n, noise), days)[0].severity.astype(np.float32)


def posterior(
    rng: np.random.Generator,
    patient: Patient,
    history: Sequence[tuple[float, Sequence[float]]],
    n: int,
    noise: float = NOISE,
) -> Latent:
    """Draws n latent states, of shape [n, 8], at the last film of a history; arguments and errors as `futures`.

    A particle filter for each finding: the films pick among 60,000 stationary states, of which 20,000 run on from film
    to film with jumps of their own.
    """
    days, seen = _checked(history)
    drawn = []
    for i, share in enumerate(_shares(patient)):
        particles, day = _library(i, float(share)), days[0]
        for k, (later, value) in enumerate(zip(days, seen[:, i], strict=True)):
            if later > day:
                particles, day = advance(rng, particles, later - day)[0], later
            misfit = ((particles.severity - value) / noise) ** 2 / 2
            weights = np.exp(misfit.min() - misfit)
            size = n if k == len(days) - 1 else _PARTICLES
            particles = particles[rng.choice(len(weights), size, p=weights / weights.sum())]
        drawn.append(particles)
    return Latent(*(np.stack(columns, 1) for columns in zip(*(vars(x).values() for x in drawn), strict=True)))


def sample_course(rng: np.random.Generator, patient: Patient, n: int) -> list[tuple[State, Latent, list[str]]]:
    """Draws n >= 1 consecutive studies, as far apart as those of `sample_trajectory`.

    Of each: its state, the latent state behind it, and the findings whose treatment began since the study before. Sites
    are kept while a finding persists. Both hold the severities as float32 has them.
    """
    size = len(FINDINGS)
    latent = _stationary(rng, np.arange(size), _onset(np.arange(size), _shares(patient)))
    out, days, sites, was = [], 0.0, draw_sites(rng), np.zeros(size, bool)
    treated = np.zeros(size, bool)
    for k in range(n):
        if k:
            step = days_between(rng)
            days += step
            latent, treated = advance(rng, latent, step)
        latent = replace(latent, severity=latent.severity.astype(np.float32).astype(float))
        sites = next_sites(rng, sites, was)
        state = State(severities=latent.severity, days=days, **sites)
        was = state.present
        out.append((state, latent, [name for name, began in zip(FINDINGS, treated, strict=True) if began]))
    return out


def advance(rng: np.random.Generator, latent: Latent, days: float) -> tuple[Latent, np.ndarray]:
    """Moves every entry on by `days`, each by chance of its own.

    Returns what it is then, and bool of the same shape: has a treatment begun (a jump from growing to resolving).
    """
    shape, rates = latent.severity.shape, [x.ravel() for x in (latent.growth, latent.decay, latent.onset)]
    severity, mode = latent.severity.flatten(), latent.mode.flatten()
    treated, left = np.zeros(mode.size, bool), np.broadcast_to(np.ravel(days), mode.shape).astype(float)
    at = np.flatnonzero(left > 0)
    while at.size:  # from jump to jump, until no entry has days left
        m, s, t, (g, k, onset) = mode[at], severity[at], left[at], (x[at] for x in rates)
        wait = rng.exponential(size=at.size) / (_TOTAL[m] * np.where(m == ABSENT, onset, 1))
        to_clear = np.where(m == RESOLVING, np.log(np.maximum(s / PRESENT, 1)) / k, np.inf)
        step = np.minimum(np.minimum(wait, to_clear), t)
        s, t = _flow(m, s, g, k, step), t - step
        cleared = to_clear == step
        jumps = (wait == step) & ~cleared
        where, what = rng.random((2, at.size))
        new = np.where(jumps, (where[:, None] >= _CUMULATIVE[m]).sum(1), np.where(cleared, ABSENT, m))
        s = np.where(jumps & (m == ABSENT), _ONSET[0] + (_ONSET[1] - _ONSET[0]) * what, s)
        trace = _TRACES[0] + (_TRACES[1] - _TRACES[0]) * what / _TRACE
        s = np.where(cleared, np.where(what < _TRACE, trace, 0), s)
        treated[at] |= (m == GROWING) & (new == RESOLVING)
        mode[at], severity[at], left[at] = new, s, t
        at = at[t > 0]
    return replace(latent, severity=severity.reshape(shape), mode=mode.reshape(shape)), treated.reshape(shape)


def _flow(mode, severity, growth, decay, days):
    """Severities after `days` within their modes."""
    grown = 1 - (1 - severity) * np.exp(-growth * days)
    return np.where(mode == GROWING, grown, severity * np.where(mode == RESOLVING, np.exp(-decay * days), 1))


def _shares(patient: Patient) -> np.ndarray:
    """float [8]: the share of the time that a finding is present; in whole percents, so that few libraries do."""
    return np.round(prevalence(patient), 2)


def _onset(finding, share):
    """Jumps from absent to growing a day that keep a finding present `share` of the time. Arrays, or single values."""
    return share / (1 - share) / _DAYS[finding]


def _stationary(rng, finding: np.ndarray, onset: np.ndarray) -> Latent:
    """One state for each entry of finding (index into FINDINGS), of patients that share nothing but their onset."""
    median = _MEDIANS[finding]
    rates = np.exp(rng.normal(0, SPREAD, median.shape)) / median
    healthy = np.zeros(len(finding))
    start = Latent(healthy, healthy.astype(np.int8), *rates.T, onset)
    return advance(rng, start, _BURN_IN)[0]


@functools.lru_cache(maxsize=64)
def _library(finding: int, share: float) -> Latent:
    """[60000] stationary states of a finding that is present `share` of the time; the same ones in every process."""
    rng = np.random.default_rng([finding, round(100 * share)])
    return _stationary(rng, np.full(_LIBRARY, finding), np.full(_LIBRARY, _onset(finding, share)))


def _checked(history) -> tuple[np.ndarray, np.ndarray]:
    """Days [films] and severities [films, 8] of a history."""
    days = np.array([day for day, _ in history], float)
    seen = np.array([severities for _, severities in history], float)
    if not len(days) or seen.shape[1:] != (len(FINDINGS),):
        raise UserError(f"history of shape {seen.shape}: give (day, {len(FINDINGS)} severities) of one film or more")
    if not (np.isfinite(days).all() and np.isfinite(seen).all() and (np.diff(days) > 0).all()):
        raise UserError(f"history at days {days.tolist()}: give finite severities, and days that ascend")
    return days, seen


def _check_days(days: float) -> None:
    if not 0 <= days < np.inf:
        raise UserError(f"days={days}: a future lies 0 days ahead or more")
