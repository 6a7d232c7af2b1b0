"""python -m progemu_jax.scorers.features --weights=DIR --references=DIR [--predictions=[NAME=]DIR ...] --out=FILE.npz

Features of a vision transformer, RAD-DINO (Perez-Garcia et al. 2025) say, for `python -m progemu_jax.eval
--features=FILE.npz`: of prior, followup, counterfactual and the mean of all priors of the references, and of each
predictions folder. --weights is a folder as Hugging Face has it (config.json, preprocessor_config.json,
model.safetensors); nothing is downloaded. Needs PyTorch and transformers. Features are kept in --cache by the content
of the image, so the same command goes on.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from progemu_jax.errors import UserError, exit_status
from progemu_jax.files import records
from progemu_jax.files.command_line import Parser
from progemu_jax.scorers.cache import Cached
from progemu_jax.scorers.files import REFERENCE_IMAGES, read_images
from progemu_jax.text.controls import mean_image

VERSION = 1  # of the preprocessing and of what is made of the outputs
BATCH = 8


class VisionTransformer:
    """The pooled output of a local vision transformer, by its own image processor.

    Attributes:
      identity: text that changes with weights or preprocessing, for caches. caveat: "".
      backbone: what the features are called: the folder's name and the digest of its files.
    """

    caveat = ""

    def __init__(self, folder: Path):
        files = [folder / name for name in ("config.json", "preprocessor_config.json", "model.safetensors")]
        if lost := [path.name for path in files if not path.is_file()]:
            raise UserError(f"{folder}: no {', '.join(lost)}; give the folder of a vision transformer's weights")
        try:
            import torch
            from transformers import AutoImageProcessor, AutoModel
        except ImportError as error:
            raise UserError(f"a vision transformer needs {error.name}: install torch and transformers") from None
        self.torch = torch
        try:
            self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self.model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        except Exception as error:  # of the library's own: a config or weights that are not what they say
            line = (str(error).strip() or "?").splitlines()[0]
            raise UserError(f"{folder}: cannot be loaded ({type(error).__name__}: {line})") from None
        sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        digest = hashlib.sha256("".join(sums).encode()).hexdigest()
        self.backbone = f"{folder.resolve().name} {digest[:8]}, pooled output"
        self.identity = f"vision transformer {digest}, wrapper {VERSION}"

    def __call__(self, images: np.ndarray, source: str) -> dict[str, np.ndarray]:
        """images uint8 [N, H, W] -> features f32 [N, D], backbone (text)."""
        out = []
        for start in range(0, len(images), BATCH):
            rgb = [np.repeat(image[..., None], 3, axis=2) for image in images[start : start + BATCH]]
            with self.torch.inference_mode():
                pixels = self.processor(images=rgb, return_tensors="pt")
                out.append(self.model(**pixels).pooler_output.float().numpy())
        return {"features": np.concatenate(out), "backbone": np.asarray(self.backbone)}


def write_features(scorer: Any, references: Path, predictions: dict[str, Path], out: Path) -> None:
    """Writes the features of the references' images and of predictions folders (name -> folder) to `out`."""
    rows = records.read_rows(references / "references.jsonl", "pair_id", "prior")
    work = []  # name, pair ids, samples, images
    for kind in REFERENCE_IMAGES:
        if kept := [row for row in rows if row.get(kind)]:
            images = read_images(references, [row[kind] for row in kept])
            work.append((kind, [row["pair_id"] for row in kept], [0] * len(kept), images))
    mean = mean_image(work[0][3])
    work.append(("mean", [row["pair_id"] for row in rows], [0] * len(rows), np.repeat(mean[None], len(rows), axis=0)))
    for name, folder in predictions.items():
        made = [row for row in records.read_rows(folder / "predictions.jsonl", "pair_id") if row.get("image")]
        if made:
            images = read_images(folder, [row["image"] for row in made])
            work.append((name, [row["pair_id"] for row in made], [row.get("sample") or 0 for row in made], images))
    found = []
    with tqdm(total=sum(len(images) for *_, images in work), desc="features", unit="image") as bar:
        for *_, images in work:
            for start in range(0, len(images), BATCH):
                found.append(scorer(images[start : start + BATCH], "")["features"])
                bar.update(len(found[-1]))
    records.write_npz(
        out,
        {
            "system": np.asarray([name for name, pairs, *_ in work for _ in pairs]),
            "pair_id": np.asarray([pair for _, pairs, *_ in work for pair in pairs]),
            "sample": np.asarray([sample for _, _, samples, _ in work for sample in samples], np.int64),
            "features": np.concatenate(found),
            "backbone": np.asarray(scorer.scorer.backbone),
        },
    )


def main(argv: list[str] | None = None) -> int:
    """Run from command-line arguments; returns the exit status (2 for bad input)."""
    parser = Parser(__doc__)
    parser.add_argument("--weights", required=True, metavar="DIR")
    parser.add_argument("--references", required=True, metavar="DIR")
    parser.add_argument("--predictions", action="append", default=[], metavar="[NAME=]DIR")
    parser.add_argument("--out", required=True, metavar="FILE.npz")
    parser.add_argument("--cache", metavar="DIR", help="default: <references>/scores/cache")
    args = parser.parse_args(argv)

    def work():
        if Path(args.out).suffix != ".npz":
            raise UserError(f"--out={args.out}: must end in .npz")
        folders = {}
        for given in args.predictions:
            name, _, folder = given.rpartition("=")
            name = name or Path(folder).resolve().name
            if name in folders or name in (*REFERENCE_IMAGES, "mean"):
                raise UserError(f"--predictions={given}: two are called {name}; give NAME=DIR")
            folders[name] = Path(folder)
        references = Path(args.references)
        scorer = Cached(VisionTransformer(Path(args.weights)), args.cache or references / "scores" / "cache", BATCH)
        write_features(scorer, references, folders, Path(args.out))
        return args.out

    return exit_status(work, "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
