"""Everything in which models do not fit each other, found from headers and small files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.config_defaults import completed
from evomerge.checkpoints.input_scales import INPUT_SCALES, says_scales
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.tokens import compare_tokenizers
from evomerge.errors import ModelError, Problem

# Settings that change what the same weights compute. Others that differ are warned of.
_FUNCTION = re.compile(
    r"^(model_type|hidden_act|hidden_activation|activation_function|feed_forward_proj|act_fn"
    r"|.*_eps|.*epsilon|num_(attention|key_value)_heads|n_heads?|head_dim|d_kv|num_heads"
    r"|sliding_window.*|use_sliding_window|max_window_layers|layer_types|attention_window.*"
    r"|rope_.*|rotary_.*|partial_rotary_factor|alibi|position_embedding_type"
    r"|relative_attention_.*|.*softcapping|query_pre_attn_scalar|.*_multiplier|logit(s_scaling"
    r"|_scale)|scale_.*|do_layer_norm_before|parallel_attn|use_parallel_residual|is_decoder"
    r"|num_experts_per_tok|norm_topk_prob|.*qk_norm|qk_layernorm|normalize_before|embedding_size)$"
)
_HARMLESS = re.compile(
    r"^(_name_or_path|name_or_path|architectures|auto_map|transformers_version|torch_dtype|dtype"
    r"|use_cache|.*dropout.*|.*pdrop|initializer_.*|.*_init.*|(bos|eos|pad|sep|unk)_token_id"
    r"|task_specific_params|_attn_implementation.*|pretraining_tp|vocab_size|num_hidden_layers"
    r"|hidden_size|intermediate_size|tie_word_embeddings|id2label|label2id|problem_type"
    r"|return_dict|output_.*|gradient_checkpointing|max_position_embeddings|use_bfloat16"
    r"|finetuning_task|unsloth.*|chunk_size_feed_forward|is_encoder_decoder|use_flash.*)$"
)
_LISTED = 8  # names of one kind of difference; the rest are counted


def preflight(
    checkpoints: Mapping[str, Checkpoint], base: str, *, uneven: bool = False
) -> list[str]:
    """Compare every model with the base; no tensor is read.

    Args:
        checkpoints: by the name that messages use.
        base: one of the names.
        uneven: whether models may have more or fewer layers than the base, as where a recipe says
            which layers it reads.

    Returns:
        Warnings: differences that a merge survives.

    Raises:
        ModelError: with every difference that it does not survive.
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    if len(checkpoints) > 1:
        problems += _scaled(checkpoints)
    for name, checkpoint in checkpoints.items():
        if name == base:
            continue
        reference = checkpoints[base]
        depths = _depths(checkpoint, reference) if uneven else None
        problems += _compare_tensors(name, checkpoint, reference, depths)
        problems += _compare_tying(name, checkpoint, reference)
        configs = partial(_compare_configs, depths=depths)
        for where in (configs, compare_tokenizers):
            found, soft = where(name, checkpoint, reference)
            problems += found
            warnings += soft
        warnings += _compare_dtypes(name, checkpoint, reference)
    if problems:
        # All differences in one table: those that a merge would survive too.
        raise ModelError([*problems, *(Problem("", f"{text} (no obstacle)") for text in warnings)])
    return warnings


def check_finite(
    checkpoint: Checkpoint,
    progress: Callable[[int, int], None] | None = None,
    *,
    checksum: bool = True,
) -> None:
    """Refuse a model with a NaN or an Inf.

    Args:
        checkpoint: all of it is read, unless the same files were read before.
        progress: called with the bytes done and the bytes in all.
        checksum: whether the same reading gives the checksum, which takes most of the time.

    Raises:
        ModelError: naming the tensors.
    """
    found = checkpoint.survey(progress).non_finite if checksum else checkpoint.non_finite(progress)
    if found:
        raise ModelError(
            Problem(f"{checkpoint.where}: tensor {name!r}", "holds NaN or Inf") for name in found
        )


def _depths(one: Checkpoint, base: Checkpoint) -> tuple[int, int] | None:
    """How many layers two models have; None if as many."""
    if set(one.names) == set(base.names):
        return None
    anatomy = anatomy_of(base)
    own = anatomy.num_layers_of(set(one.names))
    return None if own == anatomy.num_layers else (own, anatomy.num_layers)


def _scaled(checkpoints: Mapping[str, Checkpoint]) -> list[Problem]:
    """Models that compute something else than their weights say."""
    what = "its layers' inputs are scaled, which the others' weights know nothing of"
    hint = "merge the models that it was made from; its recipe names them"
    return [
        Problem(f"{name}: config.json {INPUT_SCALES}", what, hint)
        for name, checkpoint in checkpoints.items()
        if says_scales(checkpoint.config)
    ]


