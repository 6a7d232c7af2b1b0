"""Source -> tree -> references -> shards as a whole: robust, parallel, resumable, and true to the phantom."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from support import cohorts
from support.cohorts import OPEN

from progemu_jax.data import build as building
from progemu_jax.data import radiograph, texts, tree
from progemu_jax.data.batches import Examples
from progemu_jax.data.build import build, build_tree
from progemu_jax.data.references import build_references
from progemu_jax.data.sources.icg_cxr import IcgCxr
from progemu_jax.data.sources.phantom import write_cohort
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text import rules
from progemu_jax.text.findings import FINDINGS

QUIET = {"size": 64, "processes": 1, "progress": False}


def rows(path):
    return [row for _, row in records.read_lines(path)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return cohorts.write(tmp_path_factory.mktemp("cohort"), patients=12, studies=3)


@pytest.fixture(scope="module")
def built(cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    return out, build("mimic_cxr", cohort, out, image_size=32, options={"pairs": "all"}, **QUIET)


BOTH = {"pairs": "both", "finding": False, "max_pairs_per_patient": 5}


@pytest.fixture(scope="module")
def both(cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("both")
    return out, build("mimic_cxr", cohort, out, image_size=32, options=BOTH, **QUIET)


def test_a_cohort_becomes_a_tree_references_and_shards(built):
    out, result = built
    funnel = result["funnel"]
    assert funnel["images in the source"] == 36
    assert funnel["pairs kept, test"] == 2
    dropped = sum(n for step, n in funnel.items() if step.startswith("dropped"))
    assert funnel["pairs kept"] == funnel["candidate pairs"] - dropped
    pairs = list(tree.read_pairs(out / "tree"))
    assert len(pairs) == funnel["pairs kept"]
    assert not (out / "tree/journal.jsonl").exists()
    assert len(rows(out / "tree/rejected.jsonl")) == dropped
    train = Examples(out / "shards", "pairs", "train")
    assert len(train) == funnel["pairs kept, train"]
    assert train[0]["prior"].shape == (32, 32)


def test_a_pairs_json_has_the_keys_of_icg_cxr_and_ours(built):
    pair = next(p for p in tree.read_pairs(built[0] / "tree") if p.split == "test")
    meta, ours = pair.meta, pair.ours
    assert pair.prompt
    assert cohorts.SECRET in meta["reference-report"]["findings"]
    assert meta["comment"]["confidence"] in range(1, 6)
    assert (meta["view"], meta["subject-id"], meta["time-interval"]) == ("PA", "19000009", 31.0)
    assert (meta["reference-study-id"], meta["followup-study-id"]) == ("50000900", "50000901")
    assert ours["labels_after"]["Pleural Effusion"] == 1
    assert (ours["age"], ours["sex"], ours["group"]) == (61.0, "F", "WHITE")
    assert ours["registration"]["flag"] in (0, 1, 2)
    assert np.shape(ours["registration"]["transform"]) == (2, 3)


def test_singles_are_the_images_that_may_be_trained_on(built):
    singles = list(tree.read_singles(built[0] / "tree"))
    assert len(singles) == 33  # p19 is the test
    assert not any(r["patient_id"].startswith("19") for r in singles)
    assert all(cohorts.SECRET in r["text"] and r["image"].exists() for r in singles)


def test_references_without_truth_take_states_from_the_reports(built):
    found = rows(built[0] / "references/references.jsonl")
    assert [r["pair_id"] for r in found] == [p.pair_id for p in tree.read_pairs(built[0] / "tree") if p.split == "test"]
    one = found[0]
    assert one["states_before"]["left pleural effusion"] == 0
    assert one["states_after"]["left pleural effusion"] == 1
    assert one["prompt_changes"]["left pleural effusion"] == 1
    assert one["masks_prior"] is one["counterfactual"] is None
    assert radiograph.read_gray(built[0] / "references" / one["followup"]).shape == (32, 32)


def test_report_text_stays_out_of_what_is_printed_and_rejected(cohort, tmp_path, capsys):
    build("mimic_cxr", cohort, tmp_path, **QUIET | {"progress": True})
    output = capsys.readouterr()
    assert "pairs kept" in output.out
    assert cohorts.SECRET not in output.out + output.err
    assert cohorts.SECRET not in (tmp_path / "tree/rejected.jsonl").read_text()


def test_broken_studies_are_rejected_and_the_run_goes_on(tmp_path):
    root = cohorts.write(tmp_path / "in", patients=11)
    folder = root / "files/p10/p10000000"
    (truncated,) = (folder / "s50000001").iterdir()
    truncated.write_bytes(truncated.read_bytes()[:200])
    (missing,) = (root / "files/p11/p11000001/s50000102").iterdir()
    missing.unlink()
    (odd,) = (root / "files/p12/p12000002/s50000200").iterdir()
    Image.fromarray(cohorts.chest(7, 90)[:80]).convert("RGB").save(odd, "JPEG")
    (blank,) = (root / "files/p13/p13000003/s50000301").iterdir()
    Image.new("L", (64, 64), 9).save(blank)
    funnel = build_tree("mimic_cxr", root, tmp_path / "t", **QUIET)
    rejected = {r["study_id"]: r["reason"] for r in rows(tmp_path / "t/rejected.jsonl")}
    assert "does not decode" in rejected["50000001"]
    assert "missing" in rejected["50000102"]
    assert "blank" in rejected["50000301"]
    assert funnel["dropped: broken image"] == 3
    assert funnel["dropped: an image of the pair is broken"] == 5
    kept = {p.pair_id for p in tree.read_pairs(tmp_path / "t")}
    assert any("p12000002" in p for p in kept)
    assert not any("50000001" in p for p in kept)
    assert len(rejected) == len(rows(tmp_path / "t/rejected.jsonl")) == 8


def test_contact_sheets_show_kept_and_refused_pairs(tmp_path):
    root = cohorts.write(tmp_path / "in", patients=11)
    (turned,) = (root / "files/p10/p10000000/s50000001").iterdir()
    Image.fromarray(cohorts.chest(1).T[::-1]).save(turned, quality=95)
    funnel = build_tree("mimic_cxr", root, tmp_path / "t", **QUIET)
    assert funnel["dropped: registration found no match"] == 2
    sheets = {p.name: Image.open(p).size for p in (tmp_path / "t/sheets").iterdir()}
    height = {"good.png": 20 - 12, "doubtful.png": 12, "rejected.png": 2}
    assert sheets == {name: (4 * 192, n * (192 + 14)) for name, n in height.items()}
    assert not (tmp_path / "t/.sheets").exists()


def test_pairs_without_change_are_kept_by_share(tmp_path, cohort, monkeypatch):
    text = texts.progression({"findings": "", "impression": ""}, {"findings": "", "impression": ""})
    monkeypatch.setattr(texts, "progression", lambda a, b, said: replace(text, prompt=texts.NO_CHANGE))
    counts = [
        build_tree("mimic_cxr", cohort, tmp_path / str(share), unchanged=share, **QUIET)["pairs kept"]
        for share in (1.0, 0.5)
    ]
    assert counts[0] == 24
    assert 4 <= counts[1] <= 20
    with pytest.raises(UserError, match="no pair is left"):
        build_tree("mimic_cxr", cohort, tmp_path / "none", unchanged=0.0, **QUIET)


def test_processes_do_not_change_the_result(cohort, built, tmp_path):
    build("mimic_cxr", cohort, tmp_path, image_size=32, options={"pairs": "all"}, **QUIET | {"processes": 2})
    assert cohorts.files(tmp_path) == cohorts.files(built[0])


KILLED = """
import json, sys
from progemu_jax.data.build import build
if __name__ == "__main__":
    build("mimic_cxr", sys.argv[1], sys.argv[2], size=64, image_size=32, options=json.loads(sys.argv[4]),
          processes=int(sys.argv[3]))
