"""mergekit 0.1.5's merge methods in terms of the operators here: names, defaults, who is the base.

One table for both directions: reading mergekit's YAML and writing it. It is checked against
mergekit's own answers in tests/test_mergekit_yaml.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.merging.operator import Value
from evomerge.merging.table import OPERATORS

REQUIRED = object()  # a parameter without a default
IGNORED = "int8_mask"  # the dtype of a mask of zeros and ones: it changes no result


@dataclass(frozen=True)
class Setting:
    """A parameter of a mergekit method.

    each: it has a value for each model; else one for all of them.
    ours: the operator's parameter; None where it changes nothing, or `Method` sees to it.
    fixed: the operator has no such parameter, and does what the default says.
    """

    name: str
    kind: type
    default: Any = REQUIRED
    each: bool = False
    ours: str | None = None
    fixed: bool = False


@dataclass(frozen=True)
class Method:
    """A mergekit method; its operator has the same name.

    base: `needed`: one of the models is what the others are merged into; `optional`: the same if
    it stands among them; `ignored`: a model like the others.
    random: it drops entries at random.
    """

    name: str
    settings: tuple[Setting, ...]
    base: Literal["needed", "optional", "ignored"]
    random: bool = False

    def setting(self, name: str) -> Setting | None:
        """The setting of a name."""
        return next((setting for setting in self.settings if setting.name == name), None)

    @property
    def names(self) -> list[str]:
        """What may stand under `parameters`."""
        return sorted({IGNORED, *(setting.name for setting in self.settings)})


def parameters_of(
    method: Method, shared: Mapping[str, Any], each: Mapping[str, Mapping[str, Any]], deltas: bool
) -> dict[str, Any]:
    """The operator's parameters for what a mergekit file says of one tensor.

    Args:
        method: the file's.
        shared: what has one value for all models.
        each: source -> what it has by itself.
        deltas: whether a base stands among the models of a method that can do without.
    """
    declared = {parameter.name: parameter for parameter in OPERATORS[method.name].parameters}
    made: dict[str, Any] = {}
    for setting in method.settings:
        if setting.ours is None:
            continue
        if not setting.each:
            made[setting.ours] = shared[setting.name]
            continue
        values = {source: given[setting.name] for source, given in each.items()}
        if setting.name == "density":  # from 1 on mergekit drops nothing
            values = {source: min(1.0, value) for source, value in values.items()}
        alike = len(set(values.values())) == 1
        one_for_all = alike or not declared[setting.ours].per_source
        made[setting.ours] = next(iter(values.values())) if one_for_all else values
    if "rescale" in declared:
        made["rescale"] = "l1" if shared["rescale"] else "none"
    if method.name == "nuslerp":
        along = "columns" if shared["nuslerp_row_wise"] else "rows"
        made["vectors"] = "tensor" if shared["nuslerp_flatten"] else along
    if method.base == "optional":
        made["deltas"] = deltas
    if "compat" in declared:
        made["compat"] = "mergekit"
    return made


def settings_of(
    method: Method, values: Mapping[str, Value], sources: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The inverse of `parameters_of`, as far as there is one: what is shared, and each source's."""
    shared: dict[str, Any] = {}
    each: dict[str, dict[str, Any]] = {source: {} for source in sources}
    for setting in method.settings:
        if setting.ours is None:
            continue
        value = values[setting.ours]
        if not setting.each:
            shared[setting.name] = value
            continue
        of_sources = value if isinstance(value, tuple) else (value,) * len(sources)
        for source, one in zip(sources, of_sources, strict=True):
            each[source][setting.name] = one
    if method.random:
        shared["rescale"] = values["rescale"] != "none"
    if method.name == "nuslerp":
        shared["nuslerp_flatten"] = values["vectors"] == "tensor"
        shared["nuslerp_row_wise"] = values["vectors"] == "columns"
    return shared, each


