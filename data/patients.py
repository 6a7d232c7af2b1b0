"""One patient into the tree: each film is read, cropped and resized once, two films are registered once.

Every pair and image is written under a temporary name and renamed: complete or not at all.
"""

import dataclasses
import hashlib
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from progemu_jax.data import (
    duplicates,
    foreground,
    images,
    journeys,
    radiograph,
    registration,
    registration_sheets,
    texts,
    tree,
)
from progemu_jax.data.label_progression import single_text
from progemu_jax.data.sources import Rejected, Study
from progemu_jax.data.texts import TextOptions
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text.findings import PHANTOM, Finding


@dataclass(frozen=True)
class Work:
    """A worker's settings.

    size: side of the tree's images. unchanged: share of pairs without change kept. cache: of the texts that a
    language model wrote. sheets: share of pairs that leave a strip for the contact sheets. findings: the cohort's list.
    """

    root: Path
    size: int
    unchanged: float = 1.0
    texts: TextOptions = field(default_factory=TextOptions)
    cache: Path = Path("texts")
    sheets: float = 0.0
    options: journeys.Options = field(default_factory=journeys.Options)
    findings: tuple[Finding, ...] = PHANTOM


def process(journey: journeys.Journey, work: Work) -> dict:
    """One patient into the tree. Returns {"patient", "pairs": [id], "singles", "images", "rejected": [row]}.

    With history also "older": how many older films are there, and how many are left out. Raises UserError only for a
    tree that cannot be written.
    """
    result = {"patient": key(journey), "pairs": [], "singles": [], "images": [], "rejected": []}
    read = _Reader(
        work.size,
        {s.image_path for p in journey.pairs if p.given and p.given.registered for s in (p.prior, p.followup)},
    )

    registered = _Registered()

    def reject(name, path, reason):
        result["rejected"].append(asdict(Rejected(name, path, reason)))

    try:
        for view, study in journey.images:
            if study.image_path in read.broken or not _single(journey, view, study, work, read, result):
                reject(study.study_id, study.image_path.name, f"broken image: {read.broken[study.image_path]}")
        for pair in journey.pairs:
            reason = _pair(pair, work, read, registered)
            if reason:
                reject(pair.pair_id, "", reason)
            else:
                result["pairs"].append(pair.pair_id)
        # What the tree holds of a patient, whether made now or before a kill.
        pairs = [p for p in journey.pairs if p.pair_id in result["pairs"]]
        if work.options.history:
            there = sum(len([*tree.pair_folder(work.root, p).glob("*-old?-reg.png")]) for p in pairs)
            result["older"] = [there, sum(len(p.older) for p in pairs) - there]
        kept = {s.image_path for p in pairs for s in (p.prior, p.followup)}
        for _, study in journey.images:
            single = journey.split != "test" and bool(_own_text(study, work))
            if (single or study.image_path in kept) and (found := read(study)):
                row = {key: getattr(study, key) for key in ("source", "patient_id", "study_id", "image_id")}
                pixels = hashlib.sha256(found[0].tobytes()).hexdigest()[:32]
                row |= {"split": journey.split, "pixels": pixels, "hash": duplicates.perceptual_hash(found[0])}
                result["images"].append(row)
    except OSError as error:
        raise UserError(f"{work.root}: cannot be written ({error.strerror or type(error).__name__})") from None
    return result


class _Reader:
    """Images of one patient, cropped (not those in `as_is`), resized, read once. `broken`: path -> reason."""

    def __init__(self, size: int, as_is: Collection[Path] = ()):
        self.size, self.as_is, self.cache, self.broken = size, as_is, {}, {}

    def __call__(self, study: Study) -> tuple[np.ndarray, np.ndarray | None, tuple] | None:
        """(image uint8 [size, size], crop corners or None, shape as stored), or None when broken."""
        path = study.image_path
        if path not in self.cache and path not in self.broken:
            try:
                raw = radiograph.read_gray(path, window=study.window)
                corners = None if path in self.as_is else foreground.rectangle(raw)
                cropped = raw if corners is None else foreground.warp(raw, corners)
                self.cache[path] = images.resize(cropped, self.size), corners, raw.shape
            except images.BrokenImage as error:
                self.broken[path] = str(error)
        return self.cache.get(path)


def _single(journey, view: str, study: Study, work: Work, read: _Reader, result: dict) -> bool:
    """Adds the image to stage 1, unless of the test split or without a report. False: it is broken."""
    text = _own_text(study, work)
    if journey.split == "test" or not text:
        return True
    name = f"{study.study_id}-{study.image_id}.png"
    path = Path("singles", journey.source, f"p{journey.patient_id}"[:3], f"p{journey.patient_id}", name)
    if not (work.root / path).exists():
        found = read(study)
        if found is None:
            return False
        records.write_bytes(work.root / path, images.png(found[0]), durable=False)
    row = {"image": str(path), "text": text, "view": view}
    row |= {"study_id": study.study_id, "patient_id": study.patient_id, "source": study.source}
    row |= {"split": journey.split, "age": study.age, "sex": study.sex, "group": study.group}
    result["singles"].append(row | {"labels": study.labels})
    return True


