"""Our exports, readers and definitions against the other evaluations' own code: `make parity-eval`.

m3-score is installed. CHEXGENBENCH and TEA in the environment name checkouts of github.com/Raman1121/CheXGenBench and
github.com/ucalgary-miplab/TEA; without them their tests are skipped. Networks that have weights are stood in for.
"""

import ast
import functools
import json
import math
import os
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from support.eval_cohort import Cohort
from support.eval_inputs import CASES, close, features, import_torchvision

from progemu_jax.eval.export import export
from progemu_jax.eval.external import SHOWN, read_results
from progemu_jax.eval.metrics import fidelity, image

pytestmark = pytest.mark.parity
CHEXGENBENCH, TEA = (os.environ.get(name) for name in ("CHEXGENBENCH", "TEA"))
needs_chexgenbench = pytest.mark.skipif(not CHEXGENBENCH, reason="CHEXGENBENCH does not name a checkout of its code")
needs_tea = pytest.mark.skipif(not TEA, reason="TEA does not name a checkout of its code")
SIDE = 299  # of the images that CheXGenBench's metrics are computed on


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """(folder, Cohort) of 50 cases, a system `ours`, and labels of Edema."""
    root, made = tmp_path_factory.mktemp("cohort"), Cohort(patients=25)
    for k, row in enumerate(made.rows):
        row["labels_after"] = {"Edema": k % 2, "Fracture": None}
    made.write_references(root / "references")
    made.write_predictions(root / "ours", made.after, noise=9)
    return root, made


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_m3score_reads_our_export_and_we_its_results(cohort, monkeypatch):
    """Its command on our folders, with a small transformer of random weights for its encoder."""
    torch = pytest.importorskip("torch")
    import_torchvision()  # timm imports it
    cli = pytest.importorskip("m3score.cli")
    root, _ = cohort
    torch.manual_seed(0)

    class Patches(torch.nn.Module):
        img_size = (32, 32)

        def forward(self, pixels):
            return torch.nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)  # [N, 16, 3]

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed, self.norm_pre = Patches(), torch.nn.Identity()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(3)])

        def _pos_embed(self, tokens):
            return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)

    monkeypatch.setattr(cli, "M3Score", functools.partial(cli.M3Score, backbone=Encoder(), layers=(3, 2, 1)))
    folder = export("m3", root / "ours", root / "references", root / "m3/ours")
    command = [str(folder / "real"), str(folder / "generated"), "--group-pattern=(subject[0-9]+)", "--quiet"]
    assert cli.main([*command, f"--json={root / 'm3.json'}", "--device=cpu"]) == 0
    found = read_results("m3", root / "m3.json", "ours")
    assert set(SHOWN["m3"]) <= set(found)
    assert [found[n] for n in ("n_real", "n_gen", "n_real_subjects", "n_gen_subjects")] == [50, 50, 25, 25]


def network(side):
    """uint8 [N, C, H, W] -> float64 [N, side^2]: mean intensities, 0 to 4, on a grid: for any network of features."""
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):
        device = "cpu"

        def forward(self, pixels):
            return torch.nn.functional.adaptive_avg_pool2d(pixels[:, :1].double() / 64, side).flatten(1)

    return Network()


class Inputs(dict):
    """What a processor of transformers returns."""

    def to(self, device):
        return self


@pytest.fixture(scope="module")
def chexgenbench():
    """(file of CheXGenBench, *arguments) -> its names; with arguments it is run as a program, and rounds nothing."""
    torch = pytest.importorskip("torch")
    import_torchvision()
    from torchmetrics.image import fid, inception, kid

    class Model(torch.nn.Module):
        device = "cpu"

        def forward(self, pixels):
            return types.SimpleNamespace(pooler_output=network(3)(pixels))

    def stand_in(name, **names):
        module = types.ModuleType(name)
        module.__dict__.update(names)
        module.__getattr__ = lambda attribute: object
        patch.setitem(sys.modules, name, module)

    def metric(of, feature, **options):
        return of(feature=network(2) if isinstance(feature, int) else feature, **options)

    with pytest.MonkeyPatch.context() as patch:
        stand_in("termcolor", colored=lambda text, color: text)
        stand_in("seaborn")
        stand_in("diffusers")
        stand_in(
            "transformers",
            AutoModel=types.SimpleNamespace(from_pretrained=lambda name: Model()),
            AutoImageProcessor=types.SimpleNamespace(
                from_pretrained=lambda name: lambda images, return_tensors: Inputs(pixels=images)
            ),
        )
        for module, name in ((fid, "FrechetInceptionDistance"), (kid, "KernelInceptionDistance"),
                             (inception, "InceptionScore")):  # fmt: skip
            patch.setattr(module, name, functools.partial(metric, getattr(module, name)))
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # it sets it

        def run(file, *arguments):
            patch.setattr(sys, "argv", [file, *arguments])
            names = {"round": lambda value, digits: value}
            return runpy.run_path(str(Path(CHEXGENBENCH) / file), names, "__main__" if arguments else "chexgenbench")

        yield run


@pytest.fixture(scope="module")
def exported(cohort):
    root, _ = cohort
    return export("chexgenbench", root / "ours", root / "references", root / "chexgenbench/ours")


