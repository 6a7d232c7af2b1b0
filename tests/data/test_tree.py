"""The ICG-CXR tree: ours round-trips, others' trees are read, broken pairs are rejected."""

import json

import numpy as np
import pytest
from support import cohorts
from support.trees import META, external, study

from progemu_jax.data import radiograph, tree
from progemu_jax.data.journeys import Options, journeys
from progemu_jax.data.sources import Rejected
from progemu_jax.errors import UserError
from progemu_jax.files import records

PRIOR, FOLLOWUP = cohorts.chest(1), cohorts.chest(2)


def pair(**changes):
    return journeys([study(number=1, **changes), study(number=2, day=1, **changes)], Options()).journeys[0].pairs[0]


def test_a_pair_comes_back_as_written(tmp_path):
    meta = META | {"progemu": {"pair_id": pair().pair_id, "split": "test"}}
    folder = tree.write_pair(tmp_path, pair(), PRIOR, FOLLOWUP, meta)
    assert folder == tmp_path / "mimic_cxr/pa/1/p10/p10000001/i01s1-i02s2"
    (found,) = tree.read_pairs(tmp_path)
    assert found.meta == meta
    assert (found.pair_id, found.patient_id, found.split) == (pair().pair_id, "10000001", "test")
    np.testing.assert_array_equal(radiograph.read_gray(found.prior_path), PRIOR)
    np.testing.assert_array_equal(radiograph.read_gray(found.followup_path), FOLLOWUP)


def test_sources_without_folders_are_grouped_by_split(tmp_path):
    one = pair(source="open_cxr", patient_id="116")
    assert tree.pair_folder(tmp_path, one) == tmp_path / f"open_cxr/pa/1/{one.split}/p116/i01s1-i02s2"


def test_an_existing_pair_is_left_alone(tmp_path):
    tree.write_pair(tmp_path, pair(), PRIOR, FOLLOWUP, META)
    before = cohorts.files(tmp_path)
    tree.write_pair(tmp_path, pair(), FOLLOWUP, PRIOR, META)
    assert cohorts.files(tmp_path) == before


def test_a_pair_that_fails_half_way_is_not_there(tmp_path):
    with pytest.raises(TypeError):
        tree.write_pair(tmp_path, pair(), PRIOR, FOLLOWUP, {"progression-description": object()})
    assert not tree.pair_folder(tmp_path, pair()).exists()
    with pytest.raises(UserError, match="no pair"):
        list(tree.read_pairs(tmp_path))


def test_another_hands_tree_is_read_and_its_unknown_keys_kept(tmp_path):
    external(tmp_path)
    external(tmp_path, "pa/1/p19/p19000001", "i01s50414267-i02s53189527", "mimic_cxr")
    first, second = tree.read_pairs(tmp_path)
    assert first.meta["mystery"] == [1]
    assert first.pair_id == "chexpertplus-pa-p00023-i01s0001-i04s0002"
    assert (first.source, first.view, first.prompt) == ("chexpertplus", "pa", "New edema.")
    assert first.prior_path.name == "i01s0001-i04s0002-ref-reg.png"
    assert first.ours == {}
    assert second.split == "test"


def _move_outside(path):
    outside = path.parents[7] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.write_text(p.read_text()[:-9]), "does not parse"),
        (lambda p: p.write_bytes(b"\xff\xfe"), "does not parse"),
        (lambda p: p.write_text("[" * 100_000), "does not parse"),
        (lambda p: p.write_text("[]"), "not an object"),
        (lambda p: p.write_text(json.dumps(META | {"progemu": 1})), "not an object"),
        (lambda p: p.write_text("{}"), "'progression-description' is missing"),
        (lambda p: p.write_text(json.dumps(META | {"changes-of-findings": 3})), "'changes-of-findings'"),
        (lambda p: p.write_text(json.dumps(META | {"progression-description": "half \ud800"})), "not text"),
        (lambda p: p.write_text(json.dumps(META | {"progemu": {"pair_id": "../../x"}})), "plain name"),
        (lambda p: p.write_text(json.dumps(META | {"progemu": {"older": {}}})), "'older' is not a list of at most 2"),
        (lambda p: p.write_text(json.dumps(META | {"progemu": {"older": [3]}})), "'older' is not a list"),
        (lambda p: p.write_text(json.dumps(META | {"progemu": {"older": [{}] * 3}})), "'older' is not a list"),
        (lambda p: p.write_text(json.dumps(META | {"progemu": {"older": [{}]}})), "old1-reg.png is missing"),
        (lambda p: p.write_text(" " * (2 << 20)), "larger than"),
        (lambda p: p.with_name(p.stem + "-flu-reg.png").unlink(), "flu-reg.png is missing"),
        (lambda p: _move_outside(p.with_name(p.stem + "-ref-reg.png")), "leaves the root"),
        (_move_outside, "leaves the root"),
    ],
)
def test_broken_pairs_are_rejected_among_good_ones(tmp_path, damage, reason):
    root = tmp_path / "tree"
    damage(external(root, "pa/1/train/p1"))
    external(root, "pa/1/train/p2", **{"changes-of-findings": cohorts.SECRET})
    bad, good = tree.read_pairs(root)
    assert isinstance(bad, Rejected)
    assert reason in bad.reason
    assert bad.path == "chexpertplus/pa/1/train/p1/i01s0001-i04s0002/i01s0001-i04s0002.json"
    assert good.patient_id == "2"
    assert cohorts.SECRET not in repr(good)


def test_no_tree(tmp_path):
    for root, reason in ((tmp_path / "no", "no such folder"), (tmp_path, "empty")):
        with pytest.raises(UserError, match=reason):
            list(tree.read_pairs(root))


def test_singles_rows(tmp_path):
    row = {
        "image": "singles/a.png",
        "text": "t",
        "study_id": "1",
        "patient_id": "2",
        "source": "s",
        "split": "train",
    }
    records.write_lines(tmp_path / "singles.jsonl", [row, row | {"image": "../a.png"}, {"image": 3}])
    with open(tmp_path / "singles.jsonl", "a") as file:
        file.write("{nonsense\n")
    good, *bad = tree.read_singles(tmp_path)
    assert good == row | {"image": tmp_path / "singles/a.png"}
    assert [b.path for b in bad] == ["singles.jsonl:2", "singles.jsonl:3", "singles.jsonl:4"]
    assert "leaves the root" in bad[0].reason
    assert list(tree.read_singles(tmp_path / "nowhere")) == []
