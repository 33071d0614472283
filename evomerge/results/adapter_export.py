"""A merge as a PEFT adapter of its base.

Weights of linear layers (Conv1D too) and embeddings become lora_A and lora_B, exact or the nearest
of a rank. What else has changed is kept whole: biases of those layers as trained biases, norms and
other modules in `modules_to_save`. What fits nowhere is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from evomerge.checkpoints.adapter_config import ADAPTER_CONFIG
from evomerge.checkpoints.adapter_tensors import PREFIX
from evomerge.checkpoints.adapters import ADAPTER_MODEL
from evomerge.checkpoints.derived import Derived
from evomerge.checkpoints.module_tree import Holder
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.staging import staged_folder
from evomerge.checkpoints.write import MARK, check_target
from evomerge.errors import ConfigurationError, Problem
from evomerge.failpoints import failpoint
from evomerge.files import check_room, disk_errors, fsync
from evomerge.merging.calibration import Calibration
from evomerge.protocols import Progress
from evomerge.recipe import Recipe
from evomerge.results.adapter_parts import (
    Changes,
    Kept,
    find_changes,
    keep_whole,
    module_holders,
)
from evomerge.results.card import adapter_card, recipe_yaml
from evomerge.results.export import Beside, calibration_file, statistics_of
from evomerge.results.origins import CARD


@dataclass(frozen=True)
class AdapterReport:
    """What was written, and what it lost.

    Attributes:
        folder: the adapter.
        rank: the largest of a module.
        num_exact: modules whose change is a product of the adapters' own factors.
        num_truncated: modules whose change was cut to the rank.
        error: |merged - base - scale B A| / |merged - base| over all modules (Frobenius).
        worst: the module with the largest error of its own, and that error.
        whole: modules and biases that are kept whole.
        tied: whether the embedding changes, which is the head too.
    """

    folder: Path
    rank: int
    num_exact: int
    num_truncated: int
    error: float
    worst: tuple[str, float]
    whole: tuple[str, ...]
    tied: bool

    @property
    def lines(self) -> list[str]:
        """The report as sentences."""
        lines = [
            f"{self.num_exact} modules by exact concatenation, {self.num_truncated} cut to their "
            f"largest singular values; rank {self.rank}.",
            f"Relative Frobenius error of the change: {self.error:.2g} in all, "
            f"{self.worst[1]:.2g} at worst ({self.worst[0]}).",
        ]
        if self.whole:
            shown = ", ".join(self.whole[:4]) + (", ..." if len(self.whole) > 4 else "")
            lines.append(f"Kept whole, as they are no products: {len(self.whole)} ({shown}).")
        if self.tied:
            lines.append(
                "The embedding changes, and the head is tied to it: merge the adapter into the "
                "base (merge_and_unload) so that both change."
            )
        return lines


def export_adapter(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    folder: Path,
    *,
    rank: int | None = None,
    progress: Progress | None = None,
    calibration: Calibration | None = None,
    beside: Beside | None = None,
) -> AdapterReport:
    """Write a merge as an adapter that PEFT loads over the base.

    Args:
        recipe: what to merge.
        checkpoints: the opened models, by the recipe's names.
        folder: a new folder, or one that evomerge wrote before.
        rank: the largest rank. None: exact concatenation where the merge is linear in adapters,
            and elsewhere the sum of the adapters' ranks (64 if there are none).
        progress: called with what is done, how much of it, of how much.
        calibration: the texts of operators that look at data.
        beside: what else there is to tell of it.

    Raises:
        ConfigurationError: the merge has no form as an adapter of its base, or the folder holds
            something else.
        CandidateError: a merged tensor is not finite.
    """
    target = Path(folder).expanduser().resolve()
    base = checkpoints[recipe.base]
    _check(target, recipe, checkpoints, rank)
    holders = module_holders(base)
    statistics = statistics_of(recipe, checkpoints, calibration, progress)
    found = find_changes(recipe, checkpoints, holders, rank, progress, statistics)
    kept = keep_whole(found, base, holders)
    if not found.low_rank:
        what = "no weight of a linear layer or embedding differs from the base's"
        raise ConfigurationError(Problem("--adapter", what, "export the full model"))
    report = _report(target, found, kept, base, holders)
    source = recipe.models[recipe.base].path
    config = _config(found, kept, base, holders)
    config["base_model_name_or_path"] = None if source.startswith("memory:") else source
    beside = beside or Beside()
    card = adapter_card(
        recipe,
        target.name,
        report.lines,
        rank,
        beside.origins(recipe, checkpoints),
        beside.found,
        for_hub=beside.for_hub,
    )
    files: dict[str, str | bytes] = {
        ADAPTER_CONFIG: json.dumps(config, indent=2) + "\n",
        CARD: card,
        MARK: recipe_yaml(recipe),
        **calibration_file(calibration),
        **beside.files,
    }
    _write(target, _named(found, kept, holders), files)
    return report


def _check(
    target: Path, recipe: Recipe, checkpoints: Mapping[str, Checkpoint], rank: int | None
) -> None:
    if rank is not None and rank < 1:
        raise ConfigurationError(Problem("--rank", f"expected 1 or more, got {rank}"))
    if isinstance(checkpoints[recipe.base], Derived):
        what = "the base is seen through a change, so an adapter would not fit what is on the disk"
        raise ConfigurationError(Problem("--adapter", what, "export the full model"))
    if recipe.is_scaled:
        what = "scales of layers and their branches are no low-rank change of the base's weights"
        raise ConfigurationError(Problem("--adapter", what, "export the full model"))
    check_target(target, checkpoints.values())


def _report(
    target: Path, found: Changes, kept: Kept, base: Checkpoint, holders: Mapping[str, Holder]
) -> AdapterReport:
    lost, changed = (sum(pair[i] for pair in found.errors.values()) for i in (0, 1))
    relative = {name: math.sqrt(pair[0] / pair[1]) for name, pair in found.errors.items()}
    worst = max(relative, key=lambda name: relative[name])
    exact = sum(change.exact for change in found.low_rank.values())
    embedding = any(holders[name].kind == "embedding" for name in found.low_rank)
    return AdapterReport(
        folder=target,
        rank=max(change.rank for change in found.low_rank.values()),
        num_exact=exact,
        num_truncated=len(found.low_rank) - exact,
        error=math.sqrt(lost / changed),
        worst=(worst, relative[worst]),
        whole=(*sorted(kept.biases), *sorted(kept.modules)),
        tied=base.tied and embedding,
    )


def _config(
    found: Changes, kept: Kept, base: Checkpoint, holders: Mapping[str, Holder]
) -> dict[str, Any]:
    """adapter_config.json; alpha is the rank, so that B @ A is added as it is."""
    ranks = {holders[name].path: change.rank for name, change in found.low_rank.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    unusual = {path: rank for path, rank in sorted(ranks.items()) if rank != usual}
    named = str((base.config.get("architectures") or [""])[0])
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if named.endswith(("CausalLM", "LMHeadModel")) else None,
        "base_model_name_or_path": None,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": unusual,
        "alpha_pattern": unusual,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(kept.modules) or None,
        "bias": "all" if kept.biases else "none",
        "fan_in_fan_out": any(holders[name].kind == "conv1d" for name in found.low_rank),
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def _named(found: Changes, kept: Kept, holders: Mapping[str, Holder]) -> dict[str, Tensor]:
    """All tensors by PEFT's names."""
    tensors = {f"{PREFIX}{key}": tensor for key, tensor in kept.tensors.items()}
    for name, change in found.low_rank.items():
        path, kind = holders[name]
        a, b = ("A.weight", "B.weight") if kind != "embedding" else ("embedding_A", "embedding_B")
        tensors[f"{PREFIX}{path}.lora_{a}"] = change.a
        tensors[f"{PREFIX}{path}.lora_{b}"] = change.b
    return tensors


def _write(target: Path, tensors: Mapping[str, Tensor], files: Mapping[str, str | bytes]) -> None:
    """The folder, whole or not at all."""
    from safetensors.torch import save_file

    stored = {name: tensor.contiguous().clone() for name, tensor in sorted(tensors.items())}
    size = sum(tensor.nbytes for tensor in stored.values())
    check_room(target, size)
    with disk_errors(target, size), staged_folder(target) as staged:
        save_file(stored, staged / ADAPTER_MODEL, metadata={"format": "pt"})
        fsync(staged / ADAPTER_MODEL)
        failpoint("export.before_index")
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (staged / name).write_bytes(data)
            fsync(staged / name)
