"""Small cohorts that the readers' tests share."""

import pytest
from support import cohorts


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    return cohorts.chexpertplus(tmp_path_factory.mktemp("plus"))


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    return cohorts.write(tmp_path_factory.mktemp("mimic"), patients=11, studies=2)


@pytest.fixture
def icg(plus, mimic, tmp_path):
    return cohorts.icg_cxr(tmp_path / "icg", plus, mimic)
