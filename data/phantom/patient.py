"""What is depicted: a stable patient, a disease state and an acquisition, each drawn from a generator.

Lengths are in half image widths: the image spans [-1, 1] in x (patient's right to patient's left, as a
radiograph is hung) and in y (head to feet). All three classes are frozen, hold plain numbers and survive
`to_dict` -> JSON -> `from_dict` exactly, so that a truth file is enough to render a study again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from progemu_jax.text.findings import FINDINGS, PRESENT

GROUPS = ("A", "B")
LEFT, RIGHT = 1, -1

# Share of studies in which a finding is present, before the patient's own tendencies.
PREVALENCE = {
    "left pleural effusion": 0.22,
    "right pleural effusion": 0.22,
    "left pneumothorax": 0.16,
    "right pneumothorax": 0.16,
    "cardiomegaly": 0.28,
    "pulmonary edema": 0.22,
    "atelectasis": 0.24,
    "consolidation": 0.22,
}
PERSISTENCE = 0.70  # of the findings present in a study, the share still present in the next
_CARDIAC = {"left pleural effusion", "right pleural effusion", "cardiomegaly", "pulmonary edema"}


class _Record:
    """`to_dict` / `from_dict` for a frozen dataclass of numbers, strings and one float32 vector."""

    def to_dict(self) -> dict:
        return {
            f.name: [float(x) for x in v] if isinstance(v := getattr(self, f.name), np.ndarray | tuple) else v
            for f in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, row: dict):
        return cls(**{f.name: row[f.name] for f in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Patient(_Record):
    """What stays from study to study.

    Anatomy is in half image widths or as a factor around 1. Age and group are never drawn as a mark: they
    only move the distributions of the diffuse factors (bone, aorta, soft tissue, lung texture), which
    overlap between patients.
    """

    seed: int  # ribs, vessels and lung texture
    age: float  # years at the first study
    sex: str  # "F" or "M"
    group: str  # one of GROUPS
    congestion: float  # >= 0, mean 1: tendency to the findings of heart failure
    body_width: float  # half width of the trunk
    thorax_width: float  # half width of the rib cage, inside
    apex: float  # y of the lung apices
    diaphragm: float  # y of the right dome at full inspiration
    dome: float  # depth from the dome to the costophrenic angle
    heart_size: float  # factor
    heart_tilt: float  # radians
    mediastinum: float  # factor on the width
    rib_spacing: float
    rib_slope: float
    rib_phase: float
    bone: float  # bone attenuation, factor
    calcification: float  # 0..1: costal cartilage and aortic knob
    aorta: float  # 0..1: unfolding and elongation
    soft_tissue: float  # chest wall thickness, factor
    breast: float  # 0..1
    vessels: float  # factor on the lung markings
    texture: float  # spectral exponent of the parenchymal texture
    kyphosis: float  # lateral bend of the spine
    blunting: float  # 0..1 old pleural thickening of one costophrenic angle (not a finding)
    blunting_side: int
    scar: float  # 0..1 an old linear scar (not a finding)
    scar_x: float
    scar_y: float
    expression: tuple[float, ...]  # [8], factor around 1: how much of a severity this patient's film shows

    def __post_init__(self):
        object.__setattr__(self, "expression", tuple(float(x) for x in self.expression))


@dataclass(frozen=True)
class State(_Record):
    """The disease in one study.

    severities: float32 [8] in [0, 1] in the order of FINDINGS; the other fields say where the findings that
    have no side in their name are, and are kept while the finding persists.
    """

    severities: np.ndarray
    atelectasis_side: int  # LEFT, RIGHT, or 0 for both
    atelectasis_seed: int
    consolidation_side: int
    consolidation_zone: float  # 0 upper .. 1 lower
    consolidation_seed: int
    days: float  # since the first study

    def __post_init__(self):
        values = np.asarray(self.severities, np.float32)
        values.setflags(write=False)
        object.__setattr__(self, "severities", values)

    def __getitem__(self, finding: str) -> float:
        return float(self.severities[FINDINGS.index(finding)])

    def as_mapping(self) -> dict[str, float]:
        """{finding: severity}, in the order of FINDINGS."""
        return {name: float(v) for name, v in zip(FINDINGS, self.severities, strict=True)}

    @property
    def present(self) -> np.ndarray:
        """bool [8]: severity >= PRESENT."""
        return self.severities >= PRESENT


@dataclass(frozen=True)
class Acquisition(_Record):
    """How one picture was taken.

    view: what it is, "PA" or "AP" (AP magnifies the heart); view_label: what its record says.
    angle in radians; shift_x, shift_y, borders in half image widths; noise as a share of full scale.
    """

    seed: int  # noise
    view: str
    view_label: str
    angle: float
    shift_x: float
    shift_y: float
    scale: float
    inspiration: float  # 0 full .. 1 poor: raises both diaphragms, crowds the bases
    exposure: float
    contrast: float
    gamma: float
    noise: float
    border_left: float
    border_right: float
    border_top: float
    border_bottom: float
    skin_fold: float  # 0, or the strength of a skin fold that mimics a pleural line
    skin_fold_x: float


def _normal(rng, mean, sd, low=-np.inf, high=np.inf):
    return float(np.clip(rng.normal(mean, sd), low, high))


def sample_patient(rng: np.random.Generator) -> Patient:
    """Draws a patient. Reproducible: the same generator state gives the same patient."""
    age = float(np.round(np.clip(rng.normal(58, 17), 18, 91)))
    sex = "F" if rng.random() < 0.48 else "M"
    group = GROUPS[int(rng.random() < 0.45)]
    old = (age - 58) / 17  # about unit variance
    b = 1.0 if group == "B" else -1.0
    female = sex == "F"
    habitus = rng.normal(0, 1)
    return Patient(
        seed=int(rng.integers(2**31)),
        age=age,
        sex=sex,
        group=group,
        congestion=float(rng.gamma(2.0, 0.5)),
        body_width=_normal(rng, 1.09 + 0.08 * habitus - 0.03 * female, 0.03, 0.92, 1.3),
        thorax_width=_normal(rng, 0.825 - 0.02 * female, 0.025, 0.74, 0.89),
        apex=_normal(rng, -0.80, 0.03, -0.88, -0.72),
        diaphragm=_normal(rng, 0.47 - 0.03 * habitus, 0.045, 0.34, 0.58),
        dome=_normal(rng, 0.20, 0.025, 0.14, 0.27),
        heart_size=_normal(rng, 1.0 + 0.015 * old, 0.075, 0.84, 1.22),
        heart_tilt=_normal(rng, 0.0, 0.08, -0.2, 0.2),
        mediastinum=_normal(rng, 1.0 + 0.03 * old, 0.07, 0.8, 1.25),
        rib_spacing=_normal(rng, 0.160, 0.008, 0.14, 0.185),
        rib_slope=_normal(rng, 0.16 + 0.02 * old, 0.04, 0.04, 0.3),
        rib_phase=float(rng.random()),
        bone=_normal(rng, 1.0 - 0.16 * old + 0.15 * b, 0.10, 0.45, 1.7),
        calcification=_normal(rng, 0.4 + 0.27 * old, 0.13, 0.0, 1.0),
        aorta=_normal(rng, 0.4 + 0.25 * old, 0.12, 0.0, 1.0),
        soft_tissue=_normal(rng, 1.0 + 0.10 * habitus + 0.08 * b, 0.06, 0.7, 1.4),
        breast=_normal(rng, 0.55 + 0.2 * habitus, 0.15, 0.1, 1.0) if female else 0.0,
        vessels=_normal(rng, 1.0 - 0.08 * b, 0.09, 0.7, 1.35),
        texture=_normal(rng, 1.30 + 0.17 * b, 0.17, 0.7, 2.0),
        kyphosis=_normal(rng, 0.0, 0.02 + 0.01 * max(old, 0.0), -0.08, 0.08),
        blunting=float(rng.random() < 0.15) * float(rng.uniform(0.2, 0.7)),
        blunting_side=LEFT if rng.random() < 0.5 else RIGHT,
        scar=float(rng.random() < 0.18) * float(rng.uniform(0.3, 0.8)),
        scar_x=float(rng.uniform(-0.5, 0.5)),
        scar_y=float(rng.uniform(-0.1, 0.25)),
        expression=np.exp(np.clip(rng.normal(0, 0.25, len(FINDINGS)), -0.6, 0.6)),
    )


def prevalence(patient: Patient) -> np.ndarray:
    """float [8]: how often each finding is present in this patient; averages PREVALENCE over patients."""
    base = np.array([PREVALENCE[name] for name in FINDINGS])
    cardiac = np.array([name in _CARDIAC for name in FINDINGS])
    factor = np.where(cardiac, 0.4 + 0.6 * patient.congestion, 1.0)
    return np.clip(base * factor, 0.02, 0.6)


def days_between(rng: np.random.Generator) -> float:
    """Draws the whole days from one study to the next; 54.5 on average."""
    return float(np.ceil(rng.gamma(1.2, 45.0)))


def draw_sites(rng: np.random.Generator) -> dict:
    """Draws where the findings without a side in their name are: the fields of `State` beside severities and days."""
    return {
        "atelectasis_side": int(rng.choice([LEFT, RIGHT, 0], p=[0.4, 0.4, 0.2])),
        "atelectasis_seed": int(rng.integers(2**31)),
        "consolidation_side": LEFT if rng.random() < 0.5 else RIGHT,
        "consolidation_zone": float(rng.random()),
        "consolidation_seed": int(rng.integers(2**31)),
    }


def next_sites(rng: np.random.Generator, sites: dict, was: np.ndarray) -> dict:
    """Those of the next study: new ones for what was absent. was: bool [8], present in the study before."""
    new = draw_sites(rng)
    for name in ("atelectasis", "consolidation"):
        if not was[FINDINGS.index(name)]:
            sites = sites | {key: new[key] for key in new if key.startswith(name)}
    return sites


def sample_trajectory(rng: np.random.Generator, patient: Patient, n: int) -> list[State]:
    """Draws the disease states of n consecutive studies (n >= 1).

    A present finding persists with probability PERSISTENCE, in which case it is as before (60 %), better or
    worse; an absent one appears as often as keeps the prevalence constant over the studies. "Absent" is not
    always nothing: some have a trace under the threshold, so that films overlap as real ones do. Appearing
    and disappearing always move a severity by more than PRESENT.
    """
    share = prevalence(patient)
    appear = share * (1 - PERSISTENCE) / (1 - share)
    size = len(FINDINGS)
    states, days, severities, sites = [], 0.0, np.zeros(size), draw_sites(rng)
    for k in range(n):
        was = severities >= PRESENT
        if k:
            days += days_between(rng)
        fresh = np.maximum(0.18 + 0.8 * rng.beta(1.2, 1.7, size), severities + 0.16)
        trace = np.where(rng.random(size) < 0.35, rng.uniform(0.02, 0.12, size), 0.0)
        trace = np.where(was, np.clip(trace, 0, severities - 0.16), trace if k == 0 else severities)
        step = rng.choice([-1, 0, 1], size, p=[0.22, 0.6, 0.18]) * rng.uniform(0.2, 0.5, size)
        moved = np.clip(severities + np.where(step == 0, rng.uniform(-0.03, 0.03, size), step), 0.18, 1)
        chance = share if k == 0 else np.where(was, PERSISTENCE, appear)
        severities = np.where(rng.random(size) < chance, np.where(was, moved, fresh), trace)
        severities = severities.astype(np.float32).astype(float)  # as stored
        sites = next_sites(rng, sites, was)
        states.append(State(severities=severities, days=days, **sites))
    return states


def sample_acquisition(rng: np.random.Generator) -> Acquisition:
    """Draws an acquisition: 94 % PA, the rest AP; 2 % of the view labels are wrong."""
    view = "PA" if rng.random() < 0.94 else "AP"
    wrong = rng.random() < 0.02
    border = np.where(rng.random(4) < 0.15, rng.uniform(0.01, 0.09, 4), 0.0)
    fold = rng.random() < 0.06
    return Acquisition(
        seed=int(rng.integers(2**31)),
        view=view,
        view_label={"PA": "AP", "AP": "PA"}[view] if wrong else view,
        angle=_normal(rng, 0, 0.025, -0.07, 0.07),
        shift_x=_normal(rng, 0, 0.025, -0.07, 0.07),
        shift_y=_normal(rng, 0, 0.025, -0.07, 0.07),
        scale=_normal(rng, 1.0, 0.025, 0.93, 1.07),
        inspiration=float(np.clip(rng.gamma(1.5, 0.1), 0, 1)),
        # What automatic exposure and the stored image's windowing leave of the differences between films.
        exposure=_normal(rng, -0.05, 0.04, -0.17, 0.07),
        contrast=_normal(rng, 1.0, 0.025, 0.93, 1.07),
        gamma=_normal(rng, 1.0, 0.025, 0.93, 1.07),
        noise=float(rng.uniform(0.004, 0.010)),
        border_left=float(border[0]),
        border_right=float(border[1]),
        border_top=float(border[2]),
        border_bottom=float(border[3]),
        skin_fold=float(fold) * float(rng.uniform(0.3, 0.9)),
        skin_fold_x=float(rng.uniform(0.35, 0.55)) * (1 if rng.random() < 0.5 else -1),
    )