"""


@pytest.mark.parametrize(("processes", "pairs"), [(1, "all"), (2, "both")])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(cohort, built, both, tmp_path, processes, pairs):
    whole, options = (built, {"pairs": "all"}) if pairs == "all" else (both, BOTH)
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    command = [sys.executable, script, cohort, tmp_path / "out", str(processes), json.dumps(options)]
    journal = tmp_path / "out/tree/journal.jsonl"

    def killed_when(reached):
        with open(os.devnull, "w") as null:
            run = subprocess.Popen(command, stdout=null, stderr=null)
        while not reached() and run.poll() is None:
            time.sleep(0.005)
        workers = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
        run.send_signal(signal.SIGKILL)
        code = run.wait()
        assert not psutil.wait_procs(workers, timeout=10)[1]  # no orphan goes on writing
        return code

    def lines(n):
        return lambda: journal.exists() and journal.read_bytes().count(b"\n") >= n

    shards = tmp_path / "out/shards/icg_cxr/pairs"
    moments = [lines(2), lines(7), lambda: (tmp_path / "out/references/images").exists(), shards.exists]
    moments = moments if processes == 1 else moments[1:3]
    assert [killed_when(m) for m in moments] == [-signal.SIGKILL] * len(moments)
    journal_left = journal.exists()
    subprocess.run(command, check=True, capture_output=True)
    assert not journal_left
    assert cohorts.files(tmp_path / "out") == cohorts.files(whole[0])


def test_a_half_written_journal_line_is_done_again(cohort, built, tmp_path):
    full = tmp_path / "tree"
    interrupted = pytest.MonkeyPatch()

    def stop(*_):
        raise KeyboardInterrupt

    interrupted.setattr(building, "finish", stop)
    options = {"pairs": "all"}
    with pytest.raises(KeyboardInterrupt):
        build_tree("mimic_cxr", cohort, full, options=options, **QUIET)
    interrupted.undo()
    journal = full / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    build_tree("mimic_cxr", cohort, full, options=options, **QUIET)
    assert cohorts.files(full) == cohorts.files(built[0] / "tree")


def test_a_second_run_touches_nothing(cohort, built, capsys):
    before = {p: p.stat().st_mtime_ns for p in built[0].rglob("*") if p.is_file()}
    again = build("mimic_cxr", cohort, built[0], image_size=32, options={"pairs": "all"}, **QUIET)
    assert again["funnel"] == built[1]["funnel"]
    assert {p: p.stat().st_mtime_ns for p in built[0].rglob("*") if p.is_file()} == before


def test_other_options_are_refused_complete_or_not(cohort, built, tmp_path):
    with pytest.raises(UserError, match=r"options\.pairs='all', asked for 'consecutive'"):
        build_tree("mimic_cxr", cohort, built[0] / "tree", **QUIET)
    journal = json.dumps({"settings": {"size": 32}}) + "\n"
    (tmp_path / "journal.jsonl").write_text(journal)
    with pytest.raises(UserError, match="asked for"):
        build_tree("mimic_cxr", cohort, tmp_path, **QUIET)


def test_bad_input_is_one_clear_line(cohort, tmp_path):
    (tmp_path / "empty").mkdir()
    for root, options, words in (
        (tmp_path / "no", {}, "no such folder"),
        (tmp_path / "empty", {}, "empty"),
        (cohort, {"size": 8}, "size=8"),
        (cohort, {"unchanged": 2}, "unchanged=2"),
        (cohort, {"options": {"views": ("LL",)}}, "of another view: 36"),
    ):
        with pytest.raises(UserError, match=words) as error:
            build_tree("mimic_cxr", root, tmp_path / "out", **QUIET | options)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no pair of the validation split"):
        build_references(_only_test(cohort, tmp_path), tmp_path / "r", split="validation", size=32)


def _only_test(cohort, tmp_path):
    build_tree("mimic_cxr", cohort, tmp_path / "v", options={"validation": 0.0}, **QUIET)
    return tmp_path / "v"


# The phantom, whose truth is known.


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    write_cohort(root / "source", patients=32, studies_per_patient=2, size=96, seed=3, progress=False)
    build(
        "phantom",
        root / "source",
        root,
        size=96,
        image_size=64,
        truth=root / "source/truth",
        processes=1,
        progress=False,
    )
    return root


def test_references_of_the_phantom_are_the_truth(phantom):
    truth = {row["study_id"]: row for row in rows(phantom / "source/truth/studies.jsonl")}
    pairs = {p.pair_id: p for p in tree.read_pairs(phantom / "tree")}
    found = rows(phantom / "references/references.jsonl")
    assert len(found) >= 2
    for row in found:
        meta = pairs[row["pair_id"]].meta
        assert row["states_before"] == {f: truth[meta["reference-study-id"]]["state"][f] for f in FINDINGS}
        assert row["states_after"] == {f: truth[meta["followup-study-id"]]["state"][f] for f in FINDINGS}
        assert row["group"].startswith("GROUP")
        assert row["age"] == truth[meta["reference-study-id"]]["age"]


def _masks(phantom, row, side):
    with np.load(phantom / "references" / row[f"masks_{side}"]) as file:
        return file["masks"]


def test_masks_lie_on_their_images(phantom):
    """Lungs are darker than what lies between them, and registered lungs overlap the prior's."""
    for row in rows(phantom / "references/references.jsonl"):
        for side in ("prior", "followup"):
            image = radiograph.read_gray(phantom / "references" / row[side]).astype(float)
            masks = _masks(phantom, row, side)
            assert masks.shape == (6, 64, 64)
            assert masks.dtype == bool
            lungs = masks[0] | masks[1]
            if max(row[f"states_{'before' if side == 'prior' else 'after'}"].values()) < 0.4:
                assert image[lungs].mean() < image[masks[2] | masks[4]].mean() - 20
        before, after = (_masks(phantom, row, s)[:2].any(0) for s in ("prior", "followup"))
        dice = 2 * (before & after).sum() / (before.sum() + after.sum())
        assert dice > 0.6