@needs_chexgenbench
@pytest.mark.parametrize("pathology", [None, "Edema"])
def test_chexgenbench_reads_our_export_and_we_its_results(chexgenbench, cohort, exported, pathology):
    """Its FID, KID, precision, recall, density and coverage of that export are ours of the cohort's own images."""
    torch = pytest.importorskip("torch")
    root, made = cohort
    chosen = ["--experiment_type=conditional", f"--pathology={pathology}"] if pathology else []
    chexgenbench(
        "metrics/fid.py", f"--synthetic_csv={exported}/assets/CSV/prompt_INFO.csv",
        f"--synthetic_img_dir={exported}/assets/synthetic_images", f"--real_csv={exported}/real.csv",
        f"--real_img_dir={exported}/real_images", "--extra_info=ours", f"--results_savedir={root}", "--num_workers=0",
        *(chosen or ["--experiment_type=regular"]),
    )  # fmt: skip
    cases = [row for row in made.rows if not pathology or row["labels_after"]["Edema"] == 1]
    paths = [[root / "references" / row["followup"] for row in cases],
             [root / f"ours/images/{row['pair_id']}-0.png" for row in cases]]  # fmt: skip
    pictures = [np.stack([np.asarray(Image.open(p).resize((SIDE, SIDE), Image.BILINEAR)) for p in of]) for of in paths]
    inception, dino = (
        [network(side)(torch.tensor(of[:, None])).numpy() for of in pictures] for side in (2, 3)
    )  # fmt: skip
    expected = {
        "FID": fidelity.fid(*inception), "FID (RadDino)": fidelity.fid(*dino),
        "KID": fidelity.kid(*inception), "KID (RadDino)": fidelity.kid(*dino),
        **dict(zip(("Precision", "Recall", "Density", "Coverage"), fidelity.neighbours(*dino, 5, 5), strict=True)),
    }  # fmt: skip
    file = "conditional_image_generation_metrics.csv" if pathology else "image_generation_metrics.csv"
    found = read_results("chexgenbench", root / file, "ours")
    if pathology:
        expected = {f"{name}, {pathology}": value for name, value in expected.items()}
    assert set(found) - set(expected) == {f"Inception Score, {pathology}" if pathology else "Inception Score"}
    close([found[name] for name in expected], list(expected.values()))


@pytest.fixture(scope="module")
def metrics(chexgenbench):
    """Names of CheXGenBench's files of metrics that can be computed on given features and images."""
    files = ("metrics/fid.py", "metrics/utils.py", "metrics/privacy_metrics.py")
    return functools.reduce(lambda names, file: names | chexgenbench(file), files, {})


@needs_chexgenbench
@pytest.mark.parametrize("seed", range(CASES))
def test_its_distances_on_given_features_are_ours(metrics, seed):
    """The Frechet distance is that of FRD. Its neighbours ask for two points more than k."""
    x, y = features(seed)
    if seed % 4 == 0:  # a copy lies on the edge of a ball
        y = y + 1e-3
    close(fidelity.fid(x, y), metrics["frechet_distance"](x, y))
    if min(len(x), len(y)) >= 7:
        theirs = metrics["compute_prdc_metric"](x, y)
        close(fidelity.neighbours(x, y, 5, 5), [theirs[n] for n in ("precision", "recall", "density", "coverage")])


@needs_chexgenbench
def test_its_distance_of_pixels_is_ours_of_numbers_but_wraps_around_of_images(metrics):
    a, b = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    root_mean_square = 255 * 10 ** (-image.psnr(a, b) / 20)
    close(metrics["pixelwise_distance"](a.astype(float), b.astype(float)), root_mean_square)
    assert abs(metrics["pixelwise_distance"](a, b) - root_mean_square) > 10


@pytest.fixture(scope="module")
def notebook():
    """Names of TEA's notebook: its imports and functions, and a function that reads a table as its second cell does."""
    cells = json.loads((Path(TEA) / "5_TEA.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {}
    for source in sources:
        kept = [
            node for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef | ast.Import)
            or (isinstance(node, ast.ImportFrom) and node.module in ("pathlib", "tifffile"))
        ]  # fmt: skip
        if not any(isinstance(node, ast.Import) and node.names[0].name == "seaborn" for node in kept):
            exec(compile(ast.Module(kept, []), "5_TEA.ipynb", "exec"), names)
    names["table"] = next(source for source in sources if "read_csv(csv" in source)
    return names


@needs_tea
def test_teas_notebook_reads_our_export(notebook, cohort):
    root, made = cohort
    folder = export("teacsv", root / "ours", root / "references", root / "teacsv/ours")
    notebook["exps"] = types.SimpleNamespace(path=str(folder))
    exec(notebook["table"], notebook)
    table, _, effectiveness, amplification = notebook["metrics"](notebook["df"], "add", "system")
    assert list(table["name"]) == [f"case{k:05d}_0" for k in range(len(made.rows))]
    ours = [
        image.tea(read(root / f"ours/images/{row['pair_id']}-0.png"), read(root / "references" / row["prior"]),
                  read(root / "references" / row["counterfactual"]))
        for row in made.rows if row["prompt_changes"]
    ]  # fmt: skip
    theirs = [pair for pair, row in zip(zip(effectiveness, amplification, strict=True), made.rows, strict=True)
              if row["prompt_changes"]]  # fmt: skip
    assert len(ours) > 40
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)  # they compute in float32


@needs_tea
@pytest.mark.parametrize("seed", range(CASES))
def test_effectiveness_and_amplification_are_teas(notebook, seed):
    prior, truth, made = np.random.default_rng(seed).integers(0, 256, (3, 20, 30), dtype=np.uint8)
    if seed % 4 == 0:
        made = np.clip(prior + 0.5 * (truth.astype(float) - prior) + seed % 3, 0, 255).astype(np.uint8)
    theirs = notebook["TEA"](truth / 255, prior / 255, made / 255)
    close(image.tea(made, prior, truth), theirs)
    assert math.isnan(image.tea(made, prior, prior)[0])
