"""Score files: what classifiers say of images. NPZ or CSV, so that anyone's classifier can be used."""

import csv
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.files.records import oddity, open_npz, read_json
from progemu_jax.text.findings import CHEXPERT, ORGANS, PHANTOM

# What a broken npz file raises, depending on where it is broken.
BROKEN_NPZ = (
    OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, MemoryError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
CSV_PLAIN = ("age", "sex_prob")
CSV_PREFIX = {"finding": ("findings", "finding_prob"), "group": ("groups", "group_prob")}


def name_ids(ids, limit=5):
    """'a, b, c and 7 more': a few case ids for an error line."""
    ids = [str(i) if str(i).isprintable() and len(str(i)) <= 200 else repr(str(i))[:200] for i in ids]
    more = f" and {len(ids) - limit} more" if len(ids) > limit else ""
    return ", ".join(ids[:limit]) + more


def no_duplicates(path, ids):
    """UserError naming the ids that occur twice in the file `path`."""
    seen, twice = set(), []
    for i in ids:
        (twice.append(i) if i in seen else seen.add(i))
    if twice:
        raise UserError(f"{path}: duplicate cases {name_ids(dict.fromkeys(twice))}; keep one row of each")


@dataclass
class Scores:
    """What classifiers say of images. Probabilities in [0, 1]; a part that the scorer lacks is None."""

    path: Path
    keys: dict  # (pair_id, sample) -> row
    findings: tuple = ()
    finding_prob: np.ndarray | None = None  # float32 [N, F]
    finding_severity: np.ndarray | None = None  # float32 [N, F] in [0, 1], of the same findings
    groups: tuple = ()
    group_prob: np.ndarray | None = None  # float32 [N, G]
    age: np.ndarray | None = None  # float32 [N], years
    sex_prob: np.ndarray | None = None  # float32 [N], P(F)
    organs: tuple = ()
    masks: np.ndarray | None = None  # uint8 [N, organs, H * W / 8], packed bits
    mask_shape: tuple = ()  # (H, W)
    features: np.ndarray | None = None  # float32 [N, D]
    backbone: str = ""  # what made the features
    saliency: np.ndarray | None = None  # float32 [N, F, h, w] in [0, 1]
    identity: np.ndarray | None = None  # float32 [N, D] of length 1, near for films of one patient

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
    try:
        shape = tuple(int(s) for s in np.atleast_1d(shape))
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{path}: mask_shape does not hold whole numbers") from None
    if len(shape) < 2 or min(shape) < 1:
        raise UserError(f"{path}: mask_shape {shape} must be N, organs, height, width")
    height, width = shape[-2:]
    total = count * organs * height * width
    if packed.dtype not in (bool, np.uint8):
        raise UserError(f"{path}: masks are {packed.dtype}; store bool, or its bits packed to uint8")
    if total > 8 * packed.size:  # before anything of that size is made
        raise UserError(f"{path}: masks {packed.shape} do not fit mask_shape {shape}")
    try:
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
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: masks {packed.shape} do not fit mask_shape {shape} ({error})") from None


def read_scores(path, findings=PHANTOM):
    """Read a score file: pair_id [N], sample [N], findings, finding_prob [N, F], ...; see docs/formats.md.

    findings: `Finding`s of the cohort, whose names and labels a CSV column may bear without "finding:" in front.

    Whole parts may be absent or all NaN; a lone NaN or a probability outside [0, 1] is an error.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such score file")
    bare = {*CHEXPERT, *(name for f in findings for name in (f.name, f.label))}
    data = _read_csv(path, bare) if path.suffix.lower() == ".csv" else _read_npz(path)
    if "pair_id" not in data:
        raise UserError(f"{path}: no array 'pair_id'")
    pairs = [str(p) for p in np.atleast_1d(data["pair_id"])]
    samples = _samples(path, data, len(pairs))
    no_duplicates(path, [f"{p} (sample {s})" for p, s in zip(pairs, samples, strict=True)])
    out = Scores(path, {(p, s): i for i, (p, s) in enumerate(zip(pairs, samples, strict=True))})
    for names, key in (("findings", "finding_prob"), ("groups", "group_prob"), (None, "sex_prob"), (None, "age")):
        values = _numbers(path, data, key, pairs, 2 if names else 1)
        if values is None:
            continue
        setattr(out, key, values)
        if names:
            setattr(out, names, _names(path, data, names, key, values.shape[1]))
    severity = _numbers(path, data, "finding_severity", pairs, 2)
    if severity is not None and severity.shape[1] != len(out.findings):
        raise UserError(f"{path}: finding_severity of {severity.shape[1]} findings, but there are {len(out.findings)}")
    out.finding_severity = severity
    features = _numbers(path, data, "features", pairs, 2)
    if features is not None:
        out.features, out.backbone = features, "".join(str(n) for n in np.atleast_1d(data.get("backbone", ""))[:1])
        if not out.backbone:
            raise UserError(f"{path}: features without 'backbone': name the network that made them")
    identity = _numbers(path, data, "identity", pairs, 2)
    if identity is not None:
        length = np.linalg.norm(identity, axis=1, keepdims=True)
        if np.abs(length - 1).max() > 0.01:
            lost = np.array(pairs)[np.abs(length[:, 0] - 1) > 0.01]
            raise UserError(f"{path}: identity of cases {name_ids(lost)} is no point of length 1; score them again")
        out.identity = identity / length
    saliency = _numbers(path, data, "saliency", pairs, 4)
    if saliency is not None and saliency.shape[1] != len(out.findings):
        raise UserError(f"{path}: saliency of {saliency.shape[1]} findings, but there are {len(out.findings)}")
    out.saliency = saliency
    if "masks" in data and "mask_shape" in data:
        out.organs = tuple(str(o) for o in np.atleast_1d(data.get("organs", ORGANS)))
        out.masks, out.mask_shape = _unpack_file(path, data["masks"], data["mask_shape"], len(pairs), len(out.organs))
    return out


def read_features(path):
    """Features of any network for all systems at once, in place of those of the score files.

    Args:
      path: .npz with system (text [N]: names of the predictions folders; "followup", "prior", ... for the references'
        images), pair_id, sample (0 where absent), features float [N, D], backbone (text).

    Returns:
      name -> Scores with features alone. UserError where the file does not read so, or has no rows of "followup".
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file of features")
    data = _read_npz(path)
    lost = [key for key in ("system", "pair_id", "features", "backbone") if key not in data]
    if lost:
        raise UserError(f"{path}: no array {', '.join(lost)}; features need system, pair_id, features and backbone")
    systems, pairs = ([str(v) for v in np.atleast_1d(data[key])] for key in ("system", "pair_id"))
    if len(systems) != len(pairs):
        raise UserError(f"{path}: system has {len(systems)} rows, pair_id {len(pairs)}")
    samples = _samples(path, data, len(pairs))
    no_duplicates(path, [f"{p} ({n}, sample {s})" for n, p, s in zip(systems, pairs, samples, strict=True)])
    features = _numbers(path, data, "features", pairs, 2)
    backbone = "".join(str(n) for n in np.atleast_1d(data["backbone"])[:1])
    if features is None or not backbone:
        raise UserError(f"{path}: features or the name of the backbone are empty; make them again")
    out = {}
    for name in dict.fromkeys(systems):
        rows = [i for i, n in enumerate(systems) if n == name]
        keys = {(pairs[i], samples[i]): k for k, i in enumerate(rows)}
        out[name] = Scores(path, keys, features=features[rows], backbone=backbone)
    if "followup" not in out:
        raise UserError(f"{path}: no rows of system 'followup', the real images that all others are compared with")
    return out


def _read_npz(path):
    try:
        with open_npz(path) as file:
            return {k: file[k] for k in file.files}
    except BROKEN_NPZ as error:
        raise UserError(f"{path}: not a readable npz score file ({type(error).__name__})") from None


def _read_csv(path, bare):
    """The arrays of a CSV score file: pair_id, sample, age, sex_prob, finding:NAME, group:NAME, or bare findings."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV score file ({type(error).__name__})") from None
    if len(rows) < 2:
        raise UserError(f"{path}: holds no rows")
    header, rows = [h.strip() for h in rows[0]], rows[1:]
    short = next((n for n, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if short:
        raise UserError(f"{path}: row {short} has {len(rows[short - 2])} columns, the header {len(header)}")
    data, parts = {}, {"finding": [], "group": []}
    for column, name in enumerate(header):
        cells = [row[column].strip() for row in rows]
        kind, _, rest = name.partition(":")
        if name in ("pair_id", "sample"):
            data[name] = np.array(cells)
        elif name in CSV_PLAIN:
            data[name] = _floats(path, name, cells)
        elif name in bare:
            parts["finding"].append((name, _floats(path, name, cells)))
        elif rest and kind in CSV_PREFIX:
            parts[kind].append((rest, _floats(path, name, cells)))
        else:
            raise UserError(
                f"{path}: column {name!r} is unknown; use pair_id, sample, age, sex_prob, finding:NAME or group:NAME"
            )
    for kind, columns in parts.items():
        if columns:
            names, values = CSV_PREFIX[kind]
            data[names] = np.array([n for n, _ in columns])
            data[values] = np.stack([v for _, v in columns], axis=1)
    return data


def _floats(path, name, cells):
    out = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        if cell:
            try:
                out[i] = float(cell)
            except ValueError:
                raise UserError(f"{path}: row {i + 2}, column {name!r}: {cell[:40]!r} is no number") from None
    return out


def _samples(path, data, count):
    values = np.atleast_1d(data.get("sample", np.zeros(count, np.int64)))
    try:
        out = [int(s) for s in values]
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{path}: sample must hold whole numbers") from None
    if len(out) != count:
        raise UserError(f"{path}: sample has {len(out)} rows, pair_id {count}")
    return out


def _names(path, data, names, key, count):
    if names not in data:
        raise UserError(f"{path}: {key} without {names}: name its columns")
    out = tuple(str(n) for n in np.atleast_1d(data[names]))
    if len(out) != count:
        raise UserError(f"{path}: {key} has {count} columns, but there are {len(out)} {names}")
    if len(set(out)) != len(out):
        raise UserError(f"{path}: {names} holds a name twice")
    return out


def _numbers(path, data, key, pairs, ndim):
    if key not in data or not data[key].size:
        return None
    try:
        if np.iscomplexobj(data[key]):
            raise TypeError
        with np.errstate(over="ignore"):  # becomes an infinity, which is refused below
            values = np.asarray(data[key], np.float32)
    except (ValueError, TypeError):
        raise UserError(f"{path}: {key} does not hold numbers") from None
    if values.ndim != ndim:
        raise UserError(f"{path}: {key} has shape {values.shape}, {ndim} axes are wanted")
    if len(values) != len(pairs):
        raise UserError(f"{path}: {key} has {len(values)} rows, pair_id {len(pairs)}")
    flat = values.reshape(len(values), -1)
    if np.isnan(flat).all():
        return None
    broken = ~np.isfinite(flat).all(1)
    if broken.any():
        what = "NaN" if np.isnan(flat).any() else "infinity"
        raise UserError(f"{path}: {what} in {key} for cases {name_ids(np.array(pairs)[broken])}; score them again")
    if key not in ("age", "features", "identity") and (values.min() < 0 or values.max() > 1):
        outside = ((flat < 0) | (flat > 1)).any(1)
        raise UserError(f"{path}: {key} outside [0, 1] for cases {name_ids(np.array(pairs)[outside])}")
    return values


def read_memorisation(path):
    """memorisation.json (dict) without the names in it, which are patients'. UserError where it does not read.

    {"training_images", "same"; "generated", "real": {"images", "median", "greatest", "copies"}}: counts, correlations;
    with "identity" in these, {"median", "greatest", "beyond"}, where a re-identification network looked too.
    """
    found = read_json(Path(path))
    if odd := oddity(found):
        raise UserError(f"{path}: holds {odd}; make the audit again")
    try:
        out = {"training_images": int(found["training_images"]), "same": float(found["same"])}
        for kind in ("generated", "real"):
            row = found[kind]
            out[kind] = {"images": int(row["images"]), "median": float(row["median"]),
                         "greatest": float(row["greatest"]), "copies": len(row["copies"])}  # fmt: skip
            if "identity" in row:
                out[kind]["identity"] = {k: float(row["identity"][k]) for k in ("median", "greatest", "beyond")}
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{path}: is no audit of python -m progemu_jax.data.memorisation; make it again") from None
    return out
