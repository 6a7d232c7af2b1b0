"""Journeys: order, views, filters, splits by patient, and a funnel that adds up."""

import pytest
from support.trees import study

from progemu_jax.data.journeys import SPLITS, Options, journeys, split_of
from progemu_jax.data.sources import Rejected, Study, safe_id
from progemu_jax.errors import UserError


def names(cohort):
    return [p.name for j in cohort.journeys for p in j.pairs]


def reasons(cohort):
    return [r.reason for r in cohort.rejected]


def test_studies_are_paired_in_time_order_whatever_the_order_of_the_rows():
    cohort = journeys([study(number=n, day=d) for n, d in ((5, 3), (9, 1), (7, 2))], Options())
    assert names(cohort) == ["i01s9-i02s7", "i02s7-i03s5"]
    pair = cohort.journeys[0].pairs[0]
    assert pair.pair_id == "mimic_cxr-pa-p10000001-i01s9-i02s7"
    assert pair.days == 1
    assert [s.study_id for _, s in cohort.journeys[0].images] == ["9", "7", "5"]


def test_all_pairs_only_in_training():
    patients = ("10000001", "19000001")
    rows = [study(p, int(p) + d, day=d) for p in patients for d in range(4)]
    cohort = journeys(rows, Options(pairs="all", validation=0))
    assert {j.split: len(j.pairs) for j in cohort.journeys} == {"train": 6, "test": 3}
    assert all(p.prior.days < p.followup.days for j in cohort.journeys for p in j.pairs)


def test_pairs_are_of_one_view_and_ordinals_count_all_studies():
    rows = [study(number=1, day=0), study(number=2, day=1, view="AP"), study(number=3, day=2)]
    cohort = journeys(rows, Options(views=("PA", "AP")))
    assert names(cohort) == ["i01s1-i03s3"]
    assert journeys(rows, Options()).funnel["of another view"] == 1
    merged = journeys(rows, Options(views=("PA+AP",)))
    assert names(merged) == ["i01s1-i02s2", "i02s2-i03s3"]
    assert merged.journeys[0].pairs[0].view == "frontal"


def test_the_first_image_stands_for_its_study_and_all_are_images():
    rows = [study(number=1, image_id=i) for i in ("b", "a")] + [study(number=2, day=1)]
    cohort = journeys(rows, Options())
    assert [p.prior.image_id for p in cohort.journeys[0].pairs] == ["a"]
    assert len(cohort.journeys[0].images) == 3


def test_an_image_listed_twice_counts_once():
    cohort = journeys([study(number=1), study(number=1), study(number=2, day=1)], Options())
    assert len(cohort.journeys[0].images) == 2
    assert reasons(cohort) == ["the image is listed twice"]


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"order_key": (0.0,)}, {}, "same time, order unknown"),
        ({"days": 2.0}, {"min_days": 3}, "interval too short"),
        ({"days": 9.0}, {"max_days": 8}, "interval too long"),
        ({"report": {"findings": "", "impression": ""}}, {}, "a report is missing"),
    ],
)
def test_filters_drop_with_a_reason(changes, options, reason):
    cohort = journeys([study(number=1), study(number=2, day=1, **changes)], Options(**options))
    assert names(cohort) == []
    assert reasons(cohort) == [reason]
    assert cohort.funnel[f"dropped: {reason}"] == 1


def test_an_interval_within_bounds_or_unknown_passes():
    for days in (5.0, None):
        rows = [study(number=1), study(number=2, day=1, days=days)]
        assert len(names(journeys(rows, Options(min_days=3, max_days=8)))) == 1


def test_at_least_one_finding_in_either_study():
    def kept(a, b, **options):
        return len(names(journeys([study(number=1, labels=a), study(number=2, day=1, labels=b)], Options(**options))))

    assert kept((), ("Edema",)) == kept(("Edema",), ()) == 1
    assert kept((), ()) == 0
    assert kept(("No Finding", "Support Devices"), ()) == 0
    assert kept((), (), finding=False) == 1
    unlabelled = [study(number=n, day=n) for n in (1, 2)]
    unlabelled = [Study(**{**vars(s), "labels": {}}) for s in unlabelled]
    assert len(names(journeys(unlabelled, Options()))) == 1


def test_mimic_splits_by_folder():
    patients = [f"{10 + i % 10}{i:06d}" for i in range(2000)]
    splits = {p: split_of("mimic_cxr", p) for p in patients}
    assert {p for p in patients if splits[p] == "test"} == {p for p in patients if p.startswith("19")}
    trained = [p for p in patients if not p.startswith("19")]
    share = sum(splits[p] == "validation" for p in trained) / len(trained)
    assert 0.08 < share < 0.12


def test_hashed_splits_have_their_shares_and_depend_on_nothing_else():
    options = Options(split="hash", validation=0.2, test=0.3)
    splits = [split_of("open_cxr", str(i), options=options) for i in range(4000)]
    shares = [splits.count(s) / len(splits) for s in SPLITS]
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.025)
    assert splits[17] == split_of("open_cxr", "17", options=options)
    other = Options(split="hash", validation=0.2, test=0.3, seed=1)
    assert splits != [split_of("open_cxr", str(i), options=other) for i in range(4000)]


