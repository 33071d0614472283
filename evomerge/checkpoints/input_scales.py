"""Factors of what goes into a model's layers, as config.json says them.

They are no weights: where a layer begins with a norm, its epsilon keeps a factor of the input from
being a factor of anything stored. So a model says them in a key of evomerge's own, which other
programs do not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evomerge.errors import ModelError, Problem

INPUT_SCALES = "evomerge_input_scales"  # a list with a number for each layer


def stored_scales(config: Mapping[str, Any], num_layers: int, where: str) -> tuple[float, ...]:
    """The factor of each layer's input; ones where a config says nothing.

    Args:
        config: the parsed config.json.
        num_layers: how many there have to be.
        where: how a message names the model.

    Raises:
        ModelError: the key holds something else than a positive number for each layer.
    """
    found = config.get(INPUT_SCALES)
    if found is None:
        return (1.0,) * num_layers
    is_list = isinstance(found, list) and len(found) == num_layers
    if not is_list or not all(_is_scale(scale) for scale in found):
        what = f"expected a list of {num_layers} positive numbers, one a layer, got {found!r:.80}"
        raise ModelError(Problem(f"{where}: config.json {INPUT_SCALES}", what))
    return tuple(float(scale) for scale in found)


def says_scales(config: Mapping[str, Any]) -> bool:
    """Whether a config says anything of scales, right or wrong, that is not all ones."""
    found = config.get(INPUT_SCALES)
    return found is not None and not (isinstance(found, list) and all(s == 1 for s in found))


def _is_scale(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0