def test_the_counterfactual_of_no_change_is_the_prior_cropped_as_it_was(phantom, tmp_path):
    """Carried through crop and resize, the rendered prior is its reference image, JPEG's error apart."""
    source = phantom / "source/truth/studies.jsonl"
    truth = {row["study_id"]: row for row in rows(source)}
    changed = tmp_path / "truth"
    changed.mkdir()
    pairs = {p.pair_id: p for p in tree.read_pairs(phantom / "tree") if p.split == "test"}
    same = {}
    for pair in pairs.values():  # every follow-up takes its prior's disease
        a, b = pair.meta["reference-study-id"], pair.meta["followup-study-id"]
        same[b] = truth[b] | {"disease": truth[a]["disease"]}
    records.write_lines(changed / "studies.jsonl", [same.get(i, row) for i, row in truth.items()])
    firsts = [i for i, p in pairs.items() if p.meta["reference-study-order"] == 1]
    build_references(phantom / "tree", tmp_path / "r", truth=changed, size=64, progress=False)
    found = [r for r in rows(tmp_path / "r/references.jsonl") if r["pair_id"] in firsts]
    assert found
    original = {r["pair_id"]: r for r in rows(phantom / "references/references.jsonl")}
    for row in found:
        real = original[row["pair_id"]]
        prior, back = (_gray(tmp_path / "r", row, side) for side in ("prior", "counterfactual"))
        assert np.abs(prior - back).mean() < 2.5
        if real["states_before"] != real["states_after"]:
            assert np.abs(prior - _gray(phantom / "references", real, "counterfactual")).max() > 5


