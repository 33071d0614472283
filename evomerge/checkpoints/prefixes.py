"""Names that differ from the base's by what a wrapper adds, matched.

torch.compile, distributed training and a model with a head put words into names: `_orig_mod.`,
`module.`, `model.`, `transformer.`. No prefix is known by name but those that stand inside a name:
the one that is tried is what makes most of the names the base's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from evomerge.checkpoints.derived import Derived
from evomerge.checkpoints.open import Checkpoint

_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_DEEPEST = 6  # words of a prefix


@dataclass(frozen=True)
class Matched:
    """How a model's names become another's.

    Attributes:
        names: by the other's name, the model's own, where the two differ.
        taken, added: the prefixes that were taken off, and put on.
    """

    names: Mapping[str, str]
    taken: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def match_prefixes(
    checkpoints: Mapping[str, Checkpoint], base: str
) -> tuple[dict[str, Checkpoint], list[str]]:
    """The models by the base's names, and what was matched; no tensor is read.

    Names that fit nothing stay as they are: what is missing then is told by the preflight.
    """
    found, notes = dict(checkpoints), []
    for name, checkpoint in checkpoints.items():
        if name == base:
            continue
        matched = match_names(checkpoint.names, checkpoints[base].names)
        if not matched.names:
            continue
        own = set(matched.names.values())
        tensors = {n: n for n in checkpoint.names if n not in own} | dict(matched.names)
        change = {"names": dict(sorted(matched.names.items()))}
        found[name] = Derived(checkpoint, tensors, change=change)
        words = [f"without {prefix!r}" for prefix in matched.taken]
        words += [f"with {prefix!r} in front" for prefix in matched.added]
        notes.append(
            f"{name}: {len(own)} tensors are the base's by their names {' and '.join(words)}"
        )
    return found, notes


def match_names(mine: Iterable[str], theirs: Iterable[str]) -> Matched:
    """How names become others'; nothing is matched where two ways are as good."""
    other_names = list(theirs)
    own, other = _by_short_name(mine), _by_short_name(other_names)
    if own is None or other is None:
        return Matched({})
    names = {other[short]: own.pop(short) for short in [*own] if short in other}
    for target in names:
        other.pop(_short(target))
    taken = [f"{word}." for word in _INSIDE if any(_has(word, n) for n in names.values())]
    added: list[str] = []
    while step := _best_prefix(own, other):
        put_on, prefix = step
        pairs = dict(_pairs(own, other, prefix, put_on=put_on))
        for short, target in pairs.items():
            names[other.pop(target)] = own.pop(short)
        (added if put_on else taken).append(prefix)
    names |= _beyond(own, names, other_names, taken, added)
    changed = {target: source for target, source in names.items() if target != source}
    return Matched(changed, tuple(taken), tuple(added)) if changed else Matched({})


def _beyond(
    own: Mapping[str, str],
    names: Mapping[str, str],
    theirs: Iterable[str],
    taken: Iterable[str],
    added: Iterable[str],
) -> dict[str, str]:
    """Names in layers that only the deeper model has, by what the others' prefixes make of them."""
    known = {_NUMBER.sub("*", name) for name in theirs}
    found = {}
    for short, name in own.items():
        made = [short.removeprefix(prefix) for prefix in taken if short.startswith(prefix)]
        made += [prefix + short for prefix in added]
        for target in made:
            if _NUMBER.sub("*", target) in known and target not in names:
                found[target] = name
                break
    return found


def _best_prefix(own: Mapping[str, str], other: Mapping[str, str]) -> tuple[bool, str] | None:
    """Whether to put on or take off which prefix, if that matches most of what can be matched."""
    votes: Counter[tuple[bool, str]] = Counter()
    for put_on, longer, shorter in ((False, own, other), (True, other, own)):
        for name in longer:
            votes.update((put_on, prefix) for prefix, rest in _splits(name) if rest in shorter)
    best = votes.most_common(2)
    if not best or (len(best) == 2 and best[0][1] == best[1][1]):
        return None
    return best[0][0] if 2 * best[0][1] >= min(len(own), len(other)) else None


def _pairs(
    own: Mapping[str, str], other: Mapping[str, str], prefix: str, *, put_on: bool
) -> Iterator[tuple[str, str]]:
    for short in own:
        target = prefix + short if put_on else short.removeprefix(prefix)
        if target in other and (put_on or short.startswith(prefix)):
            yield short, target


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """The ways to cut a name after one of its first dots."""
    place = -1
    for _ in range(_DEEPEST):
        if (place := name.find(".", place + 1)) < 0:
            return
        yield name[: place + 1], name[place + 1 :]


def _by_short_name(names: Iterable[str]) -> dict[str, str] | None:
    """Names by what they are without wrappers inside; None if two would be one."""
    names = list(names)
    made = {_short(name): name for name in names}
    return made if len(made) == len(names) else None


def _short(name: str) -> str:
    if not any(word in name for word in _INSIDE):
        return name
    return ".".join(part for part in name.split(".") if part not in _INSIDE)


def _has(word: str, name: str) -> bool:
    return word in name.split(".")
