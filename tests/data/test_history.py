"""Intervals and older films: which a pair has, where they lie, and that without them everything is as it was."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support import cohorts, label_cohorts
from support.cohorts import QUIET
from support.trees import study

from progemu_jax.data import icg_cxr, images, journeys, radiograph, registration, tree
from progemu_jax.data.augment import Augment, mirrored
from progemu_jax.data.batches import Examples
from progemu_jax.data.build import build, build_tree
from progemu_jax.data.journeys import Options
from progemu_jax.data.sources.phantom import write_cohort
from progemu_jax.errors import UserError
from progemu_jax.files import records


def pairs_of(rows, **options):
    return [p for j in journeys.journeys(rows, Options(**options)).journeys for p in j.pairs]


def older_of(pair):
    return [older.followup.study_id for older in pair.older]


@pytest.mark.parametrize(("history", "last"), [(0, []), (1, ["3"]), (2, ["3", "2"])])
def test_a_pair_has_the_films_before_its_prior_the_nearest_first(history, last):
    rows = [study(patient, n, day=n * n) for patient in ("10000001", "19000001") for n in (1, 2, 3, 4, 5)]
    for _ in range(2):
        pairs = pairs_of(rows, history=history)
        assert [len(p.older) for p in pairs] == 2 * [min(n, history) for n in range(4)]  # the test split too
        assert older_of(pairs[-1]) == last
        assert [-older.interval for older in pairs[-1].older] == [7, 12][:history]
        rows.reverse()


def test_older_films_are_of_the_pairs_view_and_known_to_be_earlier():
    days, views = (0, 1, 2, 2, 3, 4), ("PA", "AP", "PA", "PA", "PA", "PA")
    rows = [study(number=n, day=d, view=v) for n, (d, v) in enumerate(zip(days, views, strict=True))]
    found = {p.name: older_of(p) for p in pairs_of(rows, views=("PA", "AP"), history=2)}
    # Study 2 or 3: nobody knows which came first. The pair of them is dropped.
    assert found == {"i01s0-i03s2": [], "i04s3-i05s4": ["0"], "i05s4-i06s5": ["3", "0"]}


def test_reversed_pairs_and_pairs_of_others_have_none():
    rows = [study(number=n, day=n) for n in range(4)]
    pairs = pairs_of(rows, pairs="both", history=2, validation=0)
    assert [len(p.older) for p in pairs if not p.reversed] == [0, 0, 0, 1, 1, 2]
    assert [len(p.older) for p in pairs if p.reversed] == [0] * 6
    given = journeys.Given(rows[2], rows[3], "p", "i", ordinals=(3, 4))
    (pair,) = journeys.given_journeys([given], Options(history=2)).journeys[0].pairs
    assert pair.older == ()


@pytest.mark.parametrize("history", [-1, 3, 1.5, "2", None])
def test_another_history_is_one_clear_line(history):
    with pytest.raises(UserError, match=r"^history=.*: choose 0, 1 or 2 older films beside a pair's prior$"):
        Options(history=history)


@pytest.mark.parametrize(
    ("ages", "interval"),
    [((50, 50), 107), ((50, 51), 365.25), ((50.9, 53), 3 * 365.25), ((51, 50), None), ((None, 50), None)],
)
def test_ages_in_whole_years_give_coarse_intervals_where_no_time_is_known(ages, interval):
    rows = [study(number=n, day=n, days=None, age=age) for n, age in enumerate(ages)]
    forward, back = pairs_of(rows, pairs="both", validation=0)
    assert (forward.days, forward.interval) == (None, interval)
    assert back.interval == (None if interval is None else -interval)
    exact = pairs_of([replace(s, days=3.0 * n) for n, s in enumerate(rows)], min_days=1, max_days=4)
    assert [p.interval for p in exact] == [3]
    given = journeys.Given(*rows, "p", "i")  # its one age stands for both films
    assert journeys.given_journeys([given], Options()).journeys[0].pairs[0].interval is None


def test_the_median_distance_of_two_times_in_one_year():
    a, b = np.random.default_rng(0).random((2, 200_000))
    assert np.median(np.abs(a - b)) * journeys.DAYS_A_YEAR == pytest.approx(journeys.DAYS_WITHIN_A_YEAR, abs=1)


# The phantom, four studies a patient.


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom")
    write_cohort(out / "source", patients=3, studies_per_patient=4, size=96, seed=3, progress=False)
    options = {"history": 2, "finding": False}
    return out, build("mimic_cxr", out / "source", out, image_size=32, options=options, **QUIET | {"size": 96})


def inside(path):
    """What no edge of a film reaches."""
    return radiograph.read_gray(path)[20:-20, 20:-20].astype(float).ravel()


def test_older_films_lie_on_the_prior(phantom):
    out, result = phantom
    pairs = list(tree.read_pairs(out / "tree"))
    films = {p.meta["reference-study-id"]: p.prior_path for p in pairs}
    onto = {(p.meta["reference-study-id"], p.meta["followup-study-id"]): p for p in pairs}
    gains = []
    for pair in pairs:
        rows = pair.ours["older"]
        assert len(rows) == len(pair.older_paths) == pair.meta["reference-study-order"] - 1
        for row, path in zip(rows, pair.older_paths, strict=True):
            assert row.keys() == {"study_id", "days", "flag", "score", "transform", "exposure"}
            prior = inside(pair.prior_path)
            unmoved, moved = (np.corrcoef(prior, inside(p))[0, 1] for p in (films[row["study_id"]], path))
            gains.append(moved - unmoved)
        if rows:  # the nearest is registered as the pair of the two is, the other way round
            before = onto[rows[0]["study_id"], pair.meta["reference-study-id"]]
            assert rows[0]["days"] == before.meta["time-interval"] > 0
            moves = before.ours["registration"]["transform"], rows[0]["transform"]
            there, home = (np.vstack([move, [0, 0, 1]]) for move in moves)
            np.testing.assert_allclose(there @ home, np.eye(3), atol=1e-9)
        if len(rows) == 2:
            earlier = onto[rows[1]["study_id"], rows[0]["study_id"]]
            assert rows[1]["days"] == pytest.approx(rows[0]["days"] + earlier.meta["time-interval"])
    assert len(gains) == 9
    assert min(gains) > 0
    assert np.mean(gains) > 0.05
    assert [result["funnel"][f"older films {what}"] for what in ("kept", "left out")] == [9, 0]


def test_shards_hold_them_and_a_mirror_moves_them(phantom):
    out, _ = phantom
    found = {e["pair_id"]: e for split in ("train", "test") for e in Examples(out / "shards", "pairs", split)}
    for pair in tree.read_pairs(out / "tree"):
        e, rows = found[pair.pair_id], pair.ours["older"]
        assert (e["older"].shape, e["older"].dtype) == ((len(rows), 32, 32), np.uint8)
        assert e["older_days"].dtype == np.float32
        assert e["older_days"].tolist() == [row["days"] for row in rows]
        for film, path in zip(e["older"], pair.older_paths, strict=True):
            np.testing.assert_array_equal(film, images.resize(radiograph.read_gray(path), 32))
        np.testing.assert_array_equal(mirrored(e)["older"], e["older"][:, :, ::-1])
        null = Augment(null_prompt=1)(e, np.random.default_rng(0))
        assert len(null["older"]) == len(null["older_days"]) == 0
    source = Examples(out / "shards", "pairs", "train", cache=True)
    assert not source[0]["older"].flags.writeable
    assert records.read_json(out / "shards/icg_cxr/pairs/1.0.0/metadata.json")["history"] == 2


def test_another_history_is_refused_where_a_tree_or_shards_lie(phantom):
    out, _ = phantom
    with pytest.raises(UserError, match=r"options\.history=2, asked for 0"):
        build_tree("mimic_cxr", out / "source", out / "tree", options={"finding": False}, **QUIET | {"size": 96})


# Chests drawn with NumPy, small and fast.


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return cohorts.write(tmp_path_factory.mktemp("cohort"), patients=2, studies=4)


BOTH = {"pairs": "both", "finding": False, "history": 2}


def test_killed_between_pairs_it_goes_on_to_the_same_bytes(cohort, tmp_path, monkeypatch):
    whole = build_tree("mimic_cxr", cohort, tmp_path / "whole", options=BOTH, **QUIET)
    assert (whole["pairs kept"], whole["pairs kept, reversed"], whole["older films kept"]) == (24, 12, 8)
    write, left = tree.write_pair, [0]

    def killed(*arguments):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(tree, "write_pair", killed)
    for n in (4, 11):
        left[0] = n
        with pytest.raises(KeyboardInterrupt):
            build_tree("mimic_cxr", cohort, tmp_path / "cut", options=BOTH, **QUIET)
    monkeypatch.undo()
    build_tree("mimic_cxr", cohort, tmp_path / "cut", options=BOTH, **QUIET)
    assert cohorts.files(tmp_path / "cut") == cohorts.files(tmp_path / "whole")


def test_two_films_are_registered_once(cohort, tmp_path, monkeypatch):
    register, calls = registration.register, []
    monkeypatch.setattr(registration, "register", lambda a, b: calls.append(0) or register(a, b))
    build_tree("mimic_cxr", cohort, tmp_path / "t", options=BOTH, **QUIET)
    assert len(calls) == 2 * 6
    reversed_ = [p for p in tree.read_pairs(tmp_path / "t") if p.meta["time-interval"] < 0]
    assert len(reversed_) == 12
    assert all(p.ours["older"] == [] for p in reversed_)


def test_the_first_film_that_is_broken_or_has_no_match_ends_the_history(tmp_path):
    root = cohorts.write(tmp_path / "in", patients=2, studies=4)
    (broken,) = (root / "files/p10/p10000000/s50000001").iterdir()
    broken.write_bytes(broken.read_bytes()[:200])
    (turned,) = (root / "files/p11/p11000001/s50000100").iterdir()
    Image.fromarray(cohorts.chest(1).T[::-1]).save(turned, quality=95)
    funnel = build_tree("mimic_cxr", root, tmp_path / "t", options={"history": 2, "finding": False}, **QUIET)
    pairs = tree.read_pairs(tmp_path / "t")
    assert {p.prior_path.parent.name: [row["study_id"] for row in p.ours["older"]] for p in pairs} == {
        "i03s50000002-i04s50000003": [],  # the second is broken, and the first does not stand in for it
        "i02s50000101-i03s50000102": [],  # the first lies on its side
        "i03s50000102-i04s50000103": ["50000101"],
    }
    assert [funnel[f"older films {what}"] for what in ("kept", "left out")] == [1, 4]


def test_unregistered_films_stay_where_they_lie(cohort, tmp_path):
    options = {"history": 1, "finding": False, "register": False}
    build_tree("mimic_cxr", cohort, tmp_path / "t", options=options, **QUIET)
    pairs = list(tree.read_pairs(tmp_path / "t"))
    raw = {p.meta["reference-study-id"]: radiograph.read_gray(p.prior_path) for p in pairs}
    for pair in pairs:
        for row, path in zip(pair.ours["older"], pair.older_paths, strict=True):
            np.testing.assert_array_equal(radiograph.read_gray(path), raw[row["study_id"]])
            assert (row["transform"], row["exposure"]) == (np.eye(2, 3).tolist(), [1.0, 0.0])


# NIH ChestX-ray14 has ages and no dates.


@pytest.fixture(scope="module")
def nih(tmp_path_factory):
    """Ages of the first patient, a girl of the table: 50, 52, 50; of the others one age each."""
    root = label_cohorts.nih(tmp_path_factory.mktemp("nih"), patients=3)
    label_cohorts.edit(root / "Data_Entry_2017_v2020.csv", (",1,1,50,", ",1,1,52,"))
    return root


def test_coarse_intervals_are_in_tree_and_shards_where_they_are_asked_for(nih, tmp_path):
    known = {"1": [730.5, None], "2": [107.0, 107.0], "3": [107.0, 107.0]}
    for name, options in (("off", {}), ("coarse", {"coarse_days": True}), ("history", {"history": 2})):
        build_tree("nih_cxr14", nih, tmp_path / name, options={"finding": False, **options}, **QUIET)
        icg_cxr.build_shards(tmp_path / name, tmp_path / f"{name}-shards", 32, progress=False)
        pairs = {p.pair_id: p for p in tree.read_pairs(tmp_path / name)}
        assert len(pairs) == 6
        for pair in pairs.values():
            expected = known[pair.patient_id[-1]][pair.meta["reference-study-order"] - 1]
            assert pair.meta["time-interval"] is None
            assert pair.ours.get("interval") == (expected if options else None)
            if name == "history" and pair.meta["reference-study-order"] == 2:
                assert [row["days"] for row in pair.ours["older"]] == [known[pair.patient_id[-1]][0]]
        shards = icg_cxr.config_folder(tmp_path / f"{name}-shards", "pairs")
        for split in {p.split for p in pairs.values()}:
            for e in Examples(tmp_path / f"{name}-shards", "pairs", split):
                np.testing.assert_equal(float(e["days"]), float(pairs[e["pair_id"]].ours.get("interval") or "nan"))
                assert ("older" in e) == (name == "history")
        made_from = records.read_json(shards / "metadata.json")
        assert made_from.keys() - {"items", "image_size", "labels"} == {
            "off": set(), "coarse": {"coarse_days"}, "history": {"coarse_days", "history"},
        }[name]  # fmt: skip


# Off, everything is as it was before there was history.

BEFORE = {
    "all": "eb0c74cf7d79306136afca28f814e872737b9cab4e8d370d103acfbe44c3122f",
    "both": "7343cea0c3202c04755b7f1951a0a678054ac14203440c32c8b5e96a272dbb88",
    "nih": "5128bd79f29e24ecdb8d2a0f0b8ff836a7402c99d8c7ca0f7a0b0f9d33e40c01",
}


def content(tree_root, shards):
    """What files there are and what they hold, without texts, and pixels, which another machine may round otherwise."""
    found = {"files": sorted(str(p.relative_to(tree_root)) for p in tree_root.rglob("*") if p.is_file())}
    for pair in tree.read_pairs(tree_root):
        found[pair.pair_id] = [list(part) for part in (pair.meta, pair.ours, pair.ours["registration"])]
    for name in ("pairs", "single"):
        folder = icg_cxr.config_folder(shards, name)
        found[name] = [records.read_json(folder / file) for file in ("metadata.json", "features.json")]
    found["days"] = {e["pair_id"]: float(e["days"]) for e in Examples(shards, "pairs", "train")}
    found["funnel"] = list(records.read_json(tree_root / "funnel.json").items())
    return found


def test_off_everything_is_as_it_was(nih, tmp_path):
    root = cohorts.write(tmp_path / "in", patients=2, studies=3)
    for name, source, where, options in (
        ("all", "mimic_cxr", root, {"pairs": "all"}),
        ("both", "mimic_cxr", root, {"pairs": "both", "finding": False}),
        ("nih", "nih_cxr14", nih, {}),
    ):
        build_tree(source, where, tmp_path / name, options=options, **QUIET)
        icg_cxr.build_shards(tmp_path / name, tmp_path / f"{name}-shards", 32, progress=False)
        assert records.digest(content(tmp_path / name, tmp_path / f"{name}-shards")) == BEFORE[name]
