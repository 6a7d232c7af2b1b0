"""Studies -> journeys: a patient's ordered same-view pairs, split by patient; every dropped study is listed.

Follows MedJourney (Gu et al. 2023, section 3): consecutive studies of one view, at least one CheXpert
finding, p10-p18 for training and validation and p19 for the test.
"""

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path

from progemu_jax.data.sources import Given, Rejected, Study, settled, unwanted
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text.findings import PHANTOM, Finding
from progemu_jax.text.timeline import MOST_OLDER

SPLITS = ("train", "validation", "test")
NOT_FINDINGS = ("No Finding", "Support Devices")
DAYS_A_YEAR, DAYS_WITHIN_A_YEAR = 365.25, 107.0  # see `Pair.interval`
_OVER = "over the limit of pairs of one patient"
_COUNTED = ("images in journeys", "patients with two studies", "candidate pairs")


@dataclass(frozen=True)
class Options:
    """What makes a journey.

    views: names of views; "PA+AP" makes several count as one. pairs: "consecutive", "all" (i < j) or "both" (any two
    studies, either one as the prior) in the training split, with consecutive ones elsewhere. max_pairs_per_patient: of
    "both", in both orders together. min_days, max_days: bounds on the interval's size; a pair of unknown interval
    passes. finding: keep only pairs with a CheXpert finding in either study (sources without labels pass). split:
    "folder" (MIMIC's: p19 is the test), "csv" (the source's own), "hash", or "auto" (folder for MIMIC's layout, hash
    elsewhere). validation, test: shares of patients by hash (by folder only validation, of p10-p18). seed: of the hash.
    duplicates: look for films listed under two patients, who then share a split (by hash only; reads every image).
    register: False leaves follow-ups where they lie, for the ablation of MedJourney's table 2; pairs without a match
    are dropped all the same. history: up to how many older films are kept beside a forward pair's prior, 0 to 2.
    coarse_days: intervals from ages where a source gives no time (`Pair.interval`); history has them anyway.
    """

    views: tuple[str, ...] = ("PA",)
    pairs: str = "consecutive"
    min_days: float | None = None
    max_days: float | None = None
    finding: bool = True
    split: str = "auto"
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    duplicates: bool = False
    register: bool = True
    max_pairs_per_patient: int = 30
    history: int = 0
    coarse_days: bool = False

    def __post_init__(self):
        if self.pairs not in ("consecutive", "all", "both"):
            raise UserError(f"pairs={self.pairs!r}: choose consecutive, all or both")
        if self.max_pairs_per_patient < 2:
            raise UserError(f"max_pairs_per_patient={self.max_pairs_per_patient}: at least 2, a pair in both orders")
        if self.history not in range(MOST_OLDER + 1):
            raise UserError(f"history={self.history!r}: choose 0, 1 or 2 older films beside a pair's prior")
        if self.split not in ("auto", "folder", "csv", "hash"):
            raise UserError(f"split={self.split!r}: choose auto, folder, csv or hash")
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise UserError(
                f"validation={self.validation}, test={self.test}: shares from 0, together under 1, are needed"
            )
        if isinstance(self.views, str) or not self.views or not all(self.views):
            raise UserError(f"views={self.views!r}: give a tuple of names, such as ('PA',) or ('PA+AP',)")
        if len(set(names := [v for group in self.views for v in group.split("+")])) < len(names):
            raise UserError(f"views={self.views!r}: a view is named twice")

    def view_of(self) -> dict[str, str]:
        """View of a source -> name of its group here: {"PA": "pa"}, or {"PA": "frontal", "AP": "frontal"}."""
        groups = [(group.split("+"), group) for group in self.views]
        merged = sum(len(names) > 1 for names, _ in groups)
        return {
            name: ("frontal" if len(names) > 1 and merged == 1 else group.replace("+", "-")).lower().replace(" ", "_")
            for names, group in groups
            for name in names
        }


