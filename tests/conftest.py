"""Fixtures of the op tests: `backend` runs a test once on every backend present (see backends.py)."""

import pytest
import torch
from backends import BACKENDS


def pytest_configure(config):
    config.addinivalue_line("markers", "each_isa: part of the condensed run that every CPU instruction set has to pass")


@pytest.fixture(params=BACKENDS, ids=lambda b: b.name)
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