def _compare_tensors(
    name: str, one: Checkpoint, base: Checkpoint, depths: tuple[int, int] | None
) -> list[Problem]:
    problems = []
    # Layers that one of the models does not have are the recipe's to choose from.
    aside = frozenset() if depths is None else anatomy_of(base).beyond(depths[0])
    mine, theirs = set(one.names) - aside, set(base.names) - aside
    for names, what in (
        (theirs - mine, "missing (the base has {})"),
        (mine - theirs, "extra (the base does not have {})"),
    ):
        for pattern, count in _patterns(names):
            counted = "it" if count == 1 else "them"
            label = f"tensor {pattern!r}" if count == 1 else f"{count} tensors {pattern!r}"
            problems.append(Problem(f"{name}: {label}", what.format(counted)))
    wrong = [key for key in one.names if key in theirs and one.shape(key) != base.shape(key)]
    for key in wrong[:_LISTED]:
        what = f"has shape {list(one.shape(key))}, the base has {list(base.shape(key))}"
        problems.append(Problem(f"{name}: tensor {key!r}", what))
    if len(wrong) > _LISTED:
        what = f"{len(wrong) - _LISTED} more tensors have other shapes than the base's"
        problems.append(Problem(name, what))
    return problems


def _patterns(names: Iterable[str]) -> list[tuple[str, int]]:
    """Names that differ in numbers alone, as one pattern with a count; a single name as it is."""
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for name in sorted(names):
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
        counts[pattern] += 1
        example[pattern] = name
    rows = [
        (example[pattern] if count == 1 else pattern, count) for pattern, count in counts.items()
    ]
    if len(rows) > _LISTED:
        more = sum(count for _, count in rows[_LISTED:])
        rows = [*rows[:_LISTED], ("... of other names", more)]
    return rows


def _compare_dtypes(name: str, one: Checkpoint, base: Checkpoint) -> list[str]:
    pairs = Counter(
        (one.dtype(key), base.dtype(key))
        for key in set(one.names) & set(base.names)
        if one.dtype(key) != base.dtype(key) and not one.is_made(key)
    )
    return [
        f"{name}: {count} tensors are {mine}, the base's {theirs}".replace("torch.", "")
        for (mine, theirs), count in sorted(pairs.items(), key=str)
    ]


def _compare_tying(name: str, one: Checkpoint, base: Checkpoint) -> list[Problem]:
    if not one.config or not base.config or one.tied == base.tied:
        return []
    words = {True: "tied to the embedding", False: "not tied"}
    what = f"the head is {words[one.tied]}, in the base it is {words[base.tied]}"
    return [Problem(f"{name}: tie_word_embeddings", what)]


def _compare_configs(
    name: str, one: Checkpoint, base: Checkpoint, *, depths: tuple[int, int] | None
) -> tuple[list[Problem], list[str]]:
    if not one.config or not base.config:
        return [], []
    mine, theirs = _flat(one.config), _flat(base.config)
    if any(_matters(key) and (mine | theirs)[key] for key in mine.keys() ^ theirs.keys()):
        # Versions of transformers differ in what they leave out: compare with their defaults in.
        # The file's own settings win: what the class makes of them is not the question.
        mine = _flat({**completed(one.config), **one.config})
        theirs = _flat({**completed(base.config), **base.config})
    problems, warnings = [], []
    for key in sorted(mine.keys() | theirs.keys()):
        here, there = mine.get(key), theirs.get(key)
        if here == there or (not here and not there):  # absent, null and false say the same
            continue
        if key == INPUT_SCALES:  # looked at in each model by itself
            continue
        if depths is not None and (_length(here), _length(there)) == depths:
            continue  # an entry for each layer: what a recipe reads is compared with its slot
        what = f"{_said(mine, key)}, the base has {_said(theirs, key)}"
        if _matters(key):
            problems.append(Problem(f"{name}: config.json {key}", what))
        elif not _HARMLESS.match(key.rpartition(".")[2]):
            warnings.append(f"{name}: config.json {key}: {what}")
    return problems, warnings


def _matters(key: str) -> bool:
    return key.startswith("rope.") or bool(_FUNCTION.match(key.rpartition(".")[2]))


def _length(setting: Any) -> int:
    """Of a list."""
    return len(setting) if isinstance(setting, list) else -1


def _said(config: Mapping[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "nothing"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; the old and the new way to write rope settings become one."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("rope_scaling", "rope_parameters") and isinstance(value, dict):
            for inner, setting in value.items():
                flat[f"rope.{'rope_type' if inner == 'type' else inner}"] = setting
        elif key == "rope_theta":
            flat["rope.rope_theta"] = value
        elif str(key).startswith("rope_"):
            continue  # null: no scaling
        elif isinstance(value, dict) and not _HARMLESS.match(str(key)):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    if not prefix and any(key.startswith("rope.") for key in flat):
        flat.setdefault("rope.rope_type", "default")
    return flat
