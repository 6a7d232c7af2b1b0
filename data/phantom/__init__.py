"""A procedural chest phantom with a known cause: patient, disease and acquisition -> radiograph and masks."""

import numpy as np

from progemu_jax.text.findings import FINDINGS, ORGANS

from .course import sample_course
from .patient import (
    GROUPS,
    Acquisition,
    Patient,
    State,
    sample_acquisition,
    sample_patient,
    sample_trajectory,
)
from .render import Rendered, counterfactual, render

DYNAMICS = ("steps", "course")
"""How findings change from study to study: `sample_trajectory`, without memory, or `sample_course`, in time."""

__all__ = [
    "DYNAMICS",
    "FINDINGS",
    "GROUPS",
    "ORGANS",
    "Acquisition",
    "Patient",
    "Rendered",
    "State",
    "counterfactual",
    "generator",
    "labelled_set",
    "render",
    "sample_acquisition",
    "sample_course",
    "sample_patient",
    "sample_trajectory",
]

_DOMAINS = {"cohort": 0, "labelled": 1}


def generator(domain: str, seed: int, *path: int) -> np.random.Generator:
    """The generator of one item; the domains "cohort" and "labelled" share no stream, whatever the seeds."""
    return np.random.default_rng([_DOMAINS[domain], seed, *path])


def labelled_set(seed: int, n: int, size: int, *, start: int = 0, dynamics: str = "steps") -> dict[str, np.ndarray]:
    """n studies with their causes, one a patient, to train and test scorers on.

    No patient, pose or noise of it is in any cohort (another seed domain), and item i depends on `seed`, `dynamics`
    (of DYNAMICS) and `start + i` only, so a set can be made in parts.

    Returns:
      image uint8 [n, S, S], findings float32 [n, 8] (severities; label noise is the caller's affair), group
      int32 [n] (index into GROUPS), age float32 [n] in years, sex int32 [n] (1 = F), masks bool [n, 6, S, S].
    """
    out = {
        "image": np.empty((n, size, size), np.uint8),
        "findings": np.empty((n, len(FINDINGS)), np.float32),
        "group": np.empty(n, np.int32),
        "age": np.empty(n, np.float32),
        "sex": np.empty(n, np.int32),
        "masks": np.empty((n, len(ORGANS), size, size), bool),
    }
    for i in range(n):
        rng = generator("labelled", seed, start + i)
        patient = sample_patient(rng)
        state = sample_course(rng, patient, 1)[0][0] if dynamics == "course" else sample_trajectory(rng, patient, 1)[0]
        rendered = render(patient, state, sample_acquisition(rng), size)
        out["image"][i], out["masks"][i] = rendered.image, rendered.masks
        out["findings"][i] = state.severities
        out["group"][i] = GROUPS.index(patient.group)
        out["age"][i] = patient.age
        out["sex"][i] = patient.sex == "F"
    return out
