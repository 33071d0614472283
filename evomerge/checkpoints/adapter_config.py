"""The settings of a PEFT adapter, read with distrust.

An option that would change what the adapter computes, and that is not understood, is refused by its
name; so is an option of a later PEFT that is switched on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.checkpoints.folder import inside
from evomerge.checkpoints.headers import read_json, shortened
from evomerge.errors import ModelError, Problem, nearest

ADAPTER_CONFIG = "adapter_config.json"
DEFAULT = 8  # PEFT's r and lora_alpha where none is given

_READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
_READ |= {"fan_in_fan_out", "base_model_name_or_path", "init_lora_weights"}
# Options for training, or for where the adapter sits, which the names of its tensors tell as well.
_WITHOUT_EFFECT = {
    *("auto_mapping", "bias", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config"),
    *("lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core"),
    *("merge_weights", "modules_to_save", "peft_version", "qalora_group_size", "revision"),
    *("runtime_config", "target_modules", "task_type", "velora_config"),
}
_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA, which is no change of weights",
    "arrow_config": "Arrow routing, which is no change of weights",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "layer_replication": "layers that the base has not",
    "trainable_token_indices": "single rows of the embedding",
    "target_parameters": "LoRA of parameters that are no module's weight",
}
# Those that only say how A and B began; the others change the base as well.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
_CONVERT = (
    "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...) makes it plain LoRA"
)
_MAX_PATTERN = 300


@dataclass(frozen=True)
class AdapterSettings:
    """What of adapter_config.json decides the tensors; see peft.LoraConfig."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    fan_in_fan_out: bool
    base: str

    def rank_of(self, module: str) -> int:
        """The rank that the settings give to a module."""
        return self.rank_pattern.get(_matching(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """The factor of B @ A: alpha / r (Hu et al. 2021), or alpha / sqrt(r) (rsLoRA)."""
        alpha = self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_settings(folder: Path) -> AdapterSettings:
    """The settings of the adapter in a folder.

    Raises:
        ModelError: naming the file, and every option that is wrong or not supported.
    """
    path = inside(folder, ADAPTER_CONFIG)
    config = read_json(path, what="a config")
    if config.get("peft_type") != "LORA":
        what = f"a PEFT adapter of type {config.get('peft_type')!r}"
        raise ModelError(Problem(f"{path}: peft_type", what, "only LORA can be merged"))
    problems = [Problem(f"{path}: {key}", what, hint) for key, what, hint in _wrong(config)]
    if problems:
        raise ModelError(shortened(problems))
    return AdapterSettings(
        rank=config.get("r", DEFAULT),
        alpha=config.get("lora_alpha", DEFAULT),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        rslora=bool(config.get("use_rslora")),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        base=str(config.get("base_model_name_or_path") or ""),
    )


def _wrong(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Key, what is wrong with its value, and a hint."""
    for key, value in config.items():
        if key in _REFUSED:
            if value:
                yield key, f"{_REFUSED[key]} is not supported", "merge it into its base with PEFT"
        elif key not in _READ | _WITHOUT_EFFECT and value:
            yield key, f"unknown option, set to {str(value)[:60]!r}", nearest(key, _READ)
    for key in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(config.get(key, False), bool | None):
            yield key, f"expected true or false, got {config[key]!r}", ""
    beginning = config.get("init_lora_weights", True)
    if beginning not in _BEGINNINGS:
        yield "init_lora_weights", f"{beginning!r} changes the base too, or is unknown", _CONVERT
    if not _is_rank(config.get("r", DEFAULT)):
        yield "r", f"expected an integer above 0, got {config['r']!r}", ""
    if not _is_factor(config.get("lora_alpha", DEFAULT)):
        yield "lora_alpha", f"expected a number, got {config['lora_alpha']!r}", ""
    for key, fits in (("rank_pattern", _is_rank), ("alpha_pattern", _is_factor)):
        yield from _wrong_pattern(key, config.get(key) or {}, fits)


def _wrong_pattern(key: str, table: Any, fits: Any) -> Iterator[tuple[str, str, str]]:
    if not isinstance(table, dict):
        yield key, f"expected a mapping of modules to numbers, got {type(table).__name__}", ""
        return
    for pattern, value in table.items():
        if not fits(value):
            yield f"{key}.{pattern[:60]}", f"expected a number, got {value!r}", ""
        elif not _is_safe(pattern):
            yield f"{key}.{pattern[:60]}", "is no regular expression that can be tried safely", ""


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # not a NaN either


def _is_safe(pattern: str) -> bool:
    """Whether matching ends soon: no repeated groups, few repetitions (and it compiles)."""
    if len(pattern) > _MAX_PATTERN or re.search(r"\)[*+{]", pattern):
        return False
    if sum(map(pattern.count, "*+{")) > 4:
        return False
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _matching(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that fits the end of a module's name, as peft.utils.get_pattern_key."""
    for pattern in patterns:
        if re.match(rf"(.*\.)?({pattern})$", module):
            return pattern
    return module
