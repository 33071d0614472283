"""Operators, and what writes a recipe's tensors into a model.

The table can be read without importing torch: names, parameters and validation cost nothing.
"""

from __future__ import annotations

from evomerge.merging.check import check_merge, resolved_parameters
from evomerge.merging.operator import Operator
from evomerge.merging.table import OPERATORS, POST_STEPS, unknown

__all__ = [
    "OPERATORS",
    "POST_STEPS",
    "Operator",
    "check_merge",
    "resolved_parameters",
    "unknown",
]