def differences(method: Method, values: Mapping[str, Value]) -> list[str]:
    """In which ways mergekit computes something else for an operator's parameters."""
    found = []
    published = values.get("compat") == "published"
    density = values.get("density", (1.0,))
    drops = isinstance(density, tuple) and min(density) < 1
    if method.random and drops:
        found.append("mergekit draws other random masks")
        if values["rescale"] not in ("l1", "none") and (published or values["rescale"] != "auto"):
            found.append("mergekit makes up for dropped entries by matching the L1 norm")
    if method.name == "ties" and drops:
        trim = values["trim"]
        if trim == "model" or (trim == "auto" and published):
            found.append("mergekit trims each tensor by itself, not the whole model")
    if published and values.get("normalize"):
        found.append("mergekit divides by summed weights, not by the number of models")
    elif published and (method.name.endswith("_ties") or method.name in _OTHERWISE):
        found.append(f"mergekit's {method.name} is that of compat: mergekit")
    if method.name == "nuslerp" and values["straight_above"] != 1:
        found.append("mergekit's nuslerp goes along a great circle whatever the angle is")
    if method.name == "arcee_fusion":
        found.append("above a million entries mergekit estimates its quantiles from a sample")
        if values["fence"] != 1.5:
            found.append("mergekit's fence is 1.5")
    return found


_OTHERWISE = ("ties", "sce", "model_stock", "della", "della_linear", "breadcrumbs")


def _each(name: str, default: Any = REQUIRED) -> Setting:
    return Setting(name, float, default, each=True, ours=name)


def _one(name: str, kind: type, default: Any = REQUIRED) -> Setting:
    return Setting(name, kind, default, ours=name)


def _family(name: str, *settings: Setting, normalize: bool, rescale: bool) -> Method:
    """A method that sparsifies, weighs, perhaps agrees on signs, and sums task vectors."""
    density = Setting(
        "density", float, 1.0, each=True, ours=None if name == "task_arithmetic" else "density"
    )
    return Method(
        name,
        (
            _each("weight"),
            density,
            *settings,
            _one("lambda", float, 1.0),
            _one("normalize", bool, normalize),
            Setting("rescale", bool, rescale, fixed=not rescale and name != "task_arithmetic"),
        ),
        "needed",
        random=rescale,
    )


_GAMMA, _EPSILON = _each("gamma", 0.01), _each("epsilon", 0.15)

METHODS = {
    method.name: method
    for method in (
        Method("linear", (_each("weight"), _one("normalize", bool, True)), "ignored"),
        Method("slerp", (_one("t", float),), "needed"),
        Method(
            "nuslerp",
            (
                _each("weight"),
                Setting("nuslerp_flatten", bool, True),
                Setting("nuslerp_row_wise", bool, False),
            ),
            "optional",
        ),
        Method(
            "multislerp",
            (
                _each("weight"),
                _one("normalize_weights", bool, True),
                Setting("eps", float, 1e-8, fixed=True),
            ),
            "optional",
        ),
        Method("karcher", (_one("max_iter", int, 10), _one("tol", float, 1e-5)), "ignored"),
        Method("passthrough", (_each("scale", 1.0),), "ignored"),
        _family("task_arithmetic", normalize=False, rescale=False),
        _family("ties", normalize=True, rescale=False),
        _family("dare_linear", normalize=False, rescale=True),
        _family("dare_ties", normalize=False, rescale=True),
        _family("della", _EPSILON, normalize=True, rescale=True),
        _family("della_linear", _EPSILON, normalize=False, rescale=True),
        _family("breadcrumbs", _GAMMA, normalize=False, rescale=False),
        _family("breadcrumbs_ties", _GAMMA, normalize=False, rescale=False),
        Method("model_stock", (_one("filter_wise", bool, False),), "needed"),
        Method("sce", (_one("select_topk", float, 1.0),), "needed"),
        Method("arcee_fusion", (), "needed"),
        Method("nearswap", (_one("t", float),), "needed"),
        Method("ram", (_one("epsilon", float, 1e-5),), "needed"),
        Method(
            "ramplus_tl",
            (_one("r", float, 0.1), _one("alpha", float, 0.2), _one("epsilon", float, 1e-5)),
            "needed",
        ),
    )
}
