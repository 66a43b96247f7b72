"""What every refusal of an op is: the promised exception, a message that says what and why, nothing written."""

import inspect

import pytest
from cases import Frozen
from op_calls import CALLS, all_tensors, on_device

import stateful_kv as skv


def assert_refused(backend, op, kwargs, error, *words):
    """The wrapper raises `error`, torch.ops a RuntimeError with the same message; both leave every tensor as it is."""
    before = Frozen(**all_tensors(kwargs))
    with pytest.raises(RuntimeError) as raw:
        getattr(backend.ops, op)(**kwargs)
    before.check()
    text = str(raw.value)
    kinds = error if isinstance(error, tuple) else (error,)
    assert any(f"[{kind.__name__}] {op}: " in text for kind in kinds), text
    for word in ("expected", *words):
        assert word in text or (word == "expected" and "not supported" in text), f"{word!r} is not in: {text}"
    if backend.name == "simt":
        return
    wrapper = getattr(skv.ops, op)
    assert set(kwargs) <= set(inspect.signature(wrapper).parameters)
    with pytest.raises(kinds) as typed:
        wrapper(**kwargs)
    before.check()
    message = str(typed.value)
    assert message.startswith(f"{op}: ") and message in text
    assert type(typed.value) in kinds


def valid(backend, op):
    return on_device(CALLS[op](), backend.device)


def tensors_of(*skip):
    return [(op, name) for op in CALLS for name in all_tensors(CALLS[op]()) if name not in skip]
