"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable


def in_short(value: float) -> str:
    """A large number for people, with four digits: 1234567 is 1.235M."""
    rounded = float(f"{value:.4g}")
    for size, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= size:
            return f"{rounded / size:g}{suffix}"
    return f"{rounded:g}"


def in_bytes(count: float) -> str:
    """A number of bytes as people read it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def in_brackets(values: Iterable[float]) -> str:
    """Numbers as a file has them: [0, 1] and not [0.0, 1.0]."""
    return f"[{', '.join(f'{value:.10g}' for value in values)}]"
