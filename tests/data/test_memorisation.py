"""The memorisation audit finds a copy, and nothing else."""

import json

import numpy as np
import pytest
from PIL import Image
from support import cohorts
from support.films import chest

from progemu_jax.data import icg_cxr, journeys, memorisation, tree
from progemu_jax.data.sources import Study
from progemu_jax.files import records


@pytest.fixture
def run(tmp_path):
    """Shards of 12 training pairs; three test cases; three generated images, the last a copy of a training image."""
    for i in range(12):
        study = Study("mimic_cxr", f"1000000{i}", f"{i}", "a", tmp_path, "PA", (0,), {}, {})
        meta = {"progression-description": "x", "changes-of-findings": "y", "progemu": {"split": "train"}}
        pair = journeys.Pair(study, study, 1, 2, "pa", "train")
        tree.write_pair(tmp_path / "tree", pair, chest(2 * i), chest(2 * i + 1), meta)
    records.write_lines(tmp_path / "tree/singles.jsonl", [
        {"image": "singles/a.png", "text": "t", "study_id": "s", "patient_id": "p", "source": "x", "split": "train"}
    ])  # fmt: skip
    (tmp_path / "tree/singles").mkdir()
    Image.fromarray(chest(50)).save(tmp_path / "tree/singles/a.png")
    icg_cxr.build_shards(tmp_path / "tree", tmp_path / "shards", 128, progress=False)
    references, predictions = tmp_path / "references", tmp_path / "predictions"
    references.mkdir()
    predictions.mkdir()
    for i in range(3):
        Image.fromarray(chest(100 + i)).save(references / f"{i}.png")
        Image.fromarray(chest(200 + i)).save(predictions / f"{i}.png")
    copy = np.clip(10 + 0.9 * chest(7).astype(float), 0, 255).astype(np.uint8)
    Image.fromarray(copy).save(predictions / "2.png")
    records.write_lines(
        references / "references.jsonl", [{"pair_id": f"c{i}", "followup": f"{i}.png"} for i in range(3)]
    )
    records.write_lines(
        predictions / "predictions.jsonl", [{"pair_id": f"c{i}", "image": f"{i}.png"} for i in range(3)]
    )
    return [f"--{name}={tmp_path / name}" for name in ("shards", "predictions", "references")], predictions


def test_a_copy_is_named(run, capsys):
    arguments, predictions = run
    assert memorisation.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((predictions / "memorisation.json").read_text())
    assert found["training_images"] == 25
    (copy,) = found["generated"]["copies"]
    assert copy["image"] == "c2#0"
    assert copy["of"].endswith("p10000003-i01s3-i02s3/followup")
    assert found["real"]["copies"] == []
    assert found["real"]["greatest"] < 0.95 < found["generated"]["greatest"]


def test_nearest_is_that_of_a_comparison_of_all():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(33, 8)).astype(np.float32)
    index, value = memorisation.nearest(a, (b[i : i + 10] for i in range(0, 33, 10)))
    np.testing.assert_array_equal(index, (a @ b.T).argmax(1))
    np.testing.assert_allclose(value, (a @ b.T).max(1), rtol=1e-6)


def test_what_does_not_read_is_one_clear_line(run, capsys):
    arguments, predictions = run
    (predictions / "1.png").write_bytes(b"")
    assert memorisation.main(arguments) == 2
    records.write_lines(predictions / "predictions.jsonl", [{"pair_id": "c0", "image": "../../x.png"}])
    assert memorisation.main(arguments) == 2
    (predictions / "predictions.jsonl").unlink()
    assert memorisation.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 3
    assert cohorts.SECRET not in error