def test_the_sources_own_split_and_a_patient_in_two_of_them():
    rows = [study(number=n, day=n, split=s) for n, s in ((1, "test"), (2, "test"))]
    assert journeys(rows, Options(split="csv")).journeys[0].split == "test"
    rows = [study(number=n, day=n, split=s) for n, s in ((1, "test"), (2, "train"))]
    cohort = journeys(rows, Options(split="csv"))
    assert not cohort.journeys
    assert reasons(cohort) == ["the patient is in several splits"] * 2
    assert reasons(journeys([study()], Options(split="csv"))) == ["the source names no split"]


def test_no_patient_is_in_two_splits_and_the_funnel_adds_up():
    rows = [study(f"{10 + p % 10}{p:06d}", 10 * p + d, day=d % 3) for p in range(60) for d in range(4)]
    rows[7] = Rejected("x", "y", "broken")
    rows[9] = Rejected("x", "y", "view LATERAL is not asked for")
    cohort = journeys(rows, Options(pairs="all"))
    funnel = cohort.funnel
    assert len({j.patient_id for j in cohort.journeys}) == len(cohort.journeys) == 60
    assert all(p.split == j.split for j in cohort.journeys for p in j.pairs)
    dropped = sum(n for step, n in funnel.items() if step.startswith("dropped"))
    assert dropped > 0
    assert funnel["candidate pairs"] == dropped + len(names(cohort))
    assert funnel["images in the source"] == 240
    assert funnel["images in journeys"] == 238
    assert (funnel["rejected while reading"], funnel["of another view"]) == (1, 1)
    assert len(cohort.rejected) == 2 + dropped


@pytest.mark.parametrize(
    "options",
    [
        {"pairs": "some"}, {"split": "odd"}, {"test": 0.6, "validation": 0.5}, {"test": -0.1},
        {"views": "PA"}, {"views": ()}, {"max_pairs_per_patient": 1}, {"views": ("PA", "PA+AP")},
    ],
)  # fmt: skip
def test_bad_options_are_one_clear_line(options):
    with pytest.raises(UserError) as error:
        Options(**options)
    assert next(iter(options)) in str(error.value)
    assert "\n" not in str(error.value)


def test_both_orders_of_any_two_studies_only_in_training():
    rows = [study(p, int(p) + d, day=d) for p in ("10000001", "19000001") for d in range(3)]
    cohort = journeys(rows, Options(pairs="both", validation=0))
    train, test = (next(j for j in cohort.journeys if j.split == s).pairs for s in ("train", "test"))
    names = [(p.prior_ordinal, p.followup_ordinal) for p in train]
    assert names == [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)]
    assert [p.said for p in train] == ["forward", "reversed", None, None, "forward", "reversed"]
    assert [p.days for p in train] == [1, -1, 2, -2, 1, -1]
    assert train[1].pair_id == "mimic_cxr-pa-p10000001-i02s10000002-i01s10000001"
    assert safe_id(train[1].pair_id)
    assert [(p.prior_ordinal, p.followup_ordinal, p.said) for p in test] == [(1, 2, "forward"), (2, 3, "forward")]
    assert (cohort.funnel["candidate pairs"], cohort.funnel["candidate pairs, reversed"]) == (8, 3)


def test_words_of_a_change_hold_only_where_no_known_study_lies_between():
    rows = [study(number=1, day=0), study(number=2, day=1, view="AP"), study(number=3, day=2)]
    pairs = journeys(rows, Options(views=("PA", "AP"), pairs="both")).journeys[0].pairs
    assert [(p.name, p.said) for p in pairs] == [("i01s1-i03s3", None), ("i03s3-i01s1", None)]


@pytest.mark.parametrize("limit", [2, 7, 30])
def test_many_studies_give_a_limited_number_of_pairs_consecutive_ones_first(limit):
    rows = [study(number=n, day=n) for n in range(1, 9)]
    options = Options(pairs="both", max_pairs_per_patient=limit)
    cohort = journeys(rows, options)
    pairs = cohort.journeys[0].pairs
    assert len(pairs) == len({p.pair_id for p in pairs}) == limit
    assert sum(p.consecutive for p in pairs) == min(limit, 14)
    assert sum(p.reversed for p in pairs) == limit // 2
    assert cohort.funnel["candidate pairs"] == 56
    assert cohort.funnel["dropped: over the limit of pairs of one patient"] == 56 - limit
    assert len(cohort.rejected) == 1
    assert journeys(rows[::-1], options).journeys[0].pairs == pairs


def test_bounds_are_on_the_intervals_size_in_both_orders():
    rows = [study(number=n, day=d) for n, d in ((1, 0), (2, 1), (3, 9))]
    cohort = journeys(rows, Options(pairs="both", min_days=2, max_days=8.5))
    assert names(cohort) == ["i02s2-i03s3", "i03s3-i02s2"]
    assert cohort.funnel["dropped: interval too short"] == cohort.funnel["dropped: interval too long"] == 2
    assert cohort.funnel["candidate pairs"] == 6
