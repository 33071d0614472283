"""A module that is nothing but its tensors, for state dicts that come without one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class BareModule(nn.Module):
    """Holds a state dict under its own names; it has no forward pass."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_buffer(last, tensor.clone())
