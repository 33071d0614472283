"""Random search space files of every kind, over random stand-ins, as hypothesis strategies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from evomerge.checkpoints.anatomy import Anatomy, Place
from evomerge.documents import Document
from evomerge.errors import ConfigurationError, Problem
from evomerge.genes import Real
from evomerge.merging import OPERATORS
from evomerge.merging.operator import Operator
from evomerge.recipe import Recipe
from evomerge.records import Parameter
from evomerge.search_spaces import make_space, parse_space

Data = dict[str, Any]

INSIDE = ("attention", "mlp", "norm", "other")
OUTSIDE = ("embedding", "head", "norm", "other")
PLAIN = ("a", "b", "c", "d")
# Names that look like parts of genes, of other names, or like words of the files.
ODD = ("embedding", "layer_0", "layer", "scale", "order", "weight", "mlp", "a.b", "a", "skip")

AXES = ("expert", "layer", "component")

UNIT = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def anatomies(draw: st.DrawFn, least: int = 1) -> Anatomy:
    """Models of few layers, which are alike or not, with all or some of what is outside."""
    num_layers = draw(st.integers(least, 8))
    alike = draw(st.booleans())
    some = st.lists(st.sampled_from(INSIDE), min_size=1, unique=True)
    first = draw(some)
    places: dict[str, Place] = {}
    roles: dict[str, str] = {}
    for layer in range(num_layers):
        for component in first if alike else draw(some):
            name = f"layers.{layer}.{component}.weight"
            places[name] = Place(layer, component)
            roles[name] = f"layers.*.{component}.weight"
    least_outside = 0 if places else 1
    for component in draw(st.lists(st.sampled_from(OUTSIDE), min_size=least_outside, unique=True)):
        name = f"outside_{component}.weight"
        places[name], roles[name] = Place(None, component), name
    return Anatomy(places, num_layers, roles, dict.fromkeys(places, 1))


def expert_lists(least: int = 1, most: int = 4) -> st.SearchStrategy[list[str]]:
    odd = st.lists(st.sampled_from(ODD), min_size=least, max_size=most, unique=True)
    plain = st.integers(least, most).map(lambda count: list(PLAIN[:count]))
    return st.one_of(plain, plain, plain, odd)


def template_of(experts: list[str]) -> Recipe:
    return Recipe.model_validate(
        {
            "base": "base",
            "models": {name: f"/{name}" for name in ["base", *experts]},
            "default": {"operator": "linear"},
        }
    )


def made(data: Data, experts: list[str], anatomy: Anatomy) -> Any:
    """As an experiment makes it: the file is read, then its experts, then the models.

    Raises:
        ConfigurationError: the file is refused.
    """
    config = parse_space(Document(data))
    if problems := config.check_experts(experts):
        raise ConfigurationError(problems)
    return make_space(config, template_of(experts), anatomy)


def attempt(data: Data, experts: list[str], anatomy: Anatomy) -> tuple[Any, tuple[Problem, ...]]:
    """The space, or None and why there is none."""
    try:
        return made(data, experts, anatomy), ()
    except ConfigurationError as error:
        return None, error.problems


# --- operators ------------------------------------------------------------------------------------


@st.composite
def ranges(draw: st.DrawFn, low: float, high: float, decimals: int = 3) -> list[float]:
    """A range within another, with ends that need not lie on any grid."""
    step = 10.0**-decimals
    ends = draw(
        st.lists(st.integers(0, round((high - low) / step)), min_size=2, max_size=2, unique=True)
    )
    return [min(high, round(low + end * step, decimals)) for end in sorted(ends)]


def bounds_of(parameter: Parameter) -> tuple[float, float]:
    low = -2.0 if parameter.low is None else max(parameter.low, -2.0)
    high = 2.0 if parameter.high is None else min(parameter.high, 2.0)
    return (1, 40) if parameter.kind == "integer" else (low, high)


@st.composite
def varied(draw: st.DrawFn, parameter: Parameter) -> Data:
    """What any searched parameter has: a range, perhaps a log scale, levels, or options."""
    if parameter.kind == "flag":
        return {}
    if parameter.kind == "choice":
        size = st.integers(2, len(parameter.options))
        return draw(
            st.just({}) | size.map(lambda n: {"options": list(reversed(parameter.options))[:n]})
        )
    low, high = bounds_of(parameter)
    decimals = 0 if parameter.kind == "integer" else draw(st.sampled_from([1, 3, 5, 8]))
    found: Data = {"range": draw(ranges(low, high, decimals))}
    if draw(st.integers(0, 3)) == 0:
        low, high = found["range"]
        middle = [] if parameter.kind == "integer" else [low + (high - low) / 3]
        return {"levels": [low, *middle, high]}
    if found["range"][0] > 0 and parameter.kind == "real" and draw(st.booleans()):
        found["scale"] = "log"
    return found


def _share_range(draw: st.DrawFn, kind: str) -> Data:
    if kind == "simplex":
        return {}
    if kind == "normalised":
        return {"range": draw(ranges(0, 1, draw(st.integers(1, 6))) | ranges(-1, 1, 2))}
    return {"range": draw(ranges(-8, 8, 1) | ranges(0, 1, 4))}


@st.composite
def searched(draw: st.DrawFn, parameter: Parameter, axes: tuple[str, ...], shares: Any) -> Data:
    """A parameter along some axes, with what goes with them."""
    possible = [
        axis for axis in AXES if axis in axes and (axis != "expert" or parameter.per_source)
    ]
    per = [axis for axis in possible if draw(st.booleans())]
    found: Data = {"per": per}
    if "expert" in per and draw(st.integers(0, 2)) == 0:
        found["values"] = draw(st.sampled_from(shares))
        found |= _share_range(draw, found["values"])
    else:
        found |= draw(varied(parameter))
        if (
            "expert" in per
            and "gate" in axes
            and found.keys() == {"per", "range"}
            and draw(st.booleans())
        ):
            found["gate"] = max(map(abs, found["range"])) * draw(st.sampled_from([0.1, 0.5, 1.0]))
    if "layer" in per:
        grain = draw(st.sampled_from([None, "layer_groups", "layers_per_group"]))
        found |= {} if grain is None else {grain: draw(st.integers(1, 4))}
    if "apart" in axes and draw(st.booleans()):
        ends = [["embedding", "head"], ["outside"], ["embedding"], ["head"], []]
        apart = draw(st.sampled_from(ends[: 2 if "component" in per else 5]))
        found["apart"] = [*apart, *draw(st.sampled_from([[], ["norms"]]))]
    return found


@st.composite
def settings_of(
    draw: st.DrawFn,
    operator: Operator,
    axes: tuple[str, ...],
    shares: tuple[str, ...] = ("normalised", "softmax", "simplex"),
    least: int = 1,
) -> Data:
    """`search` and `fixed` of an operator."""
    names = [p.name for p in operator.parameters]
    chosen = draw(st.lists(st.sampled_from(names), min_size=least, unique=True)) if names else []
    search = {n: draw(searched(operator.parameter(n), axes, shares)) for n in chosen}
    fixed = {
        p.name: p.default
        for p in operator.parameters
        if p.name not in search and draw(st.booleans())
    }
    return {"operator": operator.name, "search": search, "fixed": fixed}


def operators(needs_parameters: bool = True) -> st.SearchStrategy[Operator]:
    return st.sampled_from([o for o in OPERATORS.values() if o.parameters or not needs_parameters])


def _some_of(draw: st.DrawFn, operator: Operator) -> list[str]:
    most = 4 if operator.max_sources is None else operator.max_sources
    return draw(expert_lists(operator.min_sources, most))


# --- kinds ----------------------------------------------------------------------------------------


@st.composite
def weights(draw: st.DrawFn) -> tuple[Data, list[str], Anatomy]:
    operator = draw(operators())
    experts = _some_of(draw, operator)
    axes = ("expert", "layer", "component", "gate", "apart")
    data = {"kind": "weights", **draw(settings_of(operator, axes))}
    if draw(st.booleans()):
        data["layers_per_group"] = draw(st.integers(1, 3))
    if len(experts) > 1 and draw(st.integers(0, 3)) == 0:
        members = draw(st.lists(st.sampled_from(experts), min_size=1, max_size=3, unique=True))
        data["expert_groups"] = {draw(st.sampled_from(["team", experts[-1]])): members}
    anatomy = draw(anatomies())
    if draw(st.booleans()):
        space, _ = attempt(data, experts, anatomy)
        reals = [gene for gene in space.genes if isinstance(gene, Real)] if space else []
        if reals:
            gene = draw(st.sampled_from(reals))
            pattern = draw(st.sampled_from([gene.name, f"{gene.name.rpartition('.')[0]}.*"]))
            value = draw(st.sampled_from([gene.low, gene.high, 99.0]))
            data["fixed"] = {**data["fixed"], pattern: value}
    return data, experts, anatomy


@st.composite
def depth_profile(draw: st.DrawFn) -> tuple[Data, list[str], Anatomy]:
    curved = [o for o in OPERATORS.values() if any(p.kind == "real" for p in o.parameters)]
    operator = draw(st.sampled_from(curved))
    reals = [p.name for p in operator.parameters if p.kind == "real"]
    search = {}
    for name in draw(st.lists(st.sampled_from(reals), min_size=1, unique=True)):
        parameter = operator.parameter(name)
        low, high = bounds_of(parameter)
        decimals = draw(st.sampled_from([2, 4, 5, 7]))
        per = ["expert"] if parameter.per_source and draw(st.booleans()) else []
        if draw(st.booleans()):
            middle = (low + high) / 2
            first = draw(ranges(low, middle, decimals))
            growth = draw(ranges(low - first[0], high - first[1], decimals))
            curve: Data = {"straight": {"first": first, "growth": growth}}
        else:
            count = st.integers(1, 4)
            knots = draw(
                count | st.fixed_dictionaries(dict.fromkeys(("attention", "mlp", "other"), count))
            )
            curve = {"knots": knots, "range": draw(ranges(low, high, decimals))}
        search[name] = {"per": per, **curve}
    data = {"kind": "depth_profile", "operator": operator.name, "search": search}
    return data, _some_of(draw, operator), draw(anatomies())


@st.composite
def amounts(draw: st.DrawFn, most: float = 1.0) -> list[float]:
    """The fewest and the most: numbers or shares."""
    shares = sorted(draw(st.lists(st.integers(0, 8), min_size=2, max_size=2)))
    if draw(st.booleans()):
        return [share / 8 * most for share in shares]
    return shares


@st.composite
def masks(draw: st.DrawFn) -> tuple[Data, list[str], Anatomy]:
    operator = draw(operators(needs_parameters=False))
    data = {"kind": "masks", **draw(settings_of(operator, ("expert",), least=0))}
    splits = [
        "component",
        *(["expert"] if any(p.name == "weight" for p in operator.parameters) else []),
    ]
    per = ["layer", *(axis for axis in splits if draw(st.booleans()))]
    mask: Data = {"per": per}
    if draw(st.booleans()):
        mask["least"], mask["most"] = draw(amounts())
    if draw(st.booleans()):
        mask[draw(st.sampled_from(["layer_groups", "layers_per_group"]))] = draw(st.integers(1, 4))
    data |= {"mask": mask, "outside": draw(st.sampled_from(["merged", "base"]))}
    return data, _some_of(draw, operator), draw(anatomies())


@st.composite
def options(draw: st.DrawFn) -> Data:
    """A merge as one of the things that a layer may be."""
    operator = draw(operators(needs_parameters=False))
    two = operator.max_sources == 2
    shares = ("pair",) if two else ("normalised", "softmax", "simplex")
    return draw(settings_of(operator, ("expert", "component"), shares, least=0))


@st.composite
def contents(draw: st.DrawFn) -> Data:
    choose = draw(st.sampled_from(["one", "one", "several"]))
    if choose == "several":
        many = [o for o in OPERATORS.values() if o.parameters and o.max_sources != 1]
        operator = draw(st.sampled_from(many))
        names = [p.name for p in operator.parameters]
        chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=2))
        search = {name: draw(varied(operator.parameter(name))) for name in chosen}
        return {"choose": choose, "operator": operator.name, "search": search}
    names = draw(st.lists(st.sampled_from(["one", "layer", "weight", "b"]), unique=True))
    return {
        "choose": choose,
        "base": draw(st.booleans()),
        "experts": draw(st.booleans()) or not names,
        "merges": {name: draw(options()) for name in names},
    }


def outsides(experts: list[str]) -> st.SearchStrategy[str]:
    return st.sampled_from(["base", "ends", "uniform", *experts])


@st.composite
def layer_choice(draw: st.DrawFn) -> tuple[Data, list[str], Anatomy]:
    experts = draw(expert_lists())
    data = {"kind": "layer_choice", "layers": draw(contents()), "outside": draw(outsides(experts))}
    grain = draw(st.sampled_from([None, "layer_groups", "layers_per_group"]))
    data |= {} if grain is None else {grain: draw(st.integers(1, 4))}
    return data, experts, draw(anatomies())


@st.composite
def layer_pruning(draw: st.DrawFn) -> tuple[Data, list[str], Anatomy]:
    experts = draw(expert_lists())
    data = {
        "kind": "layer_pruning",
        "remove": draw(st.integers(1, 6) | st.sampled_from([0.25, 0.5, 0.75])),
        "outside": draw(outsides(experts)),
    }
    if draw(st.booleans()):
        data["layers"] = draw(contents())
    data |= draw(st.sampled_from([{"by": "flag"}, {}, {"repeats": "reject"}]))
    return data, experts, draw(anatomies(least=2))


@st.composite
def layer_swap(draw: st.DrawFn) -> tuple[Data, list[str], Anatomy]:
    experts = draw(expert_lists(2))
    data: Data = {"kind": "layer_swap", "outside": draw(outsides(experts))}
    for key in ("bottom", "top", "transition"):
        data[key] = draw(amounts(0.5))
    for key in ("outer", "inner"):
        if draw(st.booleans()):
            data[key] = draw(st.sampled_from(experts))
    return data, experts, draw(anatomies(least=3))


@st.composite
def layer_stack(draw: st.DrawFn) -> tuple[Data, list[str], Anatomy]:
    experts = draw(expert_lists())
    data: Data = {
        "kind": "layer_stack",
        "arrange": draw(st.sampled_from(["in_a_row", "by_position"])),
        "models": draw(st.sampled_from(["experts", "all"])),
        "outside": draw(outsides(experts)),
    }
    if draw(st.booleans()):
        data["layers"] = draw(amounts(2.0))
    if draw(st.booleans()):
        data["scales"] = {"range": draw(ranges(0.001, 2.0)), "of": "input"}
    if data["arrange"] == "in_a_row":
        data["repeats"] = draw(st.integers(1, 3))
    else:
        data["keep_base"] = draw(st.booleans())
    return data, experts, draw(anatomies())


@st.composite
def layer_walk(draw: st.DrawFn) -> tuple[Data, list[str], Anatomy]:
    experts = draw(expert_lists())
    names = draw(st.lists(st.sampled_from(["one", "other", "b"]), unique=True))
    merges = {}
    for name in names:
        merges[name] = {**draw(options()), "search": {}}
        known = {p.name for p in OPERATORS[merges[name]["operator"]].parameters}
        if {"density"} <= known and draw(st.booleans()):
            merges[name]["fixed"] = {"density": 0.25}
    data = {
        "kind": "layer_walk",
        "merges": merges,
        "steps": draw(st.sampled_from([1.0, 1.5, 2.0, 9])),
        "skip": draw(st.booleans()),
        "back": draw(st.booleans()),
        "outside": draw(outsides(experts)),
    }
    return data, experts, draw(anatomies())


KINDS = {
    "weights": weights,
    "depth_profile": depth_profile,
    "masks": masks,
    "layer_choice": layer_choice,
    "layer_pruning": layer_pruning,
    "layer_swap": layer_swap,
    "layer_stack": layer_stack,
    "layer_walk": layer_walk,
}
