"""Groups and tags of lm-evaluation-harness: which tasks they hold, and how those are averaged.

lm-eval averages over all tasks below a group, at whatever depth: weighted by their numbers of
documents, or equally, as the group's own `aggregate_metric_list` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.fitness.lm_eval_files import code_in, registered_file, registry
from evomerge.fitness.lm_eval_guard import silent_and_offline

NO_CODE = "a group holds no code: put it into the files of its tasks"
_STRUCTURE = frozenset({"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"})


@dataclass(frozen=True)
class Leaf:
    """A task of a group, its file, and what the group changes in it."""

    task: str
    path: Path
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class TaskGroup:
    """The tasks below a group; a task may stand in several of its subgroups.

    metric, filter: what is averaged, where the group says it.
    by_size: whether tasks weigh as much as they have documents, or all the same.
    """

    leaves: tuple[Leaf, ...]
    metric: str | None = None
    filter: str | None = None
    by_size: bool = False


def find_group(task: str, path: Path | None, metric: str | None = None) -> TaskGroup | None:
    """The group or tag of that name; None where a task has it, or nothing.

    Args:
        task: lm-eval's name.
        path: the group's file, or a folder of files; None for lm-eval's registry. Searching that
            for a group takes some 15 seconds, once for each process.
        metric: the one to be averaged; by default the first that the group names.

    Raises:
        ConfigurationError: a member is missing, or written inside the group.
    """
    with silent_and_offline():
        if path is None:
            if registered_file(task) is not None:
                return None
            index = registry()
        elif path.exists():
            if path.is_file() and not _holds_group(path):
                return None
            index = _indexed(path if path.is_dir() else path.parent)
        else:
            return None  # whoever opens the task says so
        entry = index.get(task)
        if entry is None or entry.kind.name not in ("GROUP", "TAG"):
            return None
        leaves = tuple(_below(entry, {}, _Members(index, path is not None), ()))
    if not leaves:
        raise ConfigurationError(Problem(task, "the group has no tasks"))
    return _averaged(leaves, entry, metric)


def _averaged(leaves: tuple[Leaf, ...], entry: Any, metric: str | None) -> TaskGroup:
    from lm_eval.config.group import GroupConfig

    listed = (entry.cfg or {}).get("aggregate_metric_list") if entry.kind.name == "GROUP" else None
    try:
        config = GroupConfig(group=entry.name, aggregate_metric_list=listed)
    except (TypeError, ValueError) as error:
        where = f"{entry.yaml_path} aggregate_metric_list"
        raise ConfigurationError(Problem(where, str(error))) from None
    ways = config.aggregate_metric_list or []
    if not ways:
        return TaskGroup(leaves, metric)
    way: Any = next((way for way in ways if way.metric == metric), ways[0])
    chosen = next(iter(way.filter_list or []), None)
    return TaskGroup(leaves, metric or way.metric, chosen, bool(way.weight_by_size))


# --- what is in the files -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Members:
    """Finds entries by name: in the user's folder, then in lm-eval's registry."""

    index: Mapping[str, Any]
    is_folder: bool

    def find(self, name: str, group: str) -> Any:
        if name in self.index:
            return self.index[name]
        if self.is_folder and (found := registry().get(name)) is not None:
            return found
        what, hint = f"no task {name!r}", nearest(name, self.index)
        raise ConfigurationError(Problem(f"group {group}", what, hint))


def _below(
    entry: Any, overrides: Mapping[str, Any], members: _Members, above: tuple[str, ...]
) -> Iterator[Leaf]:
    """The tasks of an entry, with what the groups above change in them."""
    if entry.name in above:
        raise ConfigurationError(Problem(f"group {entry.name}", "holds itself"))
    above = (*above, entry.name)
    if entry.kind.name == "TAG":
        for name in sorted(entry.tags):
            yield from _below(members.find(name, entry.name), overrides, members, above)
    elif entry.kind.name == "GROUP":
        if problems := code_in(Path(entry.yaml_path)):
            raise ConfigurationError([Problem(p.where, p.what, NO_CODE) for p in problems])
        yield from _in_group(entry.name, entry.cfg, overrides, members, above)
    else:
        yield Leaf(entry.name, Path(entry.yaml_path).resolve(), overrides)


def _in_group(
    group: str,
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
    members: _Members,
    above: tuple[str, ...],
) -> Iterator[Leaf]:
    own = {key: value for key, value in config.items() if key not in _STRUCTURE} | dict(overrides)
    listed = config.get("task") or []
    for item in listed if isinstance(listed, list) else [listed]:
        if not isinstance(item, str) and not _is_inline(item):
            what = f"a member should be a task's name, or a mapping with a `task`, got {item!r}"
            raise ConfigurationError(Problem(f"group {group} task", what))
        if isinstance(item, str):
            yield from _below(members.find(item, group), own, members, above)
            continue
        changes = own | {key: value for key, value in item.items() if key not in _STRUCTURE}
        inside = item.get("group")
        if inside is not None and inside not in members.index:
            yield from _in_group(f"{group}::{inside}", item, own, members, above)
        else:
            name = item["task"] if inside is None else inside
            yield from _below(members.find(name, group), changes, members, above)


def _is_inline(item: Any) -> bool:
    """Whether this is a member that the group writes down itself."""
    if not isinstance(item, Mapping):
        return False
    name = item.get("group", item.get("task"))
    return isinstance(name, str)


def _holds_group(file: Path) -> bool:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return "group" in load_yaml(file, resolve_func=False)
    except Exception:  # whoever opens the task says what is wrong with its file
        return False


def _indexed(folder: Path) -> dict[str, Any]:
    from lm_eval.tasks._index import TaskIndex

    index: dict[str, Any] = TaskIndex.build([folder])
    return index
