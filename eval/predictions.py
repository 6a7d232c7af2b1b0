"""Read the doors of evaluation: predictions folders, `references.jsonl`, score files; join them by case id.

Every inconsistency is one `UserError` line that names the file and the case ids (never a patient's text).
"""

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax import radtext
from progemu_jax.errors import UserError

# What a broken npz file raises, depending on where it is broken.
BROKEN_NPZ = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
REQUIRED_REFERENCE = ("pair_id", "patient_id", "prior", "followup", "prompt", "interpretation")
CHANGE = PRESENT = radtext.PRESENT


def name_ids(ids, limit=5):
    """'a, b, c and 7 more': a few case ids for an error line."""
    ids = [str(i) for i in ids]
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(ids[:limit]) + more


def read_jsonl(path):
    """Rows of a JSON-lines file as dicts; a line that does not parse is named by its number."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error.msg}); rewrite the file") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return rows


def read_image(path, shape=None, what=""):
    """A gray uint8 image [H, W]; `shape` is the size it must have."""
    try:
        with Image.open(path) as image:
            array = np.asarray(image.convert("L") if image.mode != "L" else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image{what} ({type(error).__name__})") from None
    if shape is not None and array.shape != tuple(shape):
        raise UserError(
            f"{path}: image is {array.shape[1]} x {array.shape[0]}, the references' are "
            f"{shape[1]} x {shape[0]}{what}; build the references at the size that the system makes"
        )
    return array


@dataclass
class References:
    """Test cases and what is true of them. Index = position in `rows`."""

    root: Path
    rows: list

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
        """uint8 [H, W] of kind prior, followup or counterfactual; None if the case has none."""
        name = self.rows[i].get(kind)
        if name is None:
            return None
        what = f" (case {self.pair_ids[i]})"
        return read_image(self.root / name, None if any_size else self.shape, what)

    def masks(self, i, which):
        """bool [6, S, S] of `which` = prior or followup, in the order of radtext.ORGANS; None if none."""
        name = self.rows[i].get(f"masks_{which}")
        if name is None:
            return None
        try:
            with np.load(self.root / name, allow_pickle=False) as file:
                return file["masks"].astype(bool)
        except BROKEN_NPZ as error:
            raise UserError(f"{self.root / name}: no readable array 'masks' ({type(error).__name__})") from None

    def present(self, finding, when):
        """float [N]: is `finding` present `when` = before or after: 1, 0, or NaN unknown or uncertain.

        A name of radtext.FINDINGS is read from the states (present from severity 0.15), any other from the
        CheXpert labels (1 present, 0 absent; -1 uncertain and blank unknown).
        """
        values = np.full(len(self.rows), np.nan)
        for i, row in enumerate(self.rows):
            if finding in radtext.FINDINGS:
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
        if finding not in radtext.FINDINGS:
            return self.present(finding, "after") - self.present(finding, "before")
        for i, row in enumerate(self.rows):
            before = (row.get("states_before") or {}).get(finding)
            after = (row.get("states_after") or {}).get(finding)
            if before is not None and after is not None:
                step = after - before
                values[i] = np.sign(step) * (abs(step) >= CHANGE - 1e-9)
        return values

    def true_changes(self):
        """float [N, 8] in FINDINGS order, +1, -1 or 0: what the interpretation should say.

        From the severities where they are the truth (the phantom: a case with a true counterfactual), else
        from the words of the reference interpretation: states read from reports cannot tell worse from
        unchanged.
        """
        by_state = np.stack([self.changed(f) for f in radtext.FINDINGS], axis=1)
        from_words = np.array([row.get("counterfactual") is None for row in self.rows])
        for i in np.flatnonzero(np.isnan(by_state).any(1) | from_words):
            said = radtext.changes(self.rows[i]["interpretation"])
            by_state[i] = [said.get(f, 0) for f in radtext.FINDINGS]
        return by_state

    def column(self, key):
        """float [N] of a numeric key, NaN where absent."""
        return np.array([np.nan if r.get(key) is None else float(r[key]) for r in self.rows])

    def take(self, pairs):
        """The references of these case ids only, in the present order."""
        pairs = set(pairs)
        return References(self.root, [r for r in self.rows if r["pair_id"] in pairs])


def read_references(root):
    """Read `references.jsonl` of the folder `root`."""
    root = Path(root)
    path = root / "references.jsonl" if root.is_dir() else root
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        missing = [k for k in REQUIRED_REFERENCE if row.get(k) is None]
        if missing:
            raise UserError(f"{path}: row {number} lacks {', '.join(missing)}; build the references again")
    _no_duplicates(path, [row["pair_id"] for row in rows])
    return References(path.parent, rows)


def _no_duplicates(path, ids):
    seen, twice = set(), []
    for i in ids:
        (twice.append(i) if i in seen else seen.add(i))
    if twice:
        raise UserError(f"{path}: duplicate cases {name_ids(dict.fromkeys(twice))}; keep one row of each")


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
    rows = read_jsonl(path)
    bad = [n for n, row in enumerate(rows, 1) if not isinstance(row.get("pair_id"), str)]
    if bad:
        raise UserError(f"{path}: no pair_id in line {name_ids(bad)}")
    unknown = dict.fromkeys(r["pair_id"] for r in rows if r["pair_id"] not in references.index)
    if unknown:
        raise UserError(
            f"{path}: cases that {references.root / 'references.jsonl'} does not hold: {name_ids(unknown)}; "
            "predictions and references must be of the same cohort and split"
        )
    keys = [(r["pair_id"], int(r.get("sample") or 0)) for r in rows]
    _no_duplicates(path, [f"{pair} (sample {s})" for pair, s in keys])
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
    return Rows(
        case=np.array([references.index[k[0]] for k in keys]),
        sample=np.array([k[1] for k in keys]),
        prompts=[r.get("prompt") or "" for r in rows],
        texts=halves["text"],
        images=images,
        info={k: rows[0].get(k) for k in ("checkpoint", "sampling", "seed") if rows[0].get(k) is not None},
    )


@dataclass
class Scores:
    """What classifiers say of images. Probabilities in [0, 1]; a part that the scorer lacks is None."""

    path: Path
    keys: dict  # (pair_id, sample) -> row
    findings: tuple = ()
    finding_prob: np.ndarray | None = None  # float32 [N, F]
    groups: tuple = ()
    group_prob: np.ndarray | None = None  # float32 [N, G]
    age: np.ndarray | None = None  # float32 [N], years
    sex_prob: np.ndarray | None = None  # float32 [N], P(F)
    organs: tuple = ()
    masks: np.ndarray | None = None  # uint8 [N, organs, H * W / 8], packed bits
    mask_shape: tuple = ()  # (H, W)

    def take(self, pairs, samples):
        """Row numbers (int [R]) of these (pair_id, sample); UserError names those without scores."""
        lost = [p for p, s in zip(pairs, samples, strict=True) if (p, int(s)) not in self.keys]
        if lost:
            raise UserError(
                f"{self.path}: no scores for cases {name_ids(dict.fromkeys(lost))}; run the score stage again"
            )
        return np.array([self.keys[p, int(s)] for p, s in zip(pairs, samples, strict=True)], np.int64)


def pack(masks):
    """bool [..., H, W] -> uint8 [..., ceil(H * W / 8)]."""
    return np.packbits(masks.reshape(*masks.shape[:-2], -1), axis=-1)


def _unpack_file(path, packed, shape, count, organs):
    """The masks of a score file, packed per organ, whether the array was packed flat or row by row."""
    shape = tuple(int(s) for s in shape)
    height, width = shape[-2:]
    total = count * organs * height * width
    if packed.dtype == bool:
        masks = packed
    elif packed.ndim == 1:
        if (total + 7) // 8 != len(packed):
            raise UserError(f"{path}: masks hold {len(packed)} bytes, mask_shape {shape} needs {(total + 7) // 8}")
        if height * width % 8 == 0:
            return packed.reshape(count, organs, -1), (height, width)
        masks = np.unpackbits(packed, count=total).astype(bool)
    else:
        masks = np.unpackbits(packed, axis=-1, count=width).astype(bool)
    return pack(masks.reshape(count, organs, height, width)), (height, width)


def read_scores(path):
    """Read a score file (`scores/<name>.npz`): pair_id [N], sample [N], findings, finding_prob [N, F], ...

    Whole parts may be absent or all NaN; a lone NaN or a probability outside [0, 1] is an error.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such score file")
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {k: file[k] for k in file.files}
    except BROKEN_NPZ as error:
        raise UserError(f"{path}: not a readable npz score file ({type(error).__name__})") from None
    if "pair_id" not in data:
        raise UserError(f"{path}: no array 'pair_id'")
    pairs = [str(p) for p in data["pair_id"]]
    samples = data.get("sample", np.zeros(len(pairs), np.int64))
    _no_duplicates(path, [f"{p} (sample {int(s)})" for p, s in zip(pairs, samples, strict=True)])
    out = Scores(path, {(p, int(s)): i for i, (p, s) in enumerate(zip(pairs, samples, strict=True))})
    for names, key in (
        ("findings", "finding_prob"),
        ("groups", "group_prob"),
        (None, "sex_prob"),
        (None, "age"),
    ):
        values = _numbers(path, data, key, pairs)
        if values is None:
            continue
        if names and names in data and values.shape[1:] != (len(data[names]),):
            raise UserError(f"{path}: {key} is {values.shape}, but there are {len(data[names])} {names}")
        setattr(out, key, values)
        if names:
            setattr(out, names, tuple(str(n) for n in data[names]))
    if "masks" in data and "mask_shape" in data:
        out.organs = tuple(str(o) for o in data.get("organs", radtext.ORGANS))
        out.masks, out.mask_shape = _unpack_file(path, data["masks"], data["mask_shape"], len(pairs), len(out.organs))
    return out


def _numbers(path, data, key, pairs):
    if key not in data or not data[key].size:
        return None
    values = np.asarray(data[key], np.float32)
    if len(values) != len(pairs):
        raise UserError(f"{path}: {key} has {len(values)} rows, pair_id {len(pairs)}")
    broken = np.isnan(values).reshape(len(values), -1)
    if broken.all():
        return None
    if broken.any():
        raise UserError(f"{path}: NaN in {key} for cases {name_ids(np.array(pairs)[broken.any(1)])}; score them again")
    if key != "age" and (values.min() < 0 or values.max() > 1):
        outside = ((values < 0) | (values > 1)).reshape(len(values), -1).any(1)
        raise UserError(f"{path}: {key} outside [0, 1] for cases {name_ids(np.array(pairs)[outside])}")
    return values
