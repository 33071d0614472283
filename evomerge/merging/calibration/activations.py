"""What goes into linear layers: Gram matrices and mean magnitudes, summed as the texts go by.

One pass over the texts, whatever their number. What is in memory is the model, what one batch needs
on its way through it, and the sums, which lie in a mapped file (see sums.py). Sequences of a batch
have one length, so that nothing is padded.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.checkpoints.open import Checkpoint
from evomerge.merging.calibration.sums import Sums
from evomerge.merging.targets import targets_of

BATCH_TOKENS = 1024  # of sequences that are read together


@dataclass(frozen=True)
class Input:
    """What some linear layers read: the same tensor.

    reader: one of them, where it is caught; names: of their weights in the checkpoint.
    """

    reader: nn.Linear
    width: int
    names: tuple[str, ...]


def batches_of(sequences: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Sequences in batches of one length, shape (sequences, tokens), short ones first."""
    by_length: dict[int, list[Sequence[int]]] = defaultdict(list)
    for sequence in sequences:
        by_length[len(sequence)].append(sequence)
    for length in sorted(by_length):
        step = max(1, BATCH_TOKENS // length)
        alike = by_length[length]
        for start in range(0, len(alike), step):
            yield torch.tensor(alike[start : start + step])


def linear_inputs(module: nn.Module, checkpoint: Checkpoint, sample: Tensor) -> list[Input]:
    """The inputs of a module's linear layers, those that several layers read once.

    Heads that are tied to the embedding are left out: their weight is the embedding. So are layers
    that the sample does not pass, and those whose weight the checkpoint stores otherwise.

    sample: token ids, shape (sequences, tokens).
    """
    names = weight_names(module, checkpoint)
    read: dict[tuple[Any, ...], list[nn.Linear]] = defaultdict(list)
    alive: list[Tensor] = []  # so that no address is used twice

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        alive.append(x)
        place = (x.data_ptr(), x.shape, x.stride())
        if layer not in read[place]:
            read[place].append(layer)  # type: ignore[arg-type]

    with hooked(dict.fromkeys(names, note)):
        forward(module, sample)
    found, known = [], set()
    for layers in read.values():
        layers = [layer for layer in layers if layer not in known]
        known.update(layers)
        if layers:
            together = tuple(name for layer in layers for name in names[layer])
            found.append(Input(layers[0], layers[0].in_features, together))
    return found


def weight_names(module: nn.Module, checkpoint: Checkpoint) -> dict[nn.Linear, list[str]]:
    """The linear layers, each with the checkpoint's names of its weight or of rows of it."""
    embedded = {
        layer.weight.untyped_storage().data_ptr()
        for layer in module.modules()
        if isinstance(layer, nn.Embedding)
    }
    by_storage: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in targets_of(module, checkpoint).items():
        if tensor.ndim == 2:
            by_storage[tensor.untyped_storage().data_ptr()].append((name, tensor))
    found: dict[nn.Linear, list[str]] = {}
    for layer in module.modules():
        if not isinstance(layer, nn.Linear):
            continue
        storage = layer.weight.untyped_storage().data_ptr()
        names = [n for n, t in by_storage[storage] if t.shape[1] == layer.in_features]
        if storage not in embedded and names:
            found[layer] = names
    return found


@contextmanager
def hooked(hooks: dict[nn.Linear, Callable[..., None]]) -> Iterator[None]:
    """Call a function with each layer's inputs, before it computes."""
    handles = [layer.register_forward_pre_hook(hook) for layer, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward(module: nn.Module, ids: Tensor, *, head: bool = True) -> Any:
    """A forward pass; without the head's logits where nobody needs them and the model can."""
    known = inspect.signature(module.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    if not head and "logits_to_keep" in known:
        options["logits_to_keep"] = 1
    return module(input_ids=ids, **options)


class MeanOf:
    """Adds to the sum of one input; counts its rows, since a router may send each row elsewhere.

    kind: `gram`, whose total has the shape (in, in), or `mean`, of |x|: (in,).
    """

    def __init__(self, kind: str, total: Tensor) -> None:
        self._kind, self._total = kind, total
        self._rows = 0

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Take what a layer reads."""
        del layer
        x = args[0].detach().reshape(-1, args[0].shape[-1]).float()  # (rows, width)
        self._rows += len(x)
        if self._kind == "gram":
            self._total.addmm_(x.T, x)
        else:
            self._total.add_(x.abs().sum(dim=0))

    def divide(self) -> None:
        """Make the sum a mean."""
        self._total.div_(max(1, self._rows))


def sum_inputs(
    kind: str,
    module: nn.Module,
    inputs: Sequence[Input],
    sequences: Sequence[Sequence[int]],
    sums: Sums,
    report: Callable[[int, int], None],
) -> None:
    """Sum up X'X or |x| of all inputs over all tokens, and divide by the number of tokens.

    kind: `gram` or `mean`; sums: with an entry for each input, under the first of its names.
    """
    adding = {one.reader: MeanOf(kind, sums.tensors[one.names[0]]) for one in inputs}
    heads = {id(layer) for layer in (getattr(module, "lm_head", None),) if layer is not None}
    head = any(id(layer) in heads for layer in adding)
    done = 0
    with torch.no_grad(), hooked(dict(adding)):
        for ids in batches_of(sequences):
            forward(module, ids, head=head)
            done += len(ids)
            report(done, len(sequences))
    for one in adding.values():
        one.divide()