def _gray(folder, row, side):
    return radiograph.read_gray(folder / row[side]).astype(float)


def test_truth_that_is_missing_or_broken(phantom, tmp_path):
    with pytest.raises(UserError, match="missing"):
        build_references(phantom / "tree", tmp_path / "r", truth=tmp_path, size=64)
    (tmp_path / "studies.jsonl").write_text('{"study_id": "1"}\n')
    with pytest.raises(UserError, match=r"studies\.jsonl:1: the row does not parse"):
        build_references(phantom / "tree", tmp_path / "r", truth=tmp_path, size=64)


@pytest.mark.skipif(not OPEN.is_dir(), reason="the open collection is not here")
def test_the_real_open_collection_goes_all_the_way(tmp_path):
    options = {"views": ("PA+AP+AP Supine",), "test": 0.25}
    result = build("open_cxr", OPEN, tmp_path, image_size=32, options=options, **QUIET)
    funnel = result["funnel"]
    assert funnel["images in the source"] == 99
    assert funnel["pairs kept"] > 30
    assert all(funnel[f"pairs kept, {split}"] for split in ("train", "validation", "test"))
    assert all(r["masks_prior"] is None for r in rows(Path(tmp_path) / "references/references.jsonl"))


# Both orders of any two studies.


def test_both_orders_are_trained_on_and_the_funnel_counts_them(both, built):
    out, result = both
    funnel, pairs = result["funnel"], {p.pair_id: p for p in tree.read_pairs(out / "tree")}
    assert funnel["pairs kept"] == len(pairs)
    reversed_ = [p for p in pairs.values() if p.meta["reference-study-order"] > p.meta["followup-study-order"]]
    assert funnel["pairs kept, reversed"] == len(reversed_) > 10
    assert {p.split for p in reversed_} == {"train"}
    dropped = sum(n for step, n in funnel.items() if step.startswith("dropped"))
    assert funnel["candidate pairs"] == funnel["pairs kept"] + dropped
    assert funnel["dropped: over the limit of pairs of one patient"] > 0
    held = {"validation", "test"}
    assert {p.pair_id: p.meta for p in pairs.values() if p.split in held} == {
        p.pair_id: p.meta for p in tree.read_pairs(built[0] / "tree") if p.split in held
    }
    train = Examples(out / "shards", "pairs", "train")
    assert len(train) == funnel["pairs kept, train"]
    assert all(pair.meta["time-interval"] < 0 for pair in reversed_)
    crossing = {p.patient_id: {q.split for q in pairs.values() if q.patient_id == p.patient_id} for p in pairs.values()}
    assert {len(splits) for splits in crossing.values()} == {1}