def _own_text(study: Study, work: Work) -> str:
    """The report of a study, or what its labels say; "" without either."""
    if study.states is not None:
        return single_text(study.states, work.findings, f"{study.patient_id}/{study.study_id}/{study.image_id}")
    return " ".join(t for t in study.report.values() if t)


class _Registered:
    """Registrations of one patient: two films are registered once, the later onto the earlier, whatever the order."""

    def __init__(self):
        self.found: dict[frozenset, registration.Registration] = {}  # without images: there may be thousands

    def __call__(self, pair: journeys.Pair, prior: np.ndarray, followup: np.ndarray) -> registration.Registration | str:
        """`followup` moved onto `prior` uint8 [S, S], the same whatever was asked for before; or why it cannot be."""
        first, second = (followup, prior) if pair.reversed else (prior, followup)
        films = frozenset((pair.prior.image_path, pair.followup.image_path))
        try:
            found = self.found.get(films)
            if found is None:
                found = registration.register(first, second)
                self.found[films] = dataclasses.replace(found, image=None)
            elif not pair.reversed:
                found = dataclasses.replace(found, image=registration.resample(second, found.transform, first.shape))
            return registration.turned(found, first, second) if pair.reversed else found
        except (UserError, RuntimeError, ValueError) as error:
            return f"registration failed ({type(error).__name__})"


def _pair(pair: journeys.Pair, work: Work, read: _Reader, registered: _Registered) -> str | None:
    """Registers and writes a pair unless it is there; why not, or None."""
    if tree.pair_folder(work.root, pair).is_dir():
        return None
    a, b = pair.prior, pair.followup
    text = texts.text_of(pair, work.texts, work.cache, work.findings)
    if isinstance(text, str):
        return text
    if not text.changed and _place(pair.pair_id) >= work.unchanged:
        return "no change, over the share kept"
    prior, followup = read(a), read(b)
    if prior is None or followup is None:
        path = (b if prior else a).image_path
        return f"an image of the pair is broken: {path.name}: {read.broken[path]}"
    if pair.given is not None and pair.given.registered:
        still = registration.frame_to_frame(prior[0].shape, followup[0].shape)
        moved, exposure = registration.Registration(followup[0], still, 1.0, 2), (1.0, 0.0)
    else:
        moved = registered(pair, prior[0], followup[0])
        if isinstance(moved, str):
            return moved
        if _place(f"sheets/{pair.pair_id}") < work.sheets:
            kind = "kept" if moved.flag >= 0 else "rejected"
            strip = registration_sheets.strip(prior[0], followup[0], moved.image)
            registration_sheets.keep(work.root, kind, pair.pair_id, moved.score, strip)
        if moved.flag < 0:
            return f"registration found no match (score {moved.score:.2f})"
        moved, exposure = _laid(moved, prior[0], followup[0], work.options.register)
    meta = tree.meta_of(pair, text, moved, exposure, prior, followup)
    films = []
    if work.options.history:
        films, meta["progemu"]["older"] = _older(pair, prior[0], work.options.register, read, registered)
    if (work.options.history or work.options.coarse_days) and pair.days is None and pair.interval is not None:
        meta["progemu"]["interval"] = pair.interval
    tree.write_pair(work.root, pair, prior[0], moved.image, meta, films)
    return None


def _laid(
    moved: registration.Registration, prior: np.ndarray, film: np.ndarray, register: bool
) -> tuple[registration.Registration, tuple[float, float]]:
    """A registered film as the tree has it, and the gain and offset it was given; without `register` as it was."""
    if not register:
        return dataclasses.replace(moved, image=film, transform=np.eye(2, 3)), (1.0, 0.0)
    image = registration.fill_uncovered(moved.image, prior, moved.transform, film.shape)
    image, exposure = registration.match_exposure(image, prior)
    return dataclasses.replace(moved, image=image), exposure


def _older(
    pair: journeys.Pair, prior: np.ndarray, register: bool, read: _Reader, registered: _Registered
) -> tuple[list[np.ndarray], list[dict]]:
    """The older films of a pair on its prior uint8 [S, S], nearest first, and what the JSON says of each.

    They end at the first that is broken or has no match, so that none is missing between two.
    """
    films, rows = [], []
    for older in pair.older:
        film = read(older.followup)
        moved = "broken" if film is None else registered(older, prior, film[0])
        if isinstance(moved, str) or moved.flag < 0:
            break
        moved, exposure = _laid(moved, prior, film[0], register)
        days = None if older.interval is None else round(-older.interval, 4)
        films.append(moved.image)
        rows.append({"study_id": older.followup.study_id, "days": days, **tree.move_of(moved, exposure)})
    return films, rows


def key(journey: journeys.Journey) -> str:
    return f"{journey.source}/{journey.patient_id}"


def _place(pair_id: str) -> float:
    """A number in [0, 1) that depends on the pair alone."""
    return int.from_bytes(hashlib.sha256(pair_id.encode()).digest()[:8]) / 2**64
