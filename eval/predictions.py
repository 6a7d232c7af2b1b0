"""The files that evaluation reads: predictions folders and `references.jsonl`; join them by case id.

Every inconsistency is one `UserError` line that names the file and the case ids (never a patient's text).
"""

import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.errors import UserError
from progemu_jax.eval.scores import BROKEN_NPZ, name_ids, no_duplicates
from progemu_jax.files import findings as cohort
from progemu_jax.files import records
from progemu_jax.text import findings, rules
from progemu_jax.text.controls import mean_image

REQUIRED_REFERENCE = ("pair_id", "patient_id", "prior", "followup", "prompt", "interpretation")
CHANGE = PRESENT = findings.PRESENT


def read_image(path, shape=None, what=""):
    """A gray uint8 image [H, W]; `shape` is the size it must have."""
    try:
        with records.open_file(path) as file, Image.open(file, formats=("PNG", "JPEG")) as image:
            width, height = image.size
            if shape is not None and (height, width) != tuple(shape):  # before anything is decoded
                raise UserError(
                    f"{path}: image is {width} x {height}, the references' are "
                    f"{shape[1]} x {shape[0]}{what}; build the references at the size that the system makes"
                )
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{path}: image of mode {image.mode}{what}; write 8-bit gray PNG")
            return np.asarray(image.convert("L") if image.mode != "L" else image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image{what} ({type(error).__name__})") from None


@dataclass
class References:
    """Test cases and what is true of them. Index = position in `rows`."""

    root: Path
    rows: list
    findings: tuple = findings.PHANTOM  # of `findings.Finding`: those of the cohort

    @cached_property
    def names(self):
        """Names of the findings: the F columns of every array of findings here."""
        return findings.names(self.findings)

    @cached_property
    def pair_ids(self):
        """Case ids, in order."""
        return [row["pair_id"] for row in self.rows]

    @cached_property
    def index(self):
        """pair_id -> position."""
        return {pair: i for i, pair in enumerate(self.pair_ids)}

    @cached_property
    def shape(self):
        """(H, W) of every image: that of the first."""
        return self.image(0, "prior", any_size=True).shape

    def image(self, i, kind, any_size=False):
        """uint8 [H, W] of kind prior, followup, counterfactual or mean (of all priors); None if the case has none."""
        if kind == "mean":
            return self.mean_prior
        name = self.rows[i].get(kind)
        if name is None:
            return None
        what = f" (case {self.pair_ids[i]})"
        if leaves(self.root, self.root / name):
            raise UserError(f"{self.root / name}: is a link out of the folder{what}; copy the file")
        return read_image(self.root / name, None if any_size else self.shape, what)

    @cached_property
    def mean_prior(self):
        """uint8 [H, W]: mean of all priors, the image of a system that knows no patient."""
        return mean_image(self.image(i, "prior") for i in range(len(self.rows)))

    def masks(self, i, which):
        """bool [6, S, S] of `which` = prior or followup, in the order of radtext.ORGANS; None if none."""
        name = self.rows[i].get(f"masks_{which}")
        if name is None:
            return None
        try:
            with records.open_npz(self.root / name) as file:
                masks = file["masks"].astype(bool)
        except BROKEN_NPZ as error:
            raise UserError(f"{self.root / name}: no readable array 'masks' ({type(error).__name__})") from None
        if masks.ndim != 3 or len(masks) != len(findings.ORGANS):
            raise UserError(f"{self.root / name}: masks {masks.shape} of case {self.pair_ids[i]} are no [6, S, S]")
        return masks

    def present(self, finding, when):
        """float [N]: is `finding` present `when` = before or after: 1, 0, or NaN unknown or uncertain.

        A finding of the cohort is read from the states (present from severity 0.15), any other name from the labels
        (1 present, 0 absent; -1 uncertain and blank unknown).
        """
        values = np.full(len(self.rows), np.nan)
        for i, row in enumerate(self.rows):
            if finding in self.names:
                severity = (row.get(f"states_{when}") or {}).get(finding)
                if severity is not None:
                    values[i] = severity >= PRESENT
            else:
                label = (row.get(f"labels_{when}") or {}).get(finding)
                if label in (0, 1):
                    values[i] = label
        return values

    def changed(self, finding):
        """float [N]: the true change of `finding`: +1, -1, 0; NaN unknown (states by 0.15, labels flip)."""
        values = np.full(len(self.rows), np.nan)
        if finding not in self.names:
            return self.present(finding, "after") - self.present(finding, "before")
        for i, row in enumerate(self.rows):
            before = (row.get("states_before") or {}).get(finding)
            after = (row.get("states_after") or {}).get(finding)
            if before is not None and after is not None:
                step = after - before
                values[i] = np.sign(step) * (abs(step) >= CHANGE - 1e-9)
        return values

    def severity(self, finding):
        """float [N]: the true severity of `finding` after, 0..1; NaN where it is unknown.

        States read from a report only say what is there: they are the truth where there is a true counterfactual.
        """
        values = [(r.get("states_after") or {}).get(finding) if r.get("counterfactual") else None for r in self.rows]
        return np.array([np.nan if v is None else v for v in values], np.float64)

    def true_changes(self):
        """float [N, F], +1, -1 or 0: what the interpretation should say.

        From the severities where they are the truth (the phantom: a case with a true counterfactual), else
        from the words of the reference interpretation: states read from reports cannot tell worse from
        unchanged.
        """
        by_state = np.stack([self.changed(f) for f in self.names], axis=1)
        from_words = np.array([row.get("counterfactual") is None for row in self.rows])
        for i in np.flatnonzero(np.isnan(by_state).any(1) | from_words):
            said = rules.changes(self.rows[i]["interpretation"], findings=self.findings)
            by_state[i] = [said.get(f, 0) for f in self.names]
        return by_state

    def column(self, key):
        """float [N] of a numeric key, NaN where absent."""
        return np.array([np.nan if r.get(key) is None else float(r[key]) for r in self.rows])

    def take(self, pairs):
        """The references of these case ids only, in the present order."""
        pairs = set(pairs)
        return References(self.root, [r for r in self.rows if r["pair_id"] in pairs], self.findings)


def read_references(root):
    """Read `references.jsonl` of the folder `root`, and its `findings.json` where it has one."""
    root = Path(root)
    path = root / "references.jsonl" if root.is_dir() else root
    rows = records.read_rows(path)
    for number, row in enumerate(rows, 1):
        missing = [k for k in REQUIRED_REFERENCE if row.get(k) is None]
        if missing:
            raise UserError(f"{path}: row {number} lacks {', '.join(missing)}; build the references again")
        wrong = _wrong(row)
        if wrong:
            key, wanted = wrong
            raise UserError(f"{path}: row {number} (case {row['pair_id']}): {key} is not {wanted}")
    no_duplicates(path, [row["pair_id"] for row in rows])
    return References(path.parent, rows, cohort.read(path.parent))


def _wrong(row):
    """(key, what it should be) of the first value of a reference that makes no sense, or None."""
    for key in REQUIRED_REFERENCE:
        if not isinstance(row[key], str):
            return key, "text"
    for key in ("prior", "followup", "counterfactual", "masks_prior", "masks_followup"):
        if row.get(key) is not None and not records.can_be_inside(row[key]):
            return key, "a path in the folder"
    if row.get("age") is not None and not _number(row["age"]):
        return "age", "a number or null"
    for key in ("group", "sex"):
        if row.get(key) is not None and not isinstance(row[key], str):
            return key, "text or null"
    for key, low in (("states_before", 0), ("states_after", 0), ("prompt_changes", -1)):
        values = row.get(key)
        if values is not None and not (
            isinstance(values, dict) and all(v is None or (_number(v) and low <= v <= 1) for v in values.values())
        ):
            return key, f"an object of numbers from {low} to 1"
    for key in ("labels_before", "labels_after"):
        if row.get(key) is not None and not isinstance(row[key], dict):
            return key, "an object"
    return None


def _number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def leaves(root, path):
    """Whether a file of a folder is a link out of it."""
    return not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), ""))