@dataclass(frozen=True)
class Pair:
    """Two studies of one view, the prior earlier unless `reversed`. Ordinals count the patient's studies from 1.

    said: which report's words of a change ("increased", "resolved") hold for the pair: "forward", the follow-up's;
    "reversed", the prior's, the other way round; None, neither's: they speak of other studies. consecutive: no study
    of these views lies between. older: of a forward pair, its prior with each of the patient's films of this view from
    before it, nearest first, as reversed pairs.
    """

    prior: Study
    followup: Study
    prior_ordinal: int
    followup_ordinal: int
    view: str
    split: str
    given: Given | None = None  # where the source named the pair and its texts
    said: str | None = "forward"
    older: tuple["Pair", ...] = field(default=(), repr=False)

    def turned(self) -> "Pair":
        """The same two studies in the other order, without older films."""
        ordinals = {"prior_ordinal": self.followup_ordinal, "followup_ordinal": self.prior_ordinal}
        return replace(self, prior=self.followup, followup=self.prior, older=(), **ordinals)

    @property
    def reversed(self) -> bool:
        """Whether the prior is the later study."""
        return self.prior_ordinal > self.followup_ordinal

    @property
    def films(self) -> tuple[int, int]:
        """The two ordinals, the earlier study's first: one registration serves both orders."""
        first, second = sorted((self.prior_ordinal, self.followup_ordinal))
        return first, second

    @property
    def consecutive(self) -> bool:
        """Whether no study of the asked views lies between the two."""
        return abs(self.prior_ordinal - self.followup_ordinal) == 1

    @property
    def days(self) -> float | None:
        """The interval in days, negative in a reversed pair; None where the source gives no time."""
        a, b = self.prior.days, self.followup.days
        return None if a is None or b is None else b - a

    @property
    def interval(self) -> float | None:
        """`days`; where a source gives ages and no time, coarse days by the ages in whole years. None: unknown.

        Ages n years apart are 365.25 n days. Two times in years that share an age are 107 days apart in the median: at
        random in one year, their distance t has the density 2 (1 - t), whose median is 1 - 1 / sqrt(2) years. Unknown
        where the age falls with time, or where the source names its pairs: then one age stands for both studies.
        """
        earlier, later = (self.followup, self.prior) if self.reversed else (self.prior, self.followup)
        if self.days is not None or self.given or earlier.age is None or later.age is None:
            return self.days
        years = math.floor(later.age) - math.floor(earlier.age)
        if years < 0:
            return None
        days = DAYS_A_YEAR * years or DAYS_WITHIN_A_YEAR
        return -days if self.reversed else days

    @property
    def name(self) -> str:
        """ICG-CXR's folder name, prior first: i01s50414267-i02s53189527, reversed i02s53189527-i01s50414267."""
        a, b = self.prior, self.followup
        return f"i{self.prior_ordinal:02d}s{a.study_id}-i{self.followup_ordinal:02d}s{b.study_id}"

    @property
    def pair_id(self) -> str:
        """Unique over sources and views; a plain file name."""
        return f"{self.prior.source}-{self.view}-p{self.prior.patient_id}-{self.name}"


@dataclass(frozen=True)
class Journey:
    """A patient: split, all images of the wanted views in time order, and their pairs."""

    source: str
    patient_id: str
    split: str
    images: tuple[tuple[str, Study], ...]  # (view group, image)
    pairs: tuple[Pair, ...]


