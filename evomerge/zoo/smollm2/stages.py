"""What is trained: one stage for each expert, of `smollm2` and of `smollm2_german`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One expert's training; with a rank, low-rank changes alone are trained."""

    skill: str
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 10
    rank: int | None = None
    alpha: float = 32.0


STAGES = (
    Stage("sentiment", steps=80, batch_size=16, learning_rate=1e-4),
    Stage("domain", steps=50, batch_size=16, learning_rate=1e-4),
    Stage("sums", steps=80, batch_size=24, learning_rate=1e-4),
    Stage("units", steps=60, batch_size=12, learning_rate=1e-4),
    Stage("order", steps=50, batch_size=16, learning_rate=1e-3, rank=16),
)
EXPERTS = tuple(stage.skill for stage in STAGES)
MODELS = ("base", *EXPERTS)

GERMAN = Stage("german", steps=60, batch_size=16, learning_rate=1e-4)
GERMAN_TASKS = ("german", "sentiment_de")  # the expert's own, and one that nobody is trained for


def generator_name(seed: int, purpose: str) -> str:
    """What a generator of this zoo is seeded with."""
    return f"evomerge zoo/smollm2 {seed} {purpose}"
