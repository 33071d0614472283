"""A candidate as an ordinary model folder, with a card that says where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.layer_stack import Shapes, stack_problems, stacked_config
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.shards import size_bytes
from evomerge.checkpoints.write import write_model
from evomerge.errors import ConfigurationError
from evomerge.merging.materialise import Merger
from evomerge.protocols import Progress
from evomerge.recipe import Recipe, Segments
from evomerge.results.mergekit_yaml import mergekit_yaml

if TYPE_CHECKING:
    from torch import Tensor


def merged_tensors(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Tensor]:
    """The whole merged state dict, in memory, in the recipe's output dtype.

    Raises:
        CandidateError: a merged tensor is not finite.
    """
    merger = Merger(checkpoints, anatomy_of(checkpoints[recipe.base]), recipe.base, once=True)
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
) -> Path:
    """Write a merged model that plain transformers loads; a block of tensors is in memory.

    Args:
        recipe: what to merge.
        checkpoints: the opened models, by the recipe's names.
        folder: a new folder, or one that evomerge wrote before.
        row: the candidate's row of the final table, for the card.
        progress: called with what is done, and the bytes done and in all.
    """
    base = checkpoints[recipe.base]
    merger = Merger(checkpoints, anatomy_of(base), recipe.base, once=True, progress=progress)
    layout = merger.layout(recipe)
    mergekit = mergekit_yaml(recipe, checkpoints, merger.anatomy)
    config = _config(recipe, merger, {name: shape for name, (shape, _) in layout.items()})
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
            "README.md": model_card(recipe, folder.name, row),
            "evomerge_recipe.yaml": recipe_yaml(recipe),
            **({} if mergekit is None else {"mergekit_config.yml": mergekit}),
        },
    )


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


def _config(recipe: Recipe, merger: Merger, shapes: Shapes) -> dict[str, Any]:
    """The config of the merged model, whose layers may be rearranged.

    Raises:
        ConfigurationError: no config of the base's class says what the recipe makes.
    """
    base, num_layers = merger.checkpoints[recipe.base], merger.anatomy.num_layers
    if recipe.keeps_layers(num_layers):
        return base.config
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


def model_card(recipe: Recipe, name: str, row: Mapping[str, Any] | None) -> str:
    """The README.md of an exported model, in the hub's format."""
    front = {
        "base_model": [source.path for source in recipe.models.values()],
        "base_model_relation": "merge",
        "tags": ["merge", "evomerge"],
        "library_name": "transformers",
    }
    models = "\n".join(
        f"- `{label}`: {source.path}"
        + (f" (sha256 of its tensors {source.sha256[:16]}...)" if source.sha256 else "")
        for label, source in recipe.models.items()
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {name}

A merge made with evomerge. `evomerge merge evomerge_recipe.yaml --out FOLDER` makes it again.

## Models

{models}
{layers_section(recipe)}{scores_section(row)}
## Recipe

```yaml
{recipe_yaml(recipe).strip()}
```
"""


def layers_section(recipe: Recipe) -> str:
    """What the model is made of, where layers are not in the models' own order, or do not count."""
    if recipe.segments is not None:
        return segments_section(recipe.segments)
    slots = recipe.slots or ()
    if recipe.keeps_layers(len(slots)):
        return ""
    lines = ["", "## Layers", "", "| layer | made of |", "|---|---|"]
    for number, slot in enumerate(slots):
        sources = recipe.merge_for(number, "default").sources or ()
        made_of = ", ".join(f"`{model}` {slot.layer_of(model)}" for model in sources)
        lines.append(f"| {number} | {made_of} |")
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
        cells = [
            f"{row[name][objective]['value']:.3f} ± {row[name][objective]['standard_error']:.3f}"
            f" ({row[name][objective]['num_items']} items)"
            for name in columns
        ]
        lines.append(f"| {objective} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
