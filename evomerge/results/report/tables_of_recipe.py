"""A recipe as tables of numbers: what each model has in each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.recipe import Merge, Recipe

COMPONENTS = ("attention", "mlp", "norm", "other")
OUTSIDE = ("embedding", "norm", "head", "other")
EVERYWHERE = "all tensors"
SHARED = "all experts"  # the row of a parameter that has one value for all of them


@dataclass(frozen=True)
class Coefficients:
    """A parameter in a part of the layers.

    values: shape (rows, columns); None where it has none.
    """

    parameter: str
    part: str  # a component, `` for whole layers
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]

    @property
    def numbers(self) -> list[float]:
        """Those that there are."""
        return [value for row in self.values for value in row if value is not None]


def coefficients(
    recipe: Recipe, experts: Sequence[str], num_layers: int | None
) -> tuple[list[Coefficients], dict[str, str]]:
    """A table for each parameter that varies and each component that is told apart.

    Also the parameters that are the same everywhere, with their values.
    """
    if recipe.segments is not None:
        return [], {}
    tables, constant = [], {}
    parts = _parts(recipe, num_layers)
    for name in _parameters([m for _, cells in parts for _, m in cells]):
        found = [_table(name, part, cells, experts) for part, cells in parts]
        values = {value for table in found for value in table.numbers}
        if all(table.rows == (SHARED,) for table in found) and len(values) == 1:
            constant[name] = f"{values.pop():g}"
        else:
            tables += [table for table in found if table.numbers]
    for name, value in recipe.default.parameters.items():
        if isinstance(value, str | bool):
            constant[name] = str(value)
    return tables, constant


def _parts(recipe: Recipe, num_layers: int | None) -> list[tuple[str, list[tuple[str, Merge]]]]:
    """Part -> (column, its merge): whole layers, or components and what is outside the layers."""
    outside: list[tuple[str, Merge]] = [
        (str(name), recipe.merge_for(None, name)) for name in OUTSIDE if name in recipe.outside
    ]
    if recipe.slots is None:
        everything = [(EVERYWHERE, recipe.merge_for(None, "other" if not outside else ""))]
        if not outside or num_layers is None:
            return [("", everything)]
        return [("", [*outside, ("layers", recipe.merge_for(None, ""))])]
    slots = range(len(recipe.slots))
    keys = {key for slot in recipe.slots for key in slot.merges}
    rest = [("outside", recipe.merge_for(None, ""))] if recipe.default.parameters else []
    if keys <= {"default"}:
        inside = [(str(i), recipe.merge_for(i, "default")) for i in slots]
        before = [pair for pair in outside if pair[0] == "embedding"]
        after = [pair for pair in outside if pair[0] != "embedding"]
        return [("", [*before, *inside, *after, *([] if outside else rest)])]
    parts = [
        (component, [(str(i), recipe.merge_for(i, component)) for i in slots])
        for component in COMPONENTS
        if component in keys or component != "other"
    ]
    return [*parts, *([("outside the layers", outside or rest)] if outside or rest else [])]


def _parameters(merges: Sequence[Merge]) -> list[str]:
    """The names of those that are numbers somewhere, in the order of their appearance."""
    names: dict[str, None] = {}
    for merge in merges:
        for name, value in merge.parameters.items():
            if isinstance(value, dict) or (
                isinstance(value, int | float) and not isinstance(value, bool)
            ):
                names.setdefault(name)
    return list(names)


def _table(
    name: str, part: str, cells: Sequence[tuple[str, Merge]], experts: Sequence[str]
) -> Coefficients:
    told = [(column, _cell(merge, name)) for column, merge in cells]
    if len(told) > 1 and all(cell == told[0][1] for _, cell in told) and not part:
        told = [(EVERYWHERE, told[0][1])]
    present = {row for _, cell in told for row in cell}
    rows = [
        row for row in (*experts, *sorted(present - {*experts, SHARED}), SHARED) if row in present
    ]
    return Coefficients(
        name,
        part,
        tuple(rows),
        tuple(column for column, _ in told),
        tuple(tuple(cell.get(row) for _, cell in told) for row in rows),
    )


def _cell(merge: Merge, name: str) -> dict[str, float]:
    """Source -> the value of a parameter there."""
    value = merge.parameters.get(name)
    if isinstance(value, dict):
        sources = merge.sources or tuple(value)
        return {source: float(value[source]) for source in sources if source in value}
    if value is None or isinstance(value, str | bool):
        return {}
    return {SHARED: float(value)}


# --- layers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """Which layers a slot is made of: model -> layer; and the factors that it has."""

    layers: dict[str, int]
    operator: str
    input_scale: float
    branch_scale: float


def standings(recipe: Recipe) -> list[Standing]:
    """Slot by slot, from the first layer of the merged model to the last."""
    found = []
    for number, slot in enumerate(recipe.slots or ()):
        merge = recipe.merge_for(number, "default")
        sources = merge.sources or (recipe.base,)
        layers = {source: slot.layer_of(source) for source in sources}
        found.append(Standing(layers, merge.operator or "", slot.input_scale, slot.branch_scale))
    return found


def is_rearranged(recipe: Recipe, num_layers: int | None) -> bool:
    """Whether layers are elsewhere than in the models, are scaled, or are some models' alone."""
    if not recipe.slots:
        return False
    found = standings(recipe)
    count = len(found) if num_layers is None else num_layers
    experts = set(recipe.models) - {recipe.base}
    of_some = any(not set(standing.layers) >= experts for standing in found)
    return recipe.is_scaled or not recipe.keeps_layers(count) or of_some
