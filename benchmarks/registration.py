"""How well and how fast follow-ups are moved onto their priors; prints JSON lines.

    python benchmarks/registration.py --root=DIR [--size=512] [--limit=N]      # lung boxes of real pairs
    python benchmarks/registration.py --root=DIR --pairs=others                # the patients' other frontal pairs
    python benchmarks/registration.py --root=DIR --pairs=wrong                 # follow-ups laid wrong on purpose
    python benchmarks/registration.py --phantom=40 [--size=512]                # landmarks of known pose

Real pairs: the COVID-19 Image Data Collection layout (`metadata.csv`, `images/`, `lung_boxes.json` in COCO
form), one row a pair of consecutive studies of one view on two days, both images resized to a square; others are
all further pairs of one patient's frontal films, in both orders, of one view or two; wrong lays the follow-ups of the
first kind on their side, upside down, as a negative, and counts the pairs that are refused. The
boxes of the follow-up are moved by the estimated transform (the upright rectangle around the moved corners)
and compared with the prior's: IoU, averaged over the two lungs. The last line sums up. One process; set
OMP_NUM_THREADS=1.
"""

import argparse
import csv
import itertools
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.data.registration import frame_to_frame, register, turned


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--pairs", choices=("consecutive", "others", "wrong"), default="consecutive")
    parser.add_argument("--phantom", type=int, default=0, metavar="PAIRS")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    if not args.root and not args.phantom:
        parser.error("give --root or --phantom")
    if args.root and args.pairs == "wrong":
        print(json.dumps(wrong_ways(args.root, args.size, args.limit)))
    elif args.root:
        choose = consecutive if args.pairs == "consecutive" else others
        rows = list(_report(real_pairs(args.root, args.size, list(choose(args.root))[: args.limit])))
        before, after = (np.array([row[key] for row in rows]) for key in ("iou_before", "iou"))
        print(json.dumps(_summary(rows) | {
            "iou_before": round(before.mean(), 4),
            "iou": round(after.mean(), 4),
            "worse_by_0.02": int((after < before - 0.02).sum()),
        }))  # fmt: skip
    if args.phantom:
        rows = list(_report(phantom_pairs(args.phantom, args.size)))
        errors = [row["error_px"] for row in rows]
        print(json.dumps(_summary(rows) | {
            "error_px_before": round(float(np.median([row["error_px_before"] for row in rows])), 2),
            "error_px": round(float(np.median(errors)), 2),
            "error_px_p90": round(float(np.percentile(errors, 90)), 2),
            "error_px_reversed": round(float(np.median([row["error_px_reversed"] for row in rows])), 2),
        }))  # fmt: skip


def _report(rows):
    for row in rows:
        print(json.dumps(row), flush=True)
        yield row


def _summary(rows):
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
    patients = {}
    with open(root / "metadata.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            patients.setdefault(row["patientid"], []).append(row)
    for patient, studies in patients.items():
        studies.sort(key=lambda row: float(row["offset"]))
        for first, second in itertools.pairwise(studies):
            if first["view"] == second["view"] and float(first["offset"]) < float(second["offset"]):
                yield patient, first["filename"], second["filename"]


def others(root):
    """What `consecutive` leaves out of one patient's frontal films, each pair in both orders."""
    taken, patients = {(first, second) for _, first, second in consecutive(root)}, {}
    with open(root / "metadata.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["view"] in ("PA", "AP", "AP Supine"):
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


def real_pairs(root, size, pairs):
    boxes = lung_boxes(root, size)
    still = frame_to_frame((size, size), (size, size))
    for patient, first, second in pairs:
        result, row = _timed(read(root, first, size), read(root, second, size))
        before, after = (
            np.mean([_iou(boxes[first][k], _moved(boxes[second][k], t)) for k in boxes[first]])
            for t in (still, result.transform)
        )
        pair = {"patient": patient, "prior": first, "followup": second}
        yield pair | {"iou_before": round(before, 4), "iou": round(after, 4)} | row


def _moved(box, transform):
    """`transform` leads from the prior to the follow-up; boxes come back by its inverse."""
    corners = np.array([[box[i], box[j], 1] for i in (0, 2) for j in (1, 3)])
    back = (corners @ np.linalg.inv(np.vstack([transform, [0, 0, 1]])).T)[:, :2]
    return np.concatenate([back.min(0), back.max(0)])


def _iou(a, b):
    width, height = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


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
