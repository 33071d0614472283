"""A candidate as an ordinary model folder, with a card that says where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.input_scales import INPUT_SCALES
from evomerge.checkpoints.layer_stack import Shapes, stack_problems, stacked_config
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.shards import size_bytes
from evomerge.checkpoints.write import write_model
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.merging.calibration import CALIBRATION, Calibration, Collected
from evomerge.merging.input_scales import input_scales, scaled_layers
from evomerge.merging.materialise import Merger
from evomerge.protocols import Progress
from evomerge.recipe import Match, Recipe, Segments
from evomerge.results.mergekit_yaml import mergekit_yaml
from evomerge.wording import in_short

if TYPE_CHECKING:
    from torch import Tensor

ATTRIBUTE = "attribute"  # what an export may do with scales of layers' inputs


def merged_tensors(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], calibration: Calibration | None = None
) -> dict[str, Tensor]:
    """The whole merged state dict, in memory, in the recipe's output dtype.

    calibration: the texts of operators that look at data.

    Raises:
        ConfigurationError: the recipe scales layers' inputs, which no state dict can say.
        CandidateError: a merged tensor is not finite.
    """
    merger = Merger(
        checkpoints,
        anatomy_of(checkpoints[recipe.base]),
        recipe.base,
        once=True,
        statistics=statistics_of(recipe, checkpoints, calibration),
    )
    checked_scales(recipe, merger, None)
    dtype = output_dtype(recipe)
    return {
        name: tensor.to(dtype if tensor.is_floating_point() else None, copy=True)
        for name, tensor in merger.tensors(recipe)
    }


def export_model(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    folder: Path,
    row: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    scales: str | None = None,
    calibration: Calibration | None = None,
) -> Path:
    """Write a merged model that plain transformers loads; a block of tensors is in memory.

    Scales of layers' inputs fit into no weights: a norm's epsilon keeps them from being folded.

    Args:
        recipe: what to merge.
        checkpoints: the opened models, by the recipe's names.
        folder: a new folder, or one that evomerge wrote before.
        row: the candidate's row of the final table, for the card.
        progress: called with what is done, and the bytes done and in all.
        scales: `attribute` writes scales of layers' inputs into config.json, where stock loaders
            ignore them (see `apply_scales`); None refuses them.
        calibration: the texts of operators that look at data; they are written beside the recipe.

    Raises:
        ConfigurationError: no config says what the recipe makes, or it scales layers' inputs.
        CandidateError: a merged tensor is not finite.
    """
    base = checkpoints[recipe.base]
    merger = Merger(
        checkpoints,
        anatomy_of(base),
        recipe.base,
        once=True,
        progress=progress,
        statistics=statistics_of(recipe, checkpoints, calibration, progress),
    )
    layout = merger.layout(recipe)
    mergekit = mergekit_yaml(recipe, checkpoints, merger.anatomy)
    shapes = {name: shape for name, (shape, _) in layout.items()}
    config = _config(recipe, merger, shapes, checked_scales(recipe, merger, scales))
    tensors = merger.tensors(recipe)
    if progress is not None:
        report = partial(progress, f"merging {folder.name}")
        tensors = _counted(tensors, report, size_bytes(layout))
    return write_model(
        folder,
        tensors,
        like=base,
        layout=layout,
        config=config,
        reads=checkpoints.values(),
        extra_files={
            "README.md": model_card(recipe, folder.name, row, scaled=INPUT_SCALES in config),
            "evomerge_recipe.yaml": recipe_yaml(recipe),
            **({} if mergekit is None else {"mergekit_config.yml": mergekit}),
            **calibration_file(calibration),
        },
    )


def statistics_of(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    calibration: Calibration | None,
    progress: Progress | None = None,
) -> Collected | None:
    """What operators are told of data, where there are any."""
    if calibration is None:
        return None
    return Collected(calibration, checkpoints, recipe.base, progress)


def calibration_file(calibration: Calibration | None) -> dict[str, str]:
    """What is written beside a recipe of operators that look at data."""
    return {} if calibration is None else {CALIBRATION: calibration.to_json() + "\n"}


def _counted(
    tensors: Iterator[tuple[str, Tensor]], report: Callable[[int, int], None], total: int
) -> Iterator[tuple[str, Tensor]]:
    """The tensors as they come, told of by their bytes."""
    done = 0
    report(done, total)
    for name, tensor in tensors:
        done += tensor.nbytes
        yield name, tensor
        report(done, total)


def checked_scales(recipe: Recipe, merger: Merger, scales: str | None) -> tuple[float, ...]:
    """The factors of the layers' inputs, if they may be written; () where all are 1.

    Raises:
        ConfigurationError: there are some, and nobody said what to do with them.
    """
    if scales not in (None, ATTRIBUTE):
        raise ConfigurationError(Problem("scales", f"got {scales!r}", nearest(scales, [ATTRIBUTE])))
    merger.plan(recipe)  # whose layers exist
    base = merger.checkpoints[recipe.base]
    found = input_scales(recipe, base, merger.anatomy.num_layers)
    if not (layers := scaled_layers(found)):
        return ()
    if scales is None:
        shown = ", ".join(map(str, layers[:8])) + (", ..." if len(layers) > 8 else "")
        what = (
            "the layers' inputs are scaled, which no weights can say (a norm's epsilon is not "
            "scaled along), so stock loaders would compute another model"
        )
        hint = (
            f"`scales: {ATTRIBUTE}` (--scales {ATTRIBUTE}) writes a folder with config.json's "
            f"{INPUT_SCALES}, which evomerge.apply_scales applies to a loaded model"
        )
        raise ConfigurationError(Problem(f"slots {shown}: input_scale", what, hint))
    return found


def _config(
    recipe: Recipe, merger: Merger, shapes: Shapes, scales: tuple[float, ...]
) -> dict[str, Any]:
    """The config of the merged model, whose layers may be rearranged and their inputs scaled.

    Raises:
        ConfigurationError: no config of the base's class says what the recipe makes.
    """
    base = merger.checkpoints[recipe.base]
    if scales and not base.config:
        what = "the base has no config.json to write the scales of layers' inputs into"
        raise ConfigurationError(Problem("scales", what))
    config = _stacked(recipe, merger, shapes)
    config.pop(INPUT_SCALES, None)
    return {**config, INPUT_SCALES: list(scales)} if scales else config


def _stacked(recipe: Recipe, merger: Merger, shapes: Shapes) -> dict[str, Any]:
    base, num_layers = merger.checkpoints[recipe.base], merger.anatomy.num_layers
    if recipe.keeps_layers(num_layers):
        return dict(base.config)
    read = [slot.layer_of(recipe.base) for slot in recipe.slots or ()]
    config = stacked_config(base.config, read, num_layers)
    stored = {name: base.shape(name) for name in base.names}
    if problems := stack_problems(base.config, stored, config, shapes):
        raise ConfigurationError(problems)
    return config


def folder_name(row: Mapping[str, Any]) -> str:
    """What the folder of a row of the final table is called among others."""
    return str(row["label"] or f"candidate {row['candidate']}").replace(" ", "_")


def output_dtype(recipe: Recipe) -> Any:
    """The recipe's dtype as torch's; None keeps each tensor's own."""
    import torch

    return None if recipe.dtype is None else getattr(torch, recipe.dtype)


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as `evomerge merge` reads it."""
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    flow = False if recipe.segments is None else None  # a table's rows in lines, not in columns
    return yaml.safe_dump({"evomerge_recipe": 1, **data}, sort_keys=False, default_flow_style=flow)


def model_card(
    recipe: Recipe, name: str, row: Mapping[str, Any] | None, *, scaled: bool = False
) -> str:
    """The README.md of an exported model, in the hub's format.

    scaled: whether config.json says scales of layers' inputs.
    """
    again = f" --scales {ATTRIBUTE}" if scaled else ""
    front = {
        "base_model": [source.path for source in recipe.models.values()],
        "base_model_relation": "merge",
        "tags": ["merge", "evomerge"],
        "library_name": "transformers",
    }
    models = "\n".join(
        f"- `{label}`: {source.path}"
        + (f" (sha256 of its tensors {source.sha256[:16]}...)" if source.sha256 else "")
        + (
            f", its units in the order of `{Match.of(source.match).model}`'s"
            if source.match
            else ""
        )
        for label, source in recipe.models.items()
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {name}

A merge made with evomerge.
`evomerge merge evomerge_recipe.yaml{again} --out FOLDER` makes it again.
{SCALES_SECTION if scaled else ""}
## Models

{models}
{layers_section(recipe)}{scores_section(row)}
## Recipe

```yaml
{recipe_yaml(recipe).strip()}
```
"""