@dataclass
class Rows:
    """One system's outputs: row r is sample `sample[r]` of case `case[r]` (an index into the references)."""

    case: np.ndarray  # int [R]
    sample: np.ndarray  # int [R]
    prompts: list
    texts: list | None  # None if the system writes no text
    images: list | None  # paths; None if the system makes no images
    info: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.case)

    def select(self, keep):
        """Rows at the positions `keep` (int array)."""
        pick = lambda x: None if x is None else [x[k] for k in keep]  # noqa: E731
        return Rows(
            self.case[keep],
            self.sample[keep],
            pick(self.prompts),
            pick(self.texts),
            pick(self.images),
            self.info,
        )


def read_predictions(root, references):
    """Read a predictions folder (`predictions.jsonl` and its PNG files) and check it against the references.

    Returns:
      Rows sorted by case and sample. Cases of the references that the folder lacks are simply not in it.

    Raises:
      UserError: duplicate (case, sample), a case that the references do not know, an image that is named but
        missing, a row without an image or text where other rows have one.
    """
    root = Path(root)
    path = root / "predictions.jsonl"
    if not path.is_file():
        raise UserError(f"{root}: no predictions.jsonl; give the folder that the sample stage wrote")
    rows = records.read_rows(path)
    bad = [n for n, row in enumerate(rows, 1) if not isinstance(row.get("pair_id"), str)]
    if bad:
        raise UserError(f"{path}: no pair_id in line {name_ids(bad)}")
    for key, wanted, fine in (
        ("sample", "a whole number from 0", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0),
        ("prompt", "text", lambda v: isinstance(v, str)),
        ("text", "text", lambda v: isinstance(v, str)),
        ("image", "a path in the folder", records.can_be_inside),
    ):
        wrong = [r["pair_id"] for r in rows if r.get(key) is not None and not fine(r[key])]
        if wrong:
            raise UserError(f"{path}: {key} is not {wanted} for cases {name_ids(wrong)}")
    unknown = dict.fromkeys(r["pair_id"] for r in rows if r["pair_id"] not in references.index)
    if unknown:
        raise UserError(
            f"{path}: cases that {references.root / 'references.jsonl'} does not hold: {name_ids(unknown)}; "
            "predictions and references must be of the same cohort and split"
        )
    keys = [(r["pair_id"], r.get("sample") or 0) for r in rows]
    no_duplicates(path, [f"{pair} (sample {s})" for pair, s in keys])
    order = sorted(range(len(rows)), key=lambda k: (references.index[keys[k][0]], keys[k][1]))
    rows, keys = [rows[k] for k in order], [keys[k] for k in order]

    halves = {}
    for half, empty in (("image", ("", None)), ("text", (None,))):
        values = [r.get(half) for r in rows]
        without = [k[0] for k, v in zip(keys, values, strict=True) if v in empty]
        if without and len(without) < len(rows):
            raise UserError(f"{path}: no {half} for cases {name_ids(dict.fromkeys(without))}, though others have one")
        halves[half] = None if without else values
    images = halves["image"] and [root / name for name in halves["image"]]
    if images:
        lost = [k[0] for k, file in zip(keys, images, strict=True) if not file.is_file()]
        if lost:
            raise UserError(f"{root}: image files missing for cases {name_ids(lost)}; sample again")
        foreign = [k[0] for k, file in zip(keys, images, strict=True) if leaves(root, file)]
        if foreign:
            raise UserError(f"{root}: images of cases {name_ids(foreign)} are links out of the folder; copy the files")
    return Rows(
        case=np.array([references.index[k[0]] for k in keys]),
        sample=np.array([k[1] for k in keys]),
        prompts=[r.get("prompt") or "" for r in rows],
        texts=halves["text"],
        images=images,
        info={k: rows[0].get(k) for k in ("checkpoint", "sampling", "seed") if rows[0].get(k) is not None},
    )
