"""One scorer for all tests of this folder."""

import pytest
from support import small_scorer


@pytest.fixture(scope="session")
def phantom():
    return small_scorer.phantom()