SCALES_SECTION = f"""
## Scaled inputs

**transformers alone computes another model than the one that was found.** The hidden states that
enter layer i have to be multiplied by `{INPUT_SCALES}[i]` of config.json, which no stock loader
reads. `evomerge.apply_scales(model)` does that to a loaded model, and so does

```python
import torch

def scale_inputs(model):
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    layers = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))
    for layer, scale in zip(layers, model.config.{INPUT_SCALES}, strict=True):
        def scaled(module, args, kwargs, scale=scale):
            if args:
                return (args[0] * scale, *args[1:]), kwargs
            return args, dict(kwargs, hidden_states=kwargs["hidden_states"] * scale)
        layer.register_forward_pre_hook(scaled, with_kwargs=True)
```
"""


def layers_section(recipe: Recipe) -> str:
    """What the model is made of, where its layers are not the models' own as they are."""
    if recipe.segments is not None:
        return segments_section(recipe.segments)
    slots = recipe.slots or ()
    if recipe.keeps_layers(len(slots)) and not recipe.is_scaled:
        return ""
    scales = [(f"{part} times", f"{part}_scale") for part in ("input", "branch")]
    scales = [(head, key) for head, key in scales if any(getattr(s, key) != 1 for s in slots)]
    heads = ["layer", "made of", *(head for head, _ in scales)]
    lines = ["", "## Layers", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for number, slot in enumerate(slots):
        sources = recipe.merge_for(number, "default").sources or ()
        made_of = ", ".join(f"`{model}` {slot.layer_of(model)}" for model in sources)
        factors = [f"{getattr(slot, key):g}" for _, key in scales]
        lines.append(f"| {' | '.join([str(number), made_of, *factors])} |")
    return "\n".join(lines) + "\n"


def segments_section(segments: Segments) -> str:
    """How many stretches of the parameters there are, and what each model has of them."""
    stops = segments.stops
    sizes = [stop - start for start, stop in zip((0, *stops), stops, strict=False)]
    lines = ["", "## Stretches", ""]
    noun = (
        "a linear combination of the models"
        if len(stops) == 1
        else (f"{len(stops)} stretches, each a linear combination of the models")
    )
    lines += [
        f"The {stops[-1]:,} parameters, flattened, are {noun}.",
        "",
        "| model | mean coefficient | smallest | largest |",
        "|---|---|---|---|",
    ]
    for model, weights in segments.weights.items():
        mean = sum(w * size for w, size in zip(weights, sizes, strict=True)) / stops[-1]
        lines.append(f"| `{model}` | {mean:.3f} | {min(weights):.3f} | {max(weights):.3f} |")
    return "\n".join(lines) + "\n"


def scores_section(row: Mapping[str, Any] | None) -> str:
    """The candidate's scores as a table; the search's own are estimates that it was chosen by."""
    if row is None:
        return ""
    columns = [name for name in ("search", "fresh", "holdout") if name in row]
    lines = [
        "",
        "## Scores",
        "",
        "Mean ± standard error. The candidate was found on the search items and chosen on the "
        "fresh ones; only the holdout is unbiased.",
        "",
        "| objective | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for objective in row[columns[-1]]:
        cells = [_score_cell(row[name][objective]) for name in columns]
        lines.append(f"| {objective} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _score_cell(estimate: Mapping[str, float]) -> str:
    value, error, count = (estimate[k] for k in ("value", "standard_error", "num_items"))
    if not count:
        return in_short(value)  # a cost, which is known exactly
    return f"{value:.3f} ± {error:.3f} ({count} items)"
