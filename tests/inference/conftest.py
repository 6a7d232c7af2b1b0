"""One model with random weights for all tests of this folder, and what they ask of it."""

import numpy as np
import pytest
from support.cohorts import chest
from support.tiny_run import CODES, GRID, PROMPT, SIZE


@pytest.fixture(scope="session")
def model(tiny_model):
    return tiny_model


@pytest.fixture(scope="session")
def prior():
    return chest(0, SIZE)


@pytest.fixture(scope="session")
def codes():
    return np.random.default_rng(0).integers(0, CODES, GRID).astype(np.int32)


@pytest.fixture(scope="session")
def futures(model, prior):
    return model.counterfactual(prior, PROMPT, num_samples=3, seed=4)
