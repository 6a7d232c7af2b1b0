"""Findings that run a course: they grow and resolve in continuous time, at rates of the patient's own.

Given the patient the eight findings are independent. Each is absent, growing, resolving or stable. Within a mode its
severity s moves without chance: growing ds/dt = g (1 - s), resolving ds/dt = -k s, absent and stable ds/dt = 0. Modes
change by chance at the HAZARDS; a finding comes with a severity of its own, and what has resolved to PRESENT is absent
from then on. A patient's g and k of a finding are lognormal and hold for life, so that two films tell what one does
not: the mode, and how fast.

The process is stationary: a patient's first study is at no particular time. NumPy alone.
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
    "left pleural effusion": (35, 25, 129),
    "right pleural effusion": (35, 25, 129),
    "left pneumothorax": (30, 20, 114),
    "right pneumothorax": (30, 20, 114),
    "cardiomegaly": (60, 40, 167),
    "pulmonary edema": (25, 20, 115),
    "atelectasis": (30, 25, 130),
    "consolidation": (30, 25, 130),
}
SPREAD = 0.6  # standard deviation of ln g and ln k over patients
HAZARDS = np.zeros((len(MODES), len(MODES)))  # jumps a day, from the row's mode to the column's
HAZARDS[ABSENT, GROWING] = 1  # times `Latent.onset`
HAZARDS[GROWING, RESOLVING] = 1 / 20  # a treatment begins
HAZARDS[GROWING, STABLE] = 1 / 120
HAZARDS[RESOLVING, STABLE] = 1 / 500
HAZARDS[RESOLVING, GROWING] = 1 / 500  # relapse
HAZARDS[STABLE, GROWING] = 1 / 200
_TOTAL = HAZARDS.sum(1)
_CUMULATIVE = HAZARDS.cumsum(1) / _TOTAL[:, None]
_ONSET = (0.18, 0.90)  # severity at onset, uniform
_TRACE, _TRACES = 0.35, (0.02, 0.12)  # share of the absent that leave a trace, uniform
_BURN_IN = 1500.0  # days

NOISE = 0.04  # standard deviation of a severity as one film shows it
_PATIENTS, _MOMENTS, _APART = 100_000, 5, 300.0  # of a library: each patient at so many moments, days apart
_PARTICLES = 30_000


@dataclass(frozen=True)
class Latent:
    """All that the future depends on. Arrays of one shape, [..., 8] in the order of FINDINGS where not said otherwise.

    severity: float in [0, 1]. mode: int8, index into MODES. growth, decay: float, g and k in 1/day, > 0. onset: float,
    jumps from absent to growing a day.
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
    try:
        course = row["course"]
        mode = np.array([MODES.index(m) for m in course["mode"]], np.int8)
        rates = [np.array(course[name], float) for name in ("growth", "decay", "onset")]
        return Latent(np.array(row["disease"]["severities"], float), mode, *rates)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"study {row.get('study_id')}: its truth tells no course; write a cohort with "
            "config.data.phantom.dynamics=course"
        ) from None


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
    which is taken as known; modes and rates are not. UserError: a history, noise or days that make no sense.
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

    A particle filter for each finding: the first film picks 30,000 among half a million stationary states, which run on
    to the next film, each with jumps of its own, and are picked from again.
    """
    days, seen = _checked(history, noise)
    libraries = map(_library, TIMES.values(), _shares(patient).tolist())
    drawn = [_filter(rng, states, days, shown, n, noise) for states, shown in zip(libraries, seen.T, strict=True)]
    return _together(drawn, functools.partial(np.stack, axis=1))


def sample_course(rng: np.random.Generator, patient: Patient, n: int) -> list[tuple[State, Latent, list[str]]]:
    """Draws n >= 1 consecutive studies, as far apart as those of `sample_trajectory`.

    Of each: its state, the latent state behind it, and the findings whose treatment began since the study before. Sites
    are kept while a finding persists. Both hold the severities as float32 has them.
    """
    size = len(FINDINGS)
    latent = _stationary(rng, np.array(list(TIMES.values()), float), _shares(patient))
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
    """Moves every entry on by `days` >= 0 (one number, or one for each), each by chance of its own.

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


