"""Fixtures of the op tests: `backend` runs a test once on every backend present (see backends.py)."""

import os
import sysconfig

# Threads that have nothing to do leave their core to what runs in the background. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import background
import pytest
import torch
from backends import BACKENDS

# Tools that the tests run (cmake, ninja, ruff, clang-format) are those of this environment, activated or not.
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]


def pytest_configure(config):
    config.addinivalue_line("markers", "each_isa: part of the condensed run that every CPU instruction set has to pass")


def pytest_collection_finish(session):
    if session.config.option.collectonly:
        return
    chosen = {}
    for item in session.items:
        chosen.setdefault(item.module, []).append(item)
    for module, items in chosen.items():
        if hasattr(module, "in_background"):
            background.begin(module.in_background(items))


def pytest_sessionfinish(session):
    background.end()


@pytest.fixture(params=BACKENDS, ids=lambda b: b.name)
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