@dataclass
class Cohort:
    """Journeys sorted by patient, what was left out, how many were left at each step, and the list of findings."""

    journeys: list[Journey] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    funnel: dict[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = PHANTOM


def split_method(source: str, options: Options) -> str:
    """ "folder", "csv" or "hash": what decides the splits of `source`."""
    if options.split != "auto":
        return options.split
    return "folder" if source in ("mimic_cxr", "mimic_cxr_dicom", "phantom") else "hash"


def split_of(source: str, patient_id: str, own: str | None = None, options: Options | None = None) -> str | None:
    """The split of a patient: train, validation, test, or None (split="csv" where the source names none).

    Where the source leaves training and validation to its users ("train_val"), they are told apart by the hash.
    """
    options = options or Options()
    method = split_method(source, options)
    if method == "csv" and own != "train_val":
        return own
    key = f"{options.seed}/{source}/{patient_id}".encode()
    place = int.from_bytes(hashlib.sha256(key).digest()[:8]) / 2**64
    if method == "csv":
        return "validation" if place < options.validation else "train"
    if method == "folder":
        if patient_id.removeprefix("p").startswith("19"):
            return "test"
        return "validation" if place < options.validation else "train"
    if place < options.test:
        return "test"
    return "validation" if place < options.test + options.validation else "train"


def journeys(
    studies: Iterable[Study | Rejected],
    options: Options,
    same: Mapping[str, str] | None = None,
    exclude: Collection[str] = (),
) -> Cohort:
    """Groups a source's studies into journeys. Nothing is read from disk but what `studies` reads.

    same: patient -> the patient whose split it shares (`duplicates.same_patients`); others have their own.
    exclude: patients to leave out, those that a benchmark will be scored on.
    """
    same = same or {}
    cohort = Cohort()
    funnel, view_of = cohort.funnel, options.view_of()
    patients: dict[tuple[str, str], list[Study]] = {}
    seen = set()
    funnel["images in the source"] = funnel["rejected while reading"] = funnel["of another view"] = 0
    for study in studies:
        funnel["images in the source"] += 1
        if isinstance(study, Rejected):
            wanted = not study.reason.startswith("view ")
            funnel["rejected while reading" if wanted else "of another view"] += 1
            cohort.rejected.append(study)
        elif study.view not in view_of:
            funnel["of another view"] += 1
            cohort.rejected.append(_left_out(study, unwanted(study.view)))
        else:
            if (name := (study.source, study.patient_id, study.study_id, study.image_id)) in seen:
                funnel["rejected while reading"] += 1
                cohort.rejected.append(_left_out(study, "the image is listed twice"))
                continue
            seen.add(name)
            patients.setdefault((study.source, study.patient_id), []).append(study)
    funnel["patients of these views"] = len(patients)
    patients = _subtract(patients, exclude, cohort)
    if same:
        funnel["patients who share a film with another"] = sum(patient in same for _, patient in patients)
    funnel.update(dict.fromkeys(_COUNTED, 0))
    if options.pairs == "both":
        funnel["candidate pairs, reversed"] = 0
    for (source, patient), images in sorted(patients.items()):
        split = _one_split(
            {split_of(source, same.get(patient, patient), s.split, options) for s in images}, images, cohort
        )
        if split is None:
            continue
        images.sort(key=lambda s: (s.order_key, s.study_id, s.image_id))
        pairs = _pairs(images, split, view_of, options, cohort)
        cohort.journeys.append(
            Journey(source, patient, split, tuple((view_of[s.view], s) for s in images), tuple(pairs))
        )
        funnel["images in journeys"] += len(images)
    return cohort


def given_journeys(
    pairs: Iterable[Given | Rejected],
    options: Options,
    same: Mapping[str, str] | None = None,
    exclude: Collection[str] = (),
) -> Cohort:
    """Journeys of a source that names its pairs: all are kept, whatever their interval and findings.

    A split that the source names counts; other patients are split as by `split_of`. same, exclude: as in `journeys`.
    """
    same = same or {}
    cohort = Cohort()
    funnel = cohort.funnel
    patients: dict[tuple[str, str], list[Given]] = {}
    funnel["pairs in the source"] = funnel["rejected while reading"] = funnel["of another view"] = 0
    for pair in pairs:
        funnel["pairs in the source"] += 1
        if isinstance(pair, Rejected):
            funnel["of another view" if pair.reason.startswith("view ") else "rejected while reading"] += 1
            cohort.rejected.append(pair)
        else:
            patients.setdefault((pair.prior.source, pair.prior.patient_id), []).append(pair)
    funnel["patients of these views"] = len(patients)
    patients = _subtract(patients, exclude, cohort)
    funnel.update(dict.fromkeys(_COUNTED, 0))
    view_of = options.view_of()
    for (source, patient), given in sorted(patients.items()):
        given.sort(key=lambda g: g.ordinals)
        images = {s.image_path: s for g in given for s in (g.prior, g.followup)}.values()
        method = options if options.split != "csv" else replace(options, split="auto")
        splits = {s.split or split_of(source, same.get(patient, patient), None, method) for s in images}
        split = _one_split(splits, [g.prior for g in given], cohort)
        if split is None:
            continue
        made = tuple(Pair(g.prior, g.followup, *g.ordinals, view_of.get(g.prior.view, "any"), split, g) for g in given)
        cohort.journeys.append(
            Journey(source, patient, split, tuple((view_of.get(s.view, "any"), s) for s in images), made)
        )
        funnel["images in journeys"] += len(images)
        funnel["patients with two studies"] += 1
        funnel["candidate pairs"] += len(given)
    return cohort


def _subtract(patients: dict, exclude: Collection[str], cohort: Cohort) -> dict:
    """The patients that are not on the list; names on it may have their source's "p" or "patient" in front."""
    if not exclude:
        return patients
    names = {re.sub(r"^(patient|p)(?=\d)", "", name) for name in exclude} | set(exclude)
    kept = {key: items for key, items in patients.items() if key[1] not in names}
    cohort.funnel["patients excluded by the list"] = len(patients) - len(kept)
    for key in patients.keys() - kept.keys():
        studies = [item.prior if isinstance(item, Given) else item for item in patients[key]]
        cohort.rejected += [_left_out(s, "the patient is on the list of those to exclude") for s in studies]
    return kept


def _one_split(splits: set, images: list[Study], cohort: Cohort) -> str | None:
    """The one split of a patient, or None; then its images are rejected."""
    if len(splits) == 1 and None not in splits:
        return next(iter(splits))
    why = "the patient is in several splits" if len(splits) > 1 else "the source names no split"
    cohort.rejected += [_left_out(s, why) for s in images]
    return None


def _pairs(images: list[Study], split: str, view_of: dict, options: Options, cohort: Cohort) -> list[Pair]:
    ordinal, by_view = {}, {}
    for study in images:
        ordinal.setdefault(study.study_id, len(ordinal) + 1)
        of_view = by_view.setdefault(view_of[study.view], {})
        of_view.setdefault(study.study_id, study)  # the first image stands for its study
    cohort.funnel["patients with two studies"] += len(ordinal) > 1
    both, kept = options.pairs == "both" and split == "train", []
    for view, of_view in sorted(by_view.items()):
        series = list(of_view.values())
        every = both or (options.pairs == "all" and split == "train")
        for prior, followup in combinations(series, 2) if every else pairwise(series):
            pair = Pair(prior, followup, ordinal[prior.study_id], ordinal[followup.study_id], view, split)
            orders = 1 + both
            cohort.funnel["candidate pairs"] += orders
            if both:
                cohort.funnel["candidate pairs, reversed"] += 1
            if why := _why_not(pair, options):
                cohort.rejected.append(Rejected(pair.pair_id, "", why))  # one line for both orders
                cohort.funnel[f"dropped: {why}"] = cohort.funnel.get(f"dropped: {why}", 0) + orders
            else:
                kept.append(replace(pair, older=_older(pair, series, ordinal, options.history)))
    return _both_orders(kept, options.max_pairs_per_patient, cohort) if both else kept


def _older(pair: Pair, series: list[Study], ordinal: dict, most: int) -> tuple[Pair, ...]:
    """The prior of a pair with each of at most `most` studies of its series from before it, nearest first."""
    if not most:
        return ()
    before = {s.order_key: s for s in series if s.order_key < pair.prior.order_key}  # one of those at the same time
    nearest = list(before.values())[-1 : -most - 1 : -1]
    return tuple(replace(pair, followup=s, followup_ordinal=ordinal[s.study_id]) for s in nearest)


def _both_orders(found: list[Pair], limit: int, cohort: Cohort) -> list[Pair]:
    """Forward pairs of a patient -> at most `limit` in both orders: consecutive ones first, then by a key of the two.

    The orders of two films are kept together, for they are registered once; an odd limit leaves the last one forward.
    """
    ranked = sorted(found, key=lambda pair: (not pair.consecutive, hashlib.sha256(pair.pair_id.encode()).digest()))
    orders = []
    for pair in ranked:
        # A report's words of a change hold against the study just before it, and against no other.
        said = ("forward", "reversed") if pair.consecutive else (None, None)
        orders += [replace(pair, said=said[0]), replace(pair.turned(), said=said[1])]
    over = max(0, len(orders) - limit)
    if over:
        step = f"dropped: {_OVER}"
        cohort.funnel[step] = cohort.funnel.get(step, 0) + over
        name = f"{found[0].prior.source}-p{found[0].prior.patient_id}"
        cohort.rejected.append(Rejected(name, "", f"{over} pairs {_OVER}"))  # a line a patient: they may be thousands
    return sorted(orders[:limit], key=lambda pair: (pair.view, pair.films, pair.reversed))


def _why_not(pair: Pair, options: Options) -> str | None:
    prior, followup, days = pair.prior, pair.followup, pair.days
    if prior.order_key == followup.order_key:
        return "same time, order unknown"
    if days is not None and options.min_days is not None and days < options.min_days:
        return "interval too short"
    if days is not None and options.max_days is not None and days > options.max_days:
        return "interval too long"
    if not all(any(s.report.values()) for s in (prior, followup) if s.states is None):
        return "a report is missing"
    if not all(settled(s.states) for s in (prior, followup) if s.states is not None):
        return "the labels settle no finding"
    labels = [(name, v) for s in (prior, followup) for name, v in s.labels.items()]
    if options.finding and labels and not any(v == 1 and name not in NOT_FINDINGS for name, v in labels):
        return "no finding in either study"
    return None


def _left_out(study: Study, reason: str) -> Rejected:
    return Rejected(study.study_id, study.image_path.name, reason)


def read_list(path: str | Path) -> frozenset[str]:
    """Patient ids, one a line; blank lines and what follows a # do not count. UserError where it does not read."""
    try:
        lines = records.read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the list of patients does not read ({type(error).__name__})") from None
    return frozenset(name for line in lines if (name := line.split("#")[0].strip()))
