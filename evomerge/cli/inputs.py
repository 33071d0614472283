"""What verbs open: an experiment, with the user's word on code, or a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.cli.screen import open_console
from evomerge.errors import ConfigurationError, EvomergeError, Problem
from evomerge.files import catalogue_folder

if TYPE_CHECKING:
    from evomerge.run import Run


def open_run(folder: Path) -> Run:
    """The run in a folder."""
    from evomerge.run import Run

    return Run(folder)


def read_experiment_file(reference: str, allow_code: bool, run: Path | None = None) -> Any:
    """The experiment of a file, or of a name in the catalogue; what to know of it is printed.

    run: the folder of its run, which may have begun.
    """
    from evomerge.experiment.first_look import checked_experiment
    from evomerge.experiment.paths import find_in_catalogue

    path = Path(reference)
    if not path.is_file():
        path = find_in_catalogue(reference, "experiments", Path.cwd())
    notes: list[str] = []
    config = checked_experiment(path, notes=notes, run=run)
    for note in notes:
        open_console().print(f"note: {note}")
    return with_code(config, path, allow_code)


def run_name(reference: str) -> str:
    """The name of an experiment's run, from its file alone; what is wrong there is told later."""
    from evomerge.documents import read_yaml

    path = Path(reference)
    with suppress(EvomergeError):
        known = catalogue_folder("experiments") / f"{reference}.yaml"
        data = read_yaml(path if path.is_file() else known).data
        if isinstance(data, dict) and isinstance(name := data.get("name"), str):
            return name or path.stem
    return path.stem


def with_code(config: Any, where: Path, allow_code: bool) -> Any:
    """Only the user can allow code to run: a file that says so comes from anywhere."""
    if config.allow_code and not allow_code:
        what = "the experiment wants to run the code that its task files name"
        raise ConfigurationError(Problem(str(where), what, "if you trust it, add --allow-code"))
    return config.model_copy(update={"allow_code": allow_code})


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """`NAME=VALUE`, as often as it was said."""
    pairs = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ConfigurationError(Problem(f"{option} {text}", "expected two names with a ="))
        pairs[name] = value
    return pairs


def changed(
    config: Any,
    *,
    budget: dict[str, float | None],
    pool: tuple[str | None, int | None, str | None],
    seed: int | None = None,
    track: list[str] | None = None,
) -> Any:
    """The experiment with some keys changed and checked again; pool: kind, workers, address."""
    from evomerge.documents import Document, parse

    changes: dict[str, Any] = {}
    if limits := {key: value for key, value in budget.items() if value is not None}:
        changes["budget"] = limits
    if any(said is not None for said in pool):
        changes["pool"] = changed_pool(config.pool, *pool)
    if seed is not None:
        changes["seed"] = seed
    if track:
        changes["trackers"] = changed_trackers(config.trackers, track)
    return parse(type(config), Document({**dict(config), **changes}))


def changed_trackers(configs: Sequence[Any], kinds: Sequence[str]) -> list[Any]:
    """An experiment's trackers with more of them; `none` leaves all before it out."""
    found = [config.model_dump(exclude_none=True) for config in configs]
    for kind in kinds:
        if kind == "none":
            found = []
        elif kind not in [entry["kind"] for entry in found]:
            found.append({"kind": kind})
    return found


def changed_pool(
    config: Any, kind: str | None, workers: int | None, address: str | None
) -> dict[str, Any]:
    """The keys of a pool of which some were said anew; of another kind it has the defaults.

    Raises:
        ConfigurationError: an address, and nobody would be asked there.
    """
    said = {"workers": workers, "address": address}
    given = {key: value for key, value in said.items() if value is not None}
    if address is not None and (kind or config.kind) == "local":
        what = "the local pool has no address: nothing would be measured there"
        raise ConfigurationError(Problem(f"--address {address}", what, "add --pool ray"))
    if kind is not None and kind != config.kind:  # settings of another pool say nothing here
        return {"kind": kind, **given}
    return {**config.model_dump(exclude_unset=True), **given}


def check_rank(rank: int | None, adapter: bool) -> None:
    """Refuse the rank of an adapter where none is written."""
    if rank is not None and not adapter:
        raise ConfigurationError(Problem("--rank", "is the rank of an adapter", "add --adapter"))
