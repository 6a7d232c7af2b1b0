"""What stage 1 learns to say of single images."""

import numpy as np

from progemu_jax.data.progression import progression
from progemu_jax.data.sources.label_findings import NIH, PADCHEST
from progemu_jax.systems.progemu.image_tokens import as_change
from progemu_jax.text.findings import NO_CHANGE, PHANTOM, label_columns


def _example(of, text, *there):
    labels = np.array([label in there for label in label_columns(of)], np.int8)
    return {"text": text, "labels": labels, "image_id": "x"}


def test_a_single_is_a_change_from_nothing():
    """By the rules of a report; by the labels of a cohort with its own list, whose nodule the rules know nothing of."""
    text = "Cardiomegaly. Nodule."
    by_rules = as_change(_example(PHANTOM, text, "Cardiomegaly"), PHANTOM)
    assert by_rules == progression({}, {"findings": text})
    assert as_change(_example(NIH, "Nodule.", "Nodule"), NIH).prompt == "New nodule."
    assert as_change(_example(NIH, "No mass."), NIH).prompt == NO_CHANGE


def test_the_side_of_a_label_without_one_is_read_in_the_text():
    example = _example(PADCHEST, "Left pleural effusion.", "pleural effusion")
    assert as_change(example, PADCHEST).changes == {"left pleural effusion": 1}
