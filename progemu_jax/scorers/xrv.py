"""Scorers of real radiographs from TorchXRayVision: DenseNet-121 findings, HITI race, RIKEN age, PSPNet organs.

Needs the extra `[xrv]` (torch, torchxrayvision); imported on first use only. The library downloads its weights to
~/.torchxrayvision/models_data on first use; the DenseNet file is a pickle, which runs code when it is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.text.findings import CHEXPERT, ORGANS

WEIGHTS = "densenet121-res224-all"
# The library's name of a finding where it is not CheXpert's.
RENAMED = {"Effusion": "Pleural Effusion"}
VERSION = 1  # of the preprocessing and of what is made of the outputs

CAVEAT = (
    "TorchXRayVision's classifiers were trained on public cohorts, MIMIC-CXR, CheXpert, NIH and PadChest among them, "
    "and the race model on MIMIC-CXR: test patients of these cohorts may have been in their training, scores on them "
    "are optimistic, and a generator trained on the same data can share the classifiers' shortcuts."
)


def _library() -> tuple[Any, Any]:
    try:
        import torch
        import torchxrayvision
    except ImportError as error:
        raise UserError(f'the XRV scorer needs {error.name}: pip install -e ".[xrv]"') from None
    return torch, torchxrayvision


def load_models() -> dict[str, Any]:
    """The four models with their published weights: name -> module in evaluation mode.

    Raises UserError when a weight file is neither there nor can be downloaded.
    """
    _, xrv = _library()
    makers = {
        "findings": lambda: xrv.models.DenseNet(weights=WEIGHTS),
        "race": lambda: xrv.baseline_models.emory_hiti.RaceModel(),
        "age": lambda: xrv.baseline_models.riken.AgeModel(),
        "organs": lambda: xrv.baseline_models.chestx_det.PSPNet(),
    }

    for name in ("emory_hiti", "riken", "chestx_det"):  # the library does not import these by itself
        importlib.import_module(f"torchxrayvision.baseline_models.{name}")
    models = {}
    for name, make in makers.items():
        try:
            models[name] = make().eval()
        except Exception as error:  # a download or a file: the library raises what it met
            line = (str(error).strip() or "?").splitlines()[0]
            raise UserError(
                f"XRV's {name} model cannot be loaded ({type(error).__name__}: {line}); put its weight file into "
                "~/.torchxrayvision/models_data"
            ) from None
    return models


class XRVScorer:
    """Scores real radiographs; see the module and CAVEAT.

    Attributes:
      identity: text that changes with library, weights or preprocessing, for caches of scores.
      caveat: what a reader of its scores must know.
    """

    caveat = CAVEAT

    def __init__(self, models: dict[str, Any] | None = None, batch_size: int = 8):
        """models: as `load_models` gives; any of the four may be missing, then its part of the scores is."""
        self.torch, library = _library()
        self.models = load_models() if models is None else models
        self.batch_size = batch_size
        self.identity = (
            f"torchxrayvision {getattr(library, '__version__', '?')}, {WEIGHTS}, {', '.join(sorted(self.models))}, "
            f"wrapper {VERSION}"
        )

    def __call__(self, images: np.ndarray, source: str) -> dict[str, np.ndarray]:
        """Scores images.

        Args:
          images: uint8 [N, S, S].
          source: the cohort they come from; the phantom is refused, for these models know radiographs only.

        Returns:
          The arrays of a score file: finding_prob f32 [N, F] (calibrated: 0.5 is the library's operating point),
          features f32 [N, 1024], group_prob f32 [N, 3], age f32 [N] years, masks uint8 [N, 6, S, ceil(S / 8)].
        """
        if source == "phantom":
            raise UserError("source 'phantom': XRV's models know real radiographs only; use the phantom scorer")
        if images.ndim != 3 or images.shape[1] != images.shape[2]:
            raise UserError(f"images of {images.shape[1:]} pixels: XRV's models want square ones")
        parts = list(self._batches(images))
        names = [k for k, v in parts[0].items() if isinstance(v, tuple)]
        out = {k: np.asarray(v) if k in names else np.concatenate([p[k] for p in parts]) for k, v in parts[0].items()}
        if "masks" in out:
            out["mask_shape"] = np.array([len(images), len(ORGANS), *images.shape[1:]])
        return out

    def _batches(self, images: np.ndarray) -> Iterator[dict[str, Any]]:
        for start in range(0, len(images), self.batch_size):
            yield self._score(images[start : start + self.batch_size])

    def _score(self, images: np.ndarray) -> dict[str, Any]:
        torch, out = self.torch, {}
        with torch.no_grad():
            x = torch.from_numpy(normalise(images)[:, None])
            if "findings" in self.models:
                model = self.models["findings"]
                names = [RENAMED.get(n, n) for n in model.targets]
                keep = [i for i, n in enumerate(names) if n in CHEXPERT]
                out["findings"] = tuple(names[i] for i in keep)
                out["finding_prob"] = _numpy(model(x))[:, keep]
                out["backbone"] = (f"torchxrayvision {WEIGHTS}, pooled features",)
                out["features"] = _numpy(model.features2(x))
            if "race" in self.models:
                out["groups"] = tuple(n.upper() for n in self.models["race"].targets)
                out["group_prob"] = np.exp(_numpy(self.models["race"](x)))  # the model ends in a log-softmax
            if "age" in self.models:
                out["age"] = _numpy(self.models["age"](x)).reshape(-1)
            if "organs" in self.models:
                names = [n.lower() for n in self.models["organs"].targets]
                logits = self.models["organs"](x)[:, [names.index(o) for o in ORGANS]]
                logits = torch.nn.functional.interpolate(logits, size=images.shape[1:], mode="bilinear")
                out["organs"] = ORGANS
                out["masks"] = np.packbits(_numpy(logits) > 0, axis=-1)  # probability above one half
        return out


def normalise(images: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S] -> f32 [N, S, S] in [-1024, 1024], the library's range (`xrv.utils.normalize`, maxval 255)."""
    return ((2 * (images.astype(np.float32) / 255) - 1.0) * 1024).astype(np.float32)


def _numpy(x: Any) -> np.ndarray:
    return np.asarray(x.detach().cpu().numpy(), np.float32)
