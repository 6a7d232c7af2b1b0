"""How well and how fast follow-ups are moved onto their priors; prints JSON lines.

    python benchmarks/registration.py --root=DIR [--size=512] [--limit=N]      # lung boxes and masks of real pairs
    python benchmarks/registration.py --root=DIR --pairs=others                # the patients' other frontal pairs
    python benchmarks/registration.py --root=DIR --pairs=wrong                 # follow-ups laid wrong on purpose
    python benchmarks/registration.py --nih=DIR [--out=DIR]                    # outcomes and contact sheets
    python benchmarks/registration.py --phantom=40 [--size=512]                # landmarks of known pose

Real pairs: the COVID-19 Image Data Collection layout (`metadata.csv`, `images/`, `lung_boxes.json` in COCO
form), one row a pair of consecutive studies of one view on two days, both images resized to a square; others are
all further pairs of one patient's frontal films, in both orders, of one view or two; wrong lays the follow-ups of the
first kind on their side, upside down, as a negative, and counts the pairs that are refused. The
boxes of the follow-up are moved by the estimated transform (the upright rectangle around the moved corners)
and compared with the prior's: IoU, averaged over the two lungs. Lung masks (v7 Labs; both lungs in one) come with
torchxrayvision: its data folder, that zip, or a folder of the masks is --masks, by default what is installed. Pairs
with a mask of both images get a Dice coefficient; means are over patients.

NIH pairs: NIH ChestX-ray14's layout (`Data_Entry_2017_v2020.csv`, `images/`), consecutive follow-ups of one view,
cropped, resized and registered as a build does. --out: an empty folder for contact sheets of all pairs, least scores
first. No truth is known of them: look at the sheets.

The last line sums up. One process; set OMP_NUM_THREADS=1.
"""

import argparse
import collections
import importlib.util
import io
import itertools
import json
import math
import shutil
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.data import duplicates, foreground, images, radiograph, registration_sheets
from progemu_jax.data.registration import UNLIKE, frame_to_frame, register, resample, turned
from progemu_jax.data.sources import inside, read_table
from progemu_jax.errors import UserError, exit_status
from progemu_jax.eval.bootstrap import Bootstrap, estimate

MASKS = "semantic_masks_v7labs_lungs"  # the folder in torchxrayvision's zip of that name
NIH_TABLE = "Data_Entry_2017_v2020.csv"
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
LOWEST = 10  # accepted pairs of the least scores that are named

