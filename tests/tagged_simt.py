"""pytest -p tagged_simt: the backend `simt` behaves as if its tensors lay on a GPU (device_tags.py)."""

import backends
import pytest
import torch
from device_tags import DeviceTags, TaggedOps


class Tagged(backends.Simt):
    device = "cuda"

    @property
    def ops(self):
        return TaggedOps(torch.ops.stateful_kv_simt)


backends.BACKENDS[:] = [Tagged() if b.name == "simt" else b for b in backends.BACKENDS]


@pytest.fixture(autouse=True)
def device_tags():
    with DeviceTags():
        yield
