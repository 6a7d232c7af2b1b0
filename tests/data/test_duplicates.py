"""Films listed under two patients are found, and those patients share a split."""

import pytest
from PIL import Image
from support.cohorts import OPEN
from support.films import chest, saved_again

from progemu_jax.data.duplicates import same_patients
from progemu_jax.data.journeys import Options, journeys, split_of
from progemu_jax.data.sources import Study, open_source


def film(folder, patient, day, image):
    path = folder / f"{patient}-{day}.png"
    Image.fromarray(image).save(path)
    return Study(
        source="open_cxr", patient_id=patient, study_id=f"{patient}d{day}", image_id=str(day), image_path=path,
        view="PA", order_key=(day,), report={"findings": "Effusion.", "impression": ""}, labels={}, days=float(day),
    )  # fmt: skip


@pytest.fixture
def films(tmp_path):
    films = [film(tmp_path, str(p), day, chest(10 * p + day)) for p in range(8) for day in (0, 1)]
    films[4] = film(tmp_path, "2", 0, saved_again(chest(50)))  # patient 5's first film
    films[5] = film(tmp_path, "2", 1, saved_again(chest(71)))  # patient 7's second
    (tmp_path / "3-0.png").write_bytes(b"not an image")
    (tmp_path / "3-1.png").unlink()
    return films


def test_patients_linked_by_films_form_one_group(films):
    assert same_patients(films, block=5) == {"2": "2", "5": "2", "7": "2"}
    assert same_patients([]) == {}


def test_they_share_the_split_of_the_first(films):
    apart = next(
        o
        for o in (Options(split="hash", validation=0.3, test=0.3, seed=s) for s in range(99))
        if len({split_of("open_cxr", p, options=o) for p in "257"}) == 3
    )
    for same, splits in ((None, 3), (same_patients(films), 1)):
        cohort = journeys(films, apart, same)
        assert len({j.split for j in cohort.journeys if j.patient_id in "257"}) == splits
        assert cohort.funnel.get("patients who share a film with another", 0) == (3 if same else 0)
    assert cohort.journeys[2].split == split_of("open_cxr", "2", options=apart)
    others = [j for j in cohort.journeys if j.patient_id not in "257"]
    assert all(j.split == split_of("open_cxr", j.patient_id, options=apart) for j in others)


@pytest.mark.skipif(not OPEN.is_dir(), reason="the open collection is not here")
def test_the_real_open_collection_lists_one_patient_twice():
    assert same_patients(open_source("open_cxr", OPEN).studies()) == {"97": "178", "178": "178"}
