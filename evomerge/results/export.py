"""A candidate as an ordinary model folder, with a card that says where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from evomerge.recipe import Recipe
from evomerge.results.card import ATTRIBUTE, model_card, recipe_yaml
from evomerge.results.card_scores import Found
from evomerge.results.mergekit_yaml import mergekit_yaml
from evomerge.results.origins import CARD, Origin, origins_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Beside:
    """What is told beside a merge that a search has found.

    found: of the candidate. references: how the experiment names the models. files: bare name ->
    content, of pictures. for_hub: see `model_card`.
    """

    found: Found | None = None
    references: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    for_hub: bool = False

    def origins(self, recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Origin]:
        """Where the recipe's models come from."""
        return origins_of(recipe, checkpoints, self.references)

    def card(
        self, recipe: Recipe, checkpoints: Mapping[str, Checkpoint], name: str, *, scaled: bool
    ) -> str:
        """The card of the model."""
        origins = self.origins(recipe, checkpoints)
        return model_card(recipe, name, origins, self.found, scaled=scaled, for_hub=self.for_hub)


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
    progress: Progress | None = None,
    scales: str | None = None,
    calibration: Calibration | None = None,
    *,
    beside: Beside | None = None,
) -> Path:
    """Write a merged model that plain transformers loads; a block of tensors is in memory.

    Scales of layers' inputs fit into no weights: a norm's epsilon keeps them from being folded.

    Args:
        recipe: what to merge.
        checkpoints: the opened models, by the recipe's names.
        folder: a new folder, or one that evomerge wrote before.
        progress: called with what is done, and the bytes done and in all.
        scales: `attribute` writes scales of layers' inputs into config.json, where stock loaders
            ignore them (see `apply_scales`); None refuses them.
        calibration: the texts of operators that look at data; they are written beside the recipe.
        beside: what else there is to tell of it.

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
            CARD: (beside or Beside()).card(
                recipe, checkpoints, folder.name, scaled=INPUT_SCALES in config
            ),
            "evomerge_recipe.yaml": recipe_yaml(recipe),
            **({} if mergekit is None else {"mergekit_config.yml": mergekit}),
            **calibration_file(calibration),
            **(beside or Beside()).files,
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


def output_dtype(recipe: Recipe) -> Any:
    """The recipe's dtype as torch's; None keeps each tensor's own."""
    import torch

    return None if recipe.dtype is None else getattr(torch, recipe.dtype)
