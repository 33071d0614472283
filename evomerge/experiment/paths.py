"""What files refer to: paths relative to them, names of the catalogue, models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.files import catalogue_folder

RUN = "run:"  # before the folder of a run whose candidate is the model


def find_in_catalogue(reference: str, kind: str, folder: Path) -> Path:
    """A path relative to a file, or a name in the catalogue that comes with evomerge."""
    if reference.endswith((".yaml", ".yml")):
        near = (folder / reference).resolve()
        if near.exists() or "/" in reference:
            return near
    catalogue = catalogue_folder(kind)
    path = catalogue / f"{reference.removesuffix('.yaml').removesuffix('.yml')}.yaml"
    if not path.exists():
        names = [p.stem for p in catalogue.glob("*.yaml")]
        what = f"no such file, and no such name in {kind}"
        raise ConfigurationError(Problem(reference, what, nearest(reference, names)))
    return path


def absolute(path: Any, folder: Path) -> Any:
    """A path relative to a file's folder, made absolute; what is no text is refused elsewhere."""
    return str((folder / Path(path).expanduser()).resolve()) if isinstance(path, str) else path


def absolute_tracker(entry: Any, folder: Path) -> Any:
    """Folders of trackers, and stores that are files, are relative to the experiment's file."""
    if not isinstance(entry, Mapping):
        return entry
    found = dict(entry)
    for key in ("folder", "uri"):
        if key in found and "://" not in str(found[key]) and found[key] != "databricks":
            found[key] = absolute(found[key], folder)
    return found


def absolute_texts(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Files of calibration texts are relative to the experiment's."""
    found = dict(value)
    if "texts" in found:
        found["texts"] = absolute(found["texts"], folder)
    if isinstance(found.get("of"), dict):
        found["of"] = {
            model: absolute_texts(own, folder) if isinstance(own, dict) else own
            for model, own in found["of"].items()
        }
    return found


def absolute_models(value: Any, folder: Path) -> Any:
    """Paths of models are relative to the experiment's file; zoo references stay as they are."""
    if isinstance(value, Mapping):
        return {name: _absolute_entry(entry, folder) for name, entry in value.items()}
    return absolute_model(value, folder) if isinstance(value, str) else value


def _absolute_entry(value: Any, folder: Path) -> Any:
    """The same for an expert's path, or its {path: ..., match: ...}."""
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        return {**value, "path": absolute_model(value["path"], folder)}
    return absolute_model(value, folder) if isinstance(value, str) else value


def absolute_model(reference: str, folder: Path) -> str:
    """A reference to a model, with a path that is relative to a folder made absolute.

    `run:NAME` alone is where `evomerge run NAME` writes: runs/NAME below the current directory.
    """
    if reference.startswith(("zoo:", "memory:")):
        return reference
    kind = RUN if reference.startswith(RUN) else ""
    text = reference.removeprefix(kind)
    if kind and not text:
        return reference  # says nothing; whoever reads it says so
    near = (folder / Path(text).expanduser()).resolve()
    if kind and "/" not in text and not Path(str(near).partition("#")[0]).exists():
        return f"{kind}{Path('runs', text).resolve()}"
    return f"{kind}{near}"