def test_the_other_order_has_the_inverse_move_and_the_opposite_text(both):
    pairs = list(tree.read_pairs(both[0] / "tree"))
    by_order = {(p.patient_id, p.meta["reference-study-id"], p.meta["followup-study-id"]): p for p in pairs}
    twins = [(p, by_order[a, c, b]) for (a, b, c), p in by_order.items() if b < c and (a, c, b) in by_order]
    assert len(twins) > 10
    for forward, back in twins:
        there, home = (np.vstack([p.ours["registration"]["transform"], [0, 0, 1]]) for p in (forward, back))
        np.testing.assert_allclose(there @ home, np.eye(3), atol=1e-9)
        assert forward.ours["registration"]["score"] == back.ours["registration"]["score"]
        assert forward.ours["labels_before"] == back.ours["labels_after"]
        assert _said(forward) == {name: -v for name, v in _said(back).items()}


def _said(pair):
    return {name: v for name, v in rules.changes(pair.interpretation).items() if v}


def test_cut_between_the_orders_of_two_films_it_goes_on_to_the_same_bytes(cohort, both, tmp_path, monkeypatch):
    write, left = tree.write_pair, [0]

    def killed(*arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(tree, "write_pair", killed)
    for n in (2, 3, 8, 15):
        left[0] = n
        with pytest.raises(KeyboardInterrupt):
            build_tree("mimic_cxr", cohort, tmp_path / "out/tree", options=BOTH, **QUIET)
    monkeypatch.undo()
    build("mimic_cxr", cohort, tmp_path / "out", image_size=32, options=BOTH, **QUIET)
    assert cohorts.files(tmp_path / "out") == cohorts.files(both[0])


def test_the_readers_of_icg_cxr_take_a_reversed_pair(both):
    pairs = list(IcgCxr(both[0] / "tree").pairs())
    assert len(pairs) == both[1]["funnel"]["pairs kept"]
    assert {p.ordinals[0] > p.ordinals[1] for p in pairs} == {True, False}


def test_trees_from_before_the_limit_go_on_and_impressions_are_refused(built, cohort, tmp_path):
    settings = records.read_json(built[0] / "tree/funnel.json")["settings"]
    assert "max_pairs_per_patient" not in settings["options"]
    with pytest.raises(UserError, match="impression"):
        build_tree(
            "mimic_cxr", cohort, tmp_path / "t", options=BOTH, text_options=texts.TextOptions("impression"), **QUIET
        )