Film = collections.namedtuple("Film", "patient_id image_path")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--pairs", choices=("consecutive", "others", "wrong"), default="consecutive")
    parser.add_argument("--masks", type=Path, metavar="DIR_OR_ZIP")
    parser.add_argument("--nih", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--phantom", type=int, default=0, metavar="PAIRS")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    if not args.root and not args.nih and not args.phantom:
        parser.error("give --root, --nih or --phantom")
    if args.masks and (not args.root or args.pairs == "wrong"):
        parser.error("--masks goes with --root, and not with --pairs=wrong")
    if args.out and not args.nih:
        parser.error("--out goes with --nih")
    if args.size < images.LEAST:
        parser.error(f"--size={args.size}: at least {images.LEAST} pixels are needed")
    raise SystemExit(exit_status(lambda: _run(args)))


def _run(args):
    if args.root and args.pairs == "wrong":
        print(json.dumps(wrong_ways(args.root, args.size, args.limit)))
    elif args.root:
        choose = consecutive if args.pairs == "consecutive" else others
        pairs = list(choose(args.root))[: args.limit]
        rows = list(_report(real_pairs(args.root, args.size, pairs, lung_masks(args.masks))))
        before, after = (np.array([row[key] for row in rows]) for key in ("iou_before", "iou"))
        print(json.dumps(_summary(rows) | {
            "iou_before": round(before.mean(), 4),
            "iou": round(after.mean(), 4),
            "worse_by_0.02": int((after < before - 0.02).sum()),
            "masks": _dice_summary([row for row in rows if "dice" in row], args.root),
        }))  # fmt: skip
    if args.nih:
        rows = list(_report(nih_pairs(args.nih, args.size, args.limit, args.out)))
        print(json.dumps(_summary([row for row in rows if "score" in row]) | _outcomes(rows)))
    if args.phantom:
        rows = list(_report(phantom_pairs(args.phantom, args.size)))
        errors = [row["error_px"] for row in rows]
        print(json.dumps(_summary(rows) | {
            "error_px_before": round(float(np.median([row["error_px_before"] for row in rows])), 2),
            "error_px": round(float(np.median(errors)), 2),
            "error_px_p90": round(float(np.percentile(errors, 90)), 2),
            "error_px_reversed": round(float(np.median([row["error_px_reversed"] for row in rows])), 2),
        }))  # fmt: skip
    return 0


def _report(rows):
    for row in rows:
        print(json.dumps(row), flush=True)
        yield row


def _summary(rows):
    if not rows:
        raise UserError("no pair was registered; see --limit, and the table of the images")
    seconds = np.array([row["seconds"] for row in rows])
    return {
        "pairs": len(rows),
        "seconds_median": round(float(np.median(seconds)), 3),
        "seconds_max": round(float(seconds.max()), 3),
    }


def _timed(prior, follow):
    start = time.perf_counter()
    result = register(prior, follow)
    seconds = round(time.perf_counter() - start, 3)
    return result, {"flag": result.flag, "score": round(result.score, 3), "seconds": seconds}


def consecutive(root):
    """Pairs of rows of metadata.csv: one patient, one view, consecutive studies on two days."""
    return _neighbours(root / "metadata.csv", "patientid", "offset", "view", "filename")


def _neighbours(table, patient, when, view, name):
    """(patient, file name, file name) of neighbouring rows of a patient of one view, the second later.

    patient, when, view, name: columns of the CSV file `table`. Rows of another length and rows without a number in
    `when` are counted on stderr.
    """
    patients, bad = {}, 0
    for _, row in read_table(table, (patient, when, view, name)):
        try:
            time_of = float(row[when])
        except (TypeError, ValueError):
            time_of = math.nan
        if math.isfinite(time_of):
            patients.setdefault(row[patient], []).append((time_of, row[view], row[name]))
        else:
            bad += 1
    if bad:
        print(f"{table}: {bad} rows left out, of another length or without a number in {when!r}", file=sys.stderr)
    for key, studies in patients.items():
        studies.sort(key=lambda study: study[0])
        for first, second in itertools.pairwise(studies):
            if first[1] == second[1] and first[0] < second[0]:
                yield key, first[2], second[2]


def others(root):
    """What `consecutive` leaves out of one patient's frontal films, each pair in both orders."""
    taken, patients = {(first, second) for _, first, second in consecutive(root)}, {}
    for _, row in read_table(root / "metadata.csv", ("patientid", "view", "filename")):
        if row and row["view"] in ("PA", "AP", "AP Supine"):
            patients.setdefault(row["patientid"], []).append(row["filename"])
    for patient, names in patients.items():
        for first, second in itertools.permutations(names, 2):
            if not {(first, second), (second, first)} & taken:
                yield patient, first, second


def wrong_ways(root, size, limit=None):
    """{"pairs"; "refused": way -> pairs of flag -1}."""
    ways = {
        "as it is": lambda image: image, "left": np.rot90, "right": lambda image: np.rot90(image, 3),
        "turned": lambda image: image[::-1, ::-1], "upside down": lambda image: image[::-1],
        "negative": lambda image: 255 - image,
    }  # fmt: skip
    pairs, refused = list(consecutive(root))[:limit], dict.fromkeys(ways, 0)
    for _, first, second in pairs:
        prior, follow = read(root, first, size), read(root, second, size)
        for way, change in ways.items():
            refused[way] += register(prior, np.ascontiguousarray(change(follow))).flag == -1
    return {"pairs": len(pairs), "refused": refused}


def lung_boxes(root, size):
    """file name -> {lung: float64 [4] (left, top, right, bottom)} on a frame size x size."""
    coco = json.loads((root / "lung_boxes.json").read_text(encoding="utf-8"))
    images = {image["id"]: image for image in coco["images"]}
    boxes = {}
    for row in coco["annotations"]:
        image = images[row["image_id"]]
        x, y, w, h = row["bbox"]
        scale = np.array([size / image["width"], size / image["height"]] * 2)
        box = np.array([x, y, x + w, y + h]) * scale
        boxes.setdefault(image["file_name"], {})[row["category_id"]] = box
    return boxes


def read(root, name, size):
    """uint8 [size, size] of an image of the collection."""
    image = Image.open(root / "images" / name).convert("L")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def lung_masks(place=None):
    """file name -> file (Path or zipfile.Path) of the lung masks at `place`: torchxrayvision's data folder, its zip of
    them, or a folder of the masks. None: the installed package's; without it {}, and a line on stderr.

    Raises UserError for a `place` without masks.
    """
    if place is None:
        spec = importlib.util.find_spec("torchxrayvision")  # imports nothing, torch least of all
        if not (spec and spec.origin and (place := Path(spec.origin).parent / "data" / f"{MASKS}.zip").is_file()):
            print("no Dice of lung masks: torchxrayvision is not installed, or without them; --masks", file=sys.stderr)
            return {}
    if (place / f"{MASKS}.zip").is_file():
        place = place / f"{MASKS}.zip"
    try:
        folder = zipfile.Path(place) if place.is_file() else place
        folder = folder / MASKS if (folder / MASKS).is_dir() else folder
        masks = {file.name: file for file in folder.iterdir() if file.is_file()}
    except zipfile.BadZipFile as error:
        raise UserError(f"{place}: is no zip of lung masks ({error}); give torchxrayvision's data folder") from None
    if not masks:
        raise UserError(f"{place}: holds no lung masks; give torchxrayvision's data folder")
    return masks


def lung_mask(file, image, size):
    """bool [size, size] of a mask file; None, and a line on stderr, for a mask of another shape than `image` (a path).

    Raises UserError for a file that does not read.
    """
    try:
        with Image.open(image) as film, Image.open(io.BytesIO(file.read_bytes()), formats=("PNG", "JPEG")) as mask:
            if abs(film.width * mask.height / (film.height * mask.width) - 1) > 0.02:
                print(f"{file}: {mask.size}, the image has {film.size}; left out", file=sys.stderr)
                return None
            return np.asarray(mask.convert("L").resize((size, size), Image.Resampling.BILINEAR)) > 127
    except (OSError, SyntaxError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: the mask of {image} does not read ({type(error).__name__}); restore it") from None


def _dice(prior, follow, transform):
    """Dice coefficient of bool [H, W] `prior` and `follow` seen through `transform`; beyond a film there is no lung."""
    moved = resample(follow.astype(np.float32), transform, prior.shape, linear=True) > 0.5
    return 2 * (prior & moved).sum() / max(1, prior.sum() + moved.sum())


def _dice_summary(rows, root):
    """Means over patients of their pairs' means, and the gain with its 95 % interval over patients.

    Patients who share a film are one: the collection has some twice.
    """
    films = {(row["patient"], row[side]) for row in rows for side in ("prior", "followup")}
    same = duplicates.same_patients(Film(patient, root / "images" / name) for patient, name in sorted(films))
    of_patient = {}
    for row in rows:
        of_patient.setdefault(same.get(row["patient"], row["patient"]), []).append(row)
    out = {"pairs": len(rows), "patients": len(of_patient)}
    if not rows:
        return out
    before, after = (
        np.array([np.mean([row[key] for row in pairs]) for pairs in of_patient.values()])
        for key in ("dice_before", "dice")
    )
    bootstrap, every = Bootstrap(len(before), 2000), np.arange(len(before))
    gain = estimate(bootstrap.distributions(every, {"gain": (after - before, np.ones(len(before)))}, {})["gain"])
    return out | {
        "dice_before": round(before.mean(), 4),
        "dice": round(after.mean(), 4),
        "gain": round(gain.value, 4),
        "gain_95": [round(end, 4) for end in (gain.low, gain.high) if end is not None],
        "worse_by_0.02": sum(bool(row["dice"] < row["dice_before"] - 0.02) for row in rows),
    }


def real_pairs(root, size, pairs, masks):
    boxes = lung_boxes(root, size)
    still = frame_to_frame((size, size), (size, size))
    for patient, first, second in pairs:
        result, row = _timed(read(root, first, size), read(root, second, size))
        before, after = (
            np.mean([_iou(boxes[first][k], _moved(boxes[second][k], t)) for k in boxes[first]])
            for t in (still, result.transform)
        )
        pair = {"patient": patient, "prior": first, "followup": second}
        pair |= {"iou_before": round(before, 4), "iou": round(after, 4)}
        if first in masks and second in masks:
            lungs = [lung_mask(masks[name], root / "images" / name, size) for name in (first, second)]
            if all(mask is not None for mask in lungs):
                dice_before, dice = (round(_dice(*lungs, t), 4) for t in (still, result.transform))
                pair |= {"dice_before": dice_before, "dice": dice}
        yield pair | row


def _moved(box, transform):
    """`transform` leads from the prior to the follow-up; boxes come back by its inverse."""
    corners = np.array([[box[i], box[j], 1] for i in (0, 2) for j in (1, 3)])
    back = (corners @ np.linalg.inv(np.vstack([transform, [0, 0, 1]])).T)[:, :2]
    return np.concatenate([back.min(0), back.max(0)])


def _iou(a, b):
    width, height = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def nih_pairs(root, size, limit=None, out=None):
    """A row a pair; sheets of all pairs under `out`, once they are registered."""
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is no empty folder; give another")
    strips = {"kept": [], "refused": []}
    pairs = _neighbours(root / NIH_TABLE, "Patient ID", "Follow-up #", "View Position", "Image Index")
    for patient, first, second in itertools.islice(pairs, limit):
        pair = {"patient": patient, "prior": first, "followup": second}
        try:
            prior, follow = (_as_in_a_build(root, name, size) for name in (first, second))
            result, row = _timed(prior, follow)
        except images.BrokenImage as error:
            yield pair | {"outcome": "broken image", "why": str(error)}
            continue
        except (UserError, RuntimeError, ValueError) as error:
            yield pair | {"outcome": "registration failed", "why": type(error).__name__}
            continue
        if out:
            strip = registration_sheets.strip(prior, follow, result.image)
            name = f"{Path(first).stem}-{Path(second).stem}"
            strips["kept" if result.flag >= 0 else "refused"].append((result.score, name, strip))
        yield pair | row | {"outcome": _outcome(result)}
    if out:
        _write_sheets(out, strips)


def _as_in_a_build(root, name, size):
    """uint8 [size, size] of an image under `root`, cropped to its foreground; BrokenImage says why not."""
    path = inside(root, "images", name)
    if path is None:
        raise images.BrokenImage("the name leads out of the root")
    return images.resize(foreground.crop(radiograph.read_gray(path)), size)


def _outcome(result):
    if result.flag >= 0:
        return ("left, moving did not help", "moved", "alike already")[result.flag]
    return f"refused: score under {UNLIKE}" if result.score < UNLIKE else "refused: fits better another way round"


def _outcomes(rows):
    scored = [row for row in rows if "score" in row]
    names = ("prior", "followup", "score", "outcome")
    ranked = [{name: row[name] for name in names} for row in sorted(scored, key=lambda row: row["score"])]
    refused = [row for row in ranked if row["outcome"].startswith("refused")]
    quantiles = np.quantile([row["score"] for row in scored], QUANTILES)
    return {
        "outcomes": dict(collections.Counter(row["outcome"] for row in rows)),
        "score": {f"{q:g}": round(float(v), 3) for q, v in zip(QUANTILES, quantiles, strict=True)},
        "refused": refused + [row for row in rows if "score" not in row],
        "lowest_accepted": [row for row in ranked if row not in refused][:LOWEST],
    }


def _write_sheets(out, strips):
    """kept-01.png, ..., refused-01.png, ...: a strip a pair, least scores first."""
    out.mkdir(parents=True, exist_ok=True)
    for kind, of_kind in strips.items():
        of_kind.sort(key=lambda strip: strip[:2])
        for start in range(0, len(of_kind), registration_sheets.ROWS):
            with tempfile.TemporaryDirectory() as folder:  # one sheet's worth: `finish` makes a sample of more
                for score, name, picture in of_kind[start : start + registration_sheets.ROWS]:
                    registration_sheets.keep(Path(folder), "kept", name, score, picture)
                registration_sheets.finish(Path(folder))
                number = start // registration_sheets.ROWS + 1
                shutil.copyfile(Path(folder, "sheets", "doubtful.png"), out / f"{kind}-{number:02d}.png")


def phantom_pairs(count, size, seed=990):
    """Two studies of a patient in two poses: disease, exposure, noise differ; inspiration does not."""
    import dataclasses

    from progemu_jax.data import phantom

    for i in range(count):
        rng = phantom.generator("cohort", seed, i)
        patient = phantom.sample_patient(rng)
        states = phantom.sample_trajectory(rng, patient, 2)
        first, second = phantom.sample_acquisition(rng), phantom.sample_acquisition(rng)
        second = dataclasses.replace(
            second, view=first.view, view_label=first.view_label, inspiration=first.inspiration
        )
        prior, follow = (
            phantom.render(patient, state, pose, size).image
            for state, pose in zip(states, (first, second), strict=True)
        )
        result, row = _timed(prior, follow)
        here, there = (_landmarks(pose, size) for pose in (first, second))
        moved = result.transform @ np.vstack([here, np.ones(here.shape[1])])
        before, after = (float(np.median(np.hypot(*(points - there)))) for points in (here, moved))
        back = turned(result, prior, follow).transform @ np.vstack([there, np.ones(there.shape[1])])
        home = round(float(np.median(np.hypot(*(back - here)))), 2)
        error = {"error_px_before": round(before, 2), "error_px": round(after, 2), "error_px_reversed": home}
        yield {"pair": i} | error | row


def _landmarks(pose, size):
    """Nine points of the chest in pixels (x, y) of a phantom radiograph, float64 [2, 9]."""
    x, y = np.meshgrid([-0.5, 0, 0.5], [-0.5, -0.1, 0.3])
    body = np.stack([x.ravel(), y.ravel()])
    turn = np.array([[np.cos(pose.angle), -np.sin(pose.angle)], [np.sin(pose.angle), np.cos(pose.angle)]])
    film = pose.scale * turn @ body + np.array([[pose.shift_x], [pose.shift_y]])
    return (film + 1) * size / 2 - 0.5


if __name__ == "__main__":
    main()
