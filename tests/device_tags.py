"""A GPU that is only said to be one: host tensors that carry a tag, and errors where a GPU would raise them.

On the emulator every tensor lies on the host, so a test that forgets a device passes there and fails on its first day
on a GPU. Within `DeviceTags` a tensor made on or moved to "cuda" is tagged, what is computed from it too, its `device`
says "cuda", and an operation on tensors of both kinds raises. `TaggedOps` holds an op library to the same.
"""

import torch
from torch.overrides import TorchFunctionMode

MAY_MIX = {"__getitem__", "__setitem__", "copy_", "index_put_", "type", "untyped_storage", "data_ptr", "set_"}


class OnTwoDevices(RuntimeError):
    """What a GPU would have refused."""


def is_tagged(t) -> bool:
    return getattr(t, "__dict__", {}).get("is_on_gpu", False)


def tag(value):
    for t in tensors_in([value]):
        t.is_on_gpu = True
    return value


def tensors_in(values):
    for v in values:
        if isinstance(v, torch.Tensor):
            yield v
        elif isinstance(v, (list, tuple)):
            yield from tensors_in(v)


def means_gpu(device) -> bool:
    return isinstance(device, (str, torch.device)) and str(device).startswith("cuda")


class DeviceTags(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "__get__":
            return self._property(func, args)
        if name == "cpu":
            return func(*args).detach().clone()  # a tensor of its own, so that it has no tag
        if name == "to":
            return self._moved(func, args, kwargs)
        device = kwargs.get("device")
        if means_gpu(device):
            return tag(func(*args, **{**kwargs, "device": "cpu"}))
        given = list(tensors_in([args, list(kwargs.values())]))
        tagged = any(map(is_tagged, given)) and device is None
        if tagged and name == "numpy":
            raise OnTwoDevices("numpy() of a tensor on the GPU")
        if tagged and name not in MAY_MIX and not all(is_tagged(t) or t.dim() == 0 for t in given):
            raise OnTwoDevices(f"{name} got tensors of the host and of the GPU")
        result = func(*args, **kwargs)
        return tag(result) if tagged else result

    @staticmethod
    def _property(func, args):
        name = getattr(getattr(func, "__self__", None), "__name__", "")
        if is_tagged(args[0]):
            if name == "device":
                return torch.device("cuda")
            return True if name == "is_cuda" else tag(func(*args))
        return func(*args)

    @staticmethod
    def _moved(func, args, kwargs):
        wanted = [d for d in (*args[1:], kwargs.get("device")) if isinstance(d, (str, torch.device))]
        like = next((t for t in args[1:] if isinstance(t, torch.Tensor)), args[0])
        to_gpu = means_gpu(wanted[0]) if wanted else is_tagged(like)
        args = tuple("cpu" if means_gpu(a) else a for a in args)
        if means_gpu(kwargs.get("device")):
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        if is_tagged(result) != to_gpu:
            result = result.detach().clone() if result is args[0] or not to_gpu else result
        return tag(result) if to_gpu else result


class TaggedOps:
    """An op library that takes tagged tensors only."""

    def __init__(self, ops):
        self._ops, self.name = ops, ops.name

    def __getattr__(self, op):
        real = getattr(self._ops, op)

        def call(*args, **kwargs):
            for t in tensors_in([args, list(kwargs.values())]):
                if not is_tagged(t):
                    raise OnTwoDevices(f"{op} got a tensor of the host, {t.dtype} {list(t.shape)}")
            return real(*args, **kwargs)

        call.default = real.default
        return call