def _filter(rng, particles: Latent, days, seen, n: int, noise: float) -> Latent:
    """[n] states of one finding at the last film. particles: [N] at the first, by severity; seen: [films]."""
    low, high = np.searchsorted(particles.severity, [seen[0] - 6 * noise, seen[0] + 6 * noise])
    particles = particles[low:high] if high > low else particles
    for k, value in enumerate(seen):
        if k:
            particles = advance(rng, particles, days[k] - days[k - 1])[0]
        misfit = ((particles.severity - value) / noise) ** 2 / 2
        weights = np.exp(misfit.min() - misfit).cumsum()
        last = k == len(seen) - 1
        # Evenly spread draws keep more of the different ones; the last are independent of each other.
        places = rng.random(n) if last else (np.arange(_PARTICLES) + rng.random()) / _PARTICLES
        particles = particles[np.searchsorted(weights, places * weights[-1])]
    return particles


def _flow(mode, severity, growth, decay, days):
    """Severities after `days` within their modes."""
    grown = 1 - (1 - severity) * np.exp(-growth * days)
    return np.where(mode == GROWING, grown, severity * np.where(mode == RESOLVING, np.exp(-decay * days), 1))


def _shares(patient: Patient) -> np.ndarray:
    """float [8]: the share of the time that a finding is present; in steps of 0.02, so that few libraries do."""
    return np.round(prevalence(patient) / 0.02) * 0.02


def _stationary(rng, times: np.ndarray, shares: np.ndarray) -> Latent:
    """[N] states at no particular time, with rates of their own. times: [N, 3] as in TIMES; shares: [N]."""
    rates = np.exp(rng.normal(0, SPREAD, (len(times), 2))) / times[:, :2]
    onset = shares / (1 - shares) / times[:, 2]
    healthy = Latent(np.zeros(len(times)), np.zeros(len(times), np.int8), *rates.T, onset)
    return advance(rng, healthy, _BURN_IN)[0]


@functools.lru_cache(maxsize=32)  # of 10 MB
def _library(times: tuple[int, int, int], share: float) -> Latent:
    """[500000] stationary states of a finding that is present `share` of the time, in the order of severity.

    The same ones in every process. times: of TIMES.
    """
    rng = np.random.default_rng([*times, round(100 * share)])
    states = [_stationary(rng, np.tile(np.array(times, float), (_PATIENTS, 1)), np.full(_PATIENTS, share))]
    for _ in range(_MOMENTS - 1):
        states.append(advance(rng, states[-1], _APART)[0])
    joined = _together(states, np.concatenate)
    small = Latent(*(x.astype(np.float32 if x.dtype == float else x.dtype) for x in vars(joined).values()))
    return small[np.argsort(small.severity)]


def _together(parts: Sequence[Latent], how) -> Latent:
    """One of several: how joins a list of arrays."""
    return Latent(*(how(columns) for columns in zip(*(vars(x).values() for x in parts), strict=True)))


def _checked(history, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Days [films] and severities [films, 8] of a history."""
    if not history or any(np.shape(severities) != (len(FINDINGS),) for _, severities in history):
        raise UserError(f"history of {len(history)} films: give (day, {len(FINDINGS)} severities) of one film or more")
    days, seen = (np.array(column, float) for column in zip(*history, strict=True))
    if not (np.isfinite(days).all() and np.isfinite(seen).all() and (np.diff(days) > 0).all()):
        raise UserError(f"history at days {days.tolist()}: give finite severities, and days that ascend")
    if not 0 < noise < np.inf:
        raise UserError(f"noise={noise}: a film shows a severity with a standard deviation above 0")
    return days, seen


def _check_days(days: float) -> None:
    if not 0 <= days < np.inf:
        raise UserError(f"days={days}: a future lies 0 days ahead or more")
