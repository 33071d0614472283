"""Which of scikit-learn's 8x8 digits a network of `zoo:digits` gets right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from evomerge.zoo.digits import NUM_SEEN, logits


def right(module: nn.Module, items: Sequence[int]) -> Tensor:
    """1 where the network says the right digit, for each image that its family was not trained on.

    The module is the network's tensors alone.
    """
    images, labels = _digits()
    rows = torch.tensor(items)
    return (logits(module.state_dict(), images[rows]).argmax(1) == labels[rows]).float()


right.num_items = 1_797 - NUM_SEEN
right.worst = 0.0


@cache
def _digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[NUM_SEEN:], dtype=torch.float32), torch.tensor(labels[NUM_SEEN:])
