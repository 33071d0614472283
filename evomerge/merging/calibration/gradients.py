"""The diagonal of the Fisher matrix: squared gradients of log-likelihoods, one text after another.

A gradient is squared and added as soon as it is there, and dropped: what is in memory is the model,
what one text needs on its way, one tensor's gradient, and the sums in a mapped file (see sums.py).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from evomerge.checkpoints.open import Checkpoint
from evomerge.merging.calibration.activations import forward
from evomerge.merging.calibration.sums import Sums
from evomerge.merging.targets import targets_of

LABELS = ("sampled", "data", "expected")


def objective(labels: str, ids: Tensor, logits: Tensor, generator: torch.Generator) -> Tensor:
    """What is differentiated, of one text; logits: shape (tokens - 1, vocabulary).

    `sampled`: the log-likelihood of tokens drawn from the model itself at each place, whose squared
    gradient is the Fisher matrix in expectation (cross terms of places have mean 0). `data`: of the
    text's own tokens, the empirical Fisher. `expected`: sum_v sqrt(p_v) log p_v with constant
    sqrt(p_v), which FusionBench squares in place of the expectation of squares.
    """
    log_p = torch.log_softmax(logits.float(), dim=-1)
    if labels == "expected":
        return (log_p.detach().exp().sqrt() * log_p).sum()
    chosen = ids[1:]
    if labels == "sampled":
        chosen = torch.multinomial(log_p.detach().exp(), 1, generator=generator)[:, 0]
    return log_p.gather(1, chosen[:, None]).sum()


def sum_squares(
    labels: str,
    module: nn.Module,
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    sums: Sums,
    report: Callable[[int, int], None],
) -> None:
    """The mean over texts of squared gradients, for all of the checkpoint's tensors.

    labels: one of LABELS; sums: with an entry for each tensor of `floating_shapes`.
    """
    targets = targets_of(module, checkpoint)
    parts: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)  # by the storage they lie in
    for name in sums.tensors:
        parts[targets[name].untyped_storage().data_ptr()].append((name, targets[name]))
    handles = []
    for parameter in module.parameters():
        own = parts[parameter.untyped_storage().data_ptr()]
        parameter.requires_grad_(parameter.is_floating_point() and bool(own))
        if parameter.requires_grad:
            add = partial(_add, own, sums, 1 / len(sequences))
            hook = parameter.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]
            handles.append(hook)
    try:
        for number, sequence in enumerate(sequences):
            ids = torch.tensor(sequence)
            with torch.enable_grad():  # whoever merges has switched it off
                logits = forward(module, ids[None]).logits[0, :-1]
                loss = objective(labels, ids, logits, _generator(sequence, number))
                loss.backward()  # type: ignore[no-untyped-call]
            report(number + 1, len(sequences))
    finally:
        for handle in handles:
            handle.remove()
        module.requires_grad_(False)


def floating_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The tensors that may have a gradient."""
    return {
        name: checkpoint.shape(name)
        for name in checkpoint.names
        if checkpoint.dtype(name).is_floating_point
    }


def _add(own: list[tuple[str, Tensor]], sums: Sums, share: float, parameter: Tensor) -> None:
    gradient = parameter.grad
    assert gradient is not None  # noqa: S101 (the hook is called when it is there)
    for name, target in own:
        part = gradient
        if target.shape != parameter.shape:  # some of its rows, or one of its experts
            start = target.storage_offset() - parameter.storage_offset()
            part = gradient.contiguous().as_strided(target.shape, target.stride(), start)
        sums.tensors[name].addcmul_(part, part, value=share)
    parameter.grad = None


def _generator(sequence: Sequence[int], number: int) -> torch.Generator:
    """One for each text: what is drawn does not hang on how many texts came before."""
    digest = hashlib.sha256(repr((number, list(sequence))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
