"""What all search space files share."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from evomerge.errors import Problem
from evomerge.merging import OPERATORS


class SpaceConfig(BaseModel):
    """A search space file; each kind has its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str

    def check_experts(self, experts: Sequence[str]) -> list[Problem]:
        """Why a family with these experts cannot be searched; empty if it can."""
        del experts
        return []


def count_problems(operator: str, experts: Sequence[str]) -> list[Problem]:
    """Too few or too many experts for an operator."""
    low, high = OPERATORS[operator].min_sources, OPERATORS[operator].max_sources
    if low <= len(experts) and (high is None or len(experts) <= high):
        return []
    wanted = f"{low}" if low == high else f"{low} to {high}" if high else f"at least {low}"
    return [Problem("experts", f"{operator} merges {wanted}, got {len(experts)}")]
