"""GPUs that are not there: tensors that say they are on one, compute on the CPU, and never mix.

What torch refuses on real GPUs is refused: an operation on tensors of two devices, unless it copies
from one to the other, and numpy on a tensor that is not on the CPU. Values are those of the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

KIND = "privateuseone"  # what torch has for devices that it does not know
_COMPOSITE = "CompositeImplicitAutograd"
_COPIES = ("aten::_to_copy", "aten::copy_")
_INDEXED = ("aten::index", "aten::index_put_", "aten::index_put")  # by tensors on the CPU, too


class Far(Tensor):
    """A tensor on an invented GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Far:
        far = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        far.held = held
        return far

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return computed(function, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    def __deepcopy__(self, memo: dict[int, Any]) -> Far:
        if id(self) not in memo:
            copied = Far(self.held.clone(), self.device)
            memo[id(self)] = _as(self, copied)
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.held!r}, {self.device})"


def _as(model: Tensor, copied: Far) -> Far:
    if isinstance(model, torch.nn.Parameter):
        copied = torch.nn.Parameter(copied, model.requires_grad)  # type: ignore[assignment]
    return copied


@contextlib.contextmanager
def fake_gpus() -> Iterator[None]:
    """GPUs for this thread, as many as are named. Modules that are moved lose their ties."""
    _let_torch_guard()
    keeps = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    module: Any = ModuleType(f"torch.{KIND}")
    module._lazy_init = lambda: None
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    torch._register_device_module(KIND, module)
    try:
        with _Made(), FakeGpus():
            yield
    finally:  # what other tests see is a torch without such devices
        delattr(torch, KIND)
        del sys.modules[module.__name__]
        torch.__future__.set_overwrite_module_params_on_conversion(keeps)


@functools.cache
def _let_torch_guard() -> None:
    """Torch enters a device before it does something there; this one does nothing then."""
    from torch.utils.backend_registration import _DummyDeviceGuard

    torch._C._acc.register_python_privateuseone_device_guard(_DummyDeviceGuard())


class FakeGpus(TorchDispatchMode):
    """While entered (by this thread), tensors can be made on and moved to its devices"""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return computed(function, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Tensors of numbers, which torch makes where no mode sees it."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            made = function(*args, **kwargs)
            return made if device is None else made.to(device)
        if function is Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, **kwargs}
            return torch.tensor(args[1], **kwargs).to(args[0].device)
        return function(*args, **kwargs)


def computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """As on the CPU; what comes out is where what went in was."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), _COMPOSITE):
        with FakeGpus():  # made of others, which may copy
            return function.decompose(*args, **kwargs)
    leaves, structure = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    far = {one.device for one in tensors if isinstance(one, Far)}
    near = [one for one in tensors if not isinstance(one, Far) and one.dim()]
    name = function._schema.name
    if name in _INDEXED:
        near = near if not isinstance(tensors[0], Far) else []
    if name not in _COPIES and (len(far) > 1 or (far and near)):
        places = sorted({str(one.device) for one in tensors})
        raise RuntimeError(f"{name}: expected all tensors on one device, found {places}")
    wanted = kwargs.get("device")
    if wanted is not None:
        place = torch.device(wanted)
    elif name == "aten::copy_":
        place = tensors[0].device
    else:
        place = next(iter(far), torch.device("cpu"))
    if place.type == KIND and place.index is None:
        place = torch.device(KIND, 0)
    owners = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, Far)}
    plain = [leaf.held if isinstance(leaf, Far) else leaf for leaf in leaves]
    plain_args, plain_kwargs = tree_unflatten(plain, structure)
    if wanted is not None and place.type == KIND:
        plain_kwargs["device"] = torch.device("cpu")
    result = function(*plain_args, **plain_kwargs)
    if name == "aten::_to_copy" and any(result is one for one in plain):
        result = result.clone()

    def wrapped(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        if id(one) in owners:
            return owners[id(one)]
        return Far(one, place) if place.type == KIND else one

    return tree_map(wrapped, result)


def held(tensor: Tensor) -> Tensor:
    """The values, wherever they are said to be."""
    return tensor.held if isinstance(tensor, Far) else tensor
