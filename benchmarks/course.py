"""How phantom findings move, and what earlier films tell of the next; prints three tables.

    python benchmarks/course.py [--patients=400] [--seed=0]

The first compares the dynamics. The others are of `dynamics="course"`: how far the findings that are there get in days,
and, of four studies a patient, Brier scores of the presence of each finding at the fourth, with what a forecaster
knows, and 95 % intervals over patients. These scores are means over what may come of the third study's latent state. A
film shows a severity with the noise of `course.NOISE`; persistence is of other patients, by finding and quarter of the
interval.
"""

import argparse

import numpy as np
from tqdm import tqdm

from progemu_jax.data import phantom
from progemu_jax.data.phantom import course
from progemu_jax.data.phantom.patient import PREVALENCE
from progemu_jax.text.findings import PRESENT

FILMS, FUTURES, OTHERS = 4, 1000, 2000
FORECASTERS = ("prevalence", "it stays as it is", "persistence", "1 film", "2 films", "3 films", "latent state")


def courses(seed: int, n: int, films: int, dynamics: str):
    """[(patient, its studies as `sample_course` gives them)]; of "steps" the latent states are None."""
    for i in range(n):
        rng = phantom.generator("cohort", seed, i)
        patient = phantom.sample_patient(rng)
        if dynamics == "course":
            yield patient, phantom.sample_course(rng, patient, films)
        else:
            yield patient, [(state, None, []) for state in phantom.sample_trajectory(rng, patient, films)]


def arrays(drawn) -> tuple[np.ndarray, np.ndarray]:
    """Severities [patients, films, 8] and days [patients, films]."""
    states = [[state for state, *_ in studies] for _, studies in drawn]
    return (
        np.array([[s.severities for s in each] for each in states], float),
        np.array([[s.days for s in each] for each in states]),
    )


def movement(seed: int) -> dict[str, list[float]]:
    """Of consecutive studies, for each dynamics."""
    out = {}
    for dynamics in phantom.DYNAMICS:
        severities, days = arrays(courses(seed, OTHERS, 2, dynamics))
        before, after = severities.swapaxes(0, 1)
        was, step = before >= PRESENT, np.abs(after - before) >= PRESENT
        numbers = [was.mean(), (after >= PRESENT)[was].mean(), step.sum(1).mean(), step[was].mean(), step[~was].mean()]
        out[dynamics] = [*numbers, np.diff(days).mean()]
    return out


def horizons(seed: int) -> dict[int, list[float]]:
    """Of the findings present in a study, by days ahead: the share that moves by PRESENT, and that is still there."""
    states = [studies[0][1] for _, studies in courses(seed, OTHERS, 1, "course")]
    now = course.Latent(*(np.stack(columns) for columns in zip(*(vars(x).values() for x in states), strict=True)))
    now, out = now[now.mode != course.ABSENT], {}
    for days in (7, 30, 90):
        then = course.advance(np.random.default_rng([seed, days]), now, days)[0].severity
        out[days] = [(np.abs(then - now.severity) >= PRESENT).mean(), (then >= PRESENT).mean()]
    return out


def persistence(seed: int, was: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """[patients, 8]: how often a finding that was (not) there is there after about as long, in other patients."""
    severities, days = arrays(courses(seed, OTHERS, 2, "course"))
    there, gaps = severities >= PRESENT, np.diff(days)[:, 0]
    edges = np.quantile(gaps, [0.25, 0.5, 0.75])
    part, own = np.searchsorted(edges, gaps), np.searchsorted(edges, gap)
    finding = np.arange(there.shape[2])
    table = np.zeros((4, 2, len(finding)))
    for p in range(4):
        for present in (False, True):
            here = (there[:, 0] == present) & (part == p)[:, None]
            table[p, int(present)] = (here & there[:, 1]).sum(0) / here.sum(0)
    return table[own[:, None], was.astype(int), finding]


def forecasts(seed: int, n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """{forecaster: P(present at the fourth study) [n, 8]}, and bool [n, 8]: present at the third."""
    drawn = sorted(courses(seed, n, FILMS, "course"), key=lambda each: each[0].congestion)  # near ones share libraries
    severities, days = arrays(drawn)
    rng = np.random.default_rng([seed, n])
    films = severities + rng.normal(0, course.NOISE, severities.shape)
    was, gap = severities[:, -2] >= PRESENT, days[:, -1] - days[:, -2]
    out = {name: np.zeros(was.shape) for name in FORECASTERS}
    out["prevalence"] += list(PREVALENCE.values())
    out["it stays as it is"] += was
    out["persistence"] += persistence(seed + 1, was, gap)
    for i, (patient, studies) in enumerate(tqdm(drawn, desc="forecasts", unit="patient")):
        for known in (1, 2, 3):
            history = list(zip(days[i, 3 - known : 3], films[i, 3 - known : 3], strict=True))
            drawn_futures = course.futures(rng, patient, history, gap[i], FUTURES)
            out[f"{known} film{'s' * (known > 1)}"][i] = (drawn_futures >= PRESENT).mean(0)
        out["latent state"][i] = (course.simulate(rng, studies[-2][1], gap[i], FUTURES) >= PRESENT).mean(0)
    return out, was


def interval(loss: np.ndarray, kept: np.ndarray) -> str:
    """Mean of the kept entries of [n, 8] with its interval over patients."""
    weights = np.random.default_rng(0).multinomial(len(loss), np.full(len(loss), 1 / len(loss)), 2000)
    drawn = (weights @ (loss * kept).sum(1)) / (weights @ kept.sum(1))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{loss[kept].mean():.4f} [{low:.4f}, {high:.4f}]"


def reliability(told: np.ndarray, comes: np.ndarray) -> str:
    """Of the forecasts in each fifth of [0, 1]: their mean, that of what comes, their number."""
    parts = [(told >= low / 5) & (told < low / 5 + 0.2 + (low == 4)) for low in range(5)]
    return ", ".join(f"{told[p].mean():.2f} {comes[p].mean():.2f} ({p.sum()})" for p in parts if p.any())


def table(*heads: str) -> None:
    print("\n| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table("dynamics", "present", "of these, present next", "moved a study", "moved, present", "absent", "days between")
    for name, numbers in movement(args.seed).items():
        print(f"| {name} | " + " | ".join(f"{x:.3f}" for x in numbers) + " |", flush=True)
    table("days ahead", "moved", "still present")
    for days, numbers in horizons(args.seed).items():
        print(f"| {days} | " + " | ".join(f"{x:.3f}" for x in numbers) + " |", flush=True)
    told, was = forecasts(args.seed, args.patients)
    comes = told[FORECASTERS[-1]]
    losses = {name: (p - comes) ** 2 + comes * (1 - comes) for name, p in told.items()}
    table("known", "all", "present in the newest film", "absent", "present, beside 1 film")
    for name, loss in losses.items():
        cells = [interval(loss, kept) for kept in (np.ones_like(was), was, ~was)]
        print(f"| {name} | {' | '.join(cells)} | {interval(loss - losses['1 film'], was)} |")
    for name in FORECASTERS[3:-1]:
        print(f"\n{name}, told and comes: {reliability(told[name], comes)}")


if __name__ == "__main__":
    main()
