"""Prompts and texts: from a file, or those of another task without its answers."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.recipe import canonical_json
from evomerge.records import ItemId

FORMATS = (".txt", ".jsonl", ".csv")


@runtime_checkable
class Prompting(Protocol):
    """What a task has whose prompts another one may use."""

    @property
    def items(self) -> Sequence[ItemId]:
        """As a task's."""
        ...

    @property
    def fingerprint(self) -> str:
        """As a task's."""
        ...

    def prompt(self, item: ItemId, tokenizer: Any) -> str:
        """The text that the model is given; a chat template is the tokenizer's."""
        ...


class FilePrompts:
    """The lines of a text file, or a field of the records of a table.

    Raises:
        ConfigurationError: the file cannot be read, or lacks the field.
    """

    def __init__(self, where: str, path: str | Path, field: str, limit: int | None = None) -> None:
        file = Path(path)
        if file.suffix == ".txt":
            lines = read_text(where, file).split("\n")
            self._texts = [line for line in lines if line.strip()]
        else:
            self._texts = [
                text_of(where, file, number, record, field)
                for number, record in enumerate(read_records(where, file))
            ]
        self._texts = self._texts[:limit]
        if not self._texts:
            raise ConfigurationError(Problem(where, f"{file} holds no texts"))
        self.items: Sequence[ItemId] = range(len(self._texts))
        content = canonical_json(self._texts)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def prompt(self, item: ItemId, tokenizer: Any = None) -> str:  # noqa: ARG002 - plain text
        """The text of an item."""
        return self._texts[item]


def read_text(where: str, file: Path, newline: str | None = None) -> str:
    """The content of a file, without a byte order mark.

    newline: as `open` takes it; by default all ends of lines become the same.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        with file.open(encoding="utf-8-sig", newline=newline) as opened:
            return opened.read()
    except FileNotFoundError:
        siblings = [p.name for p in file.parent.glob("*")] if file.parent.is_dir() else []
        raise ConfigurationError(
            Problem(f"{where} path", f"no such file: {file}", nearest(file.name, siblings))
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(Problem(f"{where} path", f"{file}: {error}")) from None


def read_records(where: str, file: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl or .csv file.

    Raises:
        ConfigurationError: it is neither, or cannot be read as such.
    """
    if file.suffix not in FORMATS[1:]:
        what = f"cannot be read: {file.name}"
        raise ConfigurationError(Problem(f"{where} path", what, f"valid: {', '.join(FORMATS)}"))
    if file.suffix == ".csv":
        # A quoted cell may hold ends of lines, which are its own.
        rows = csv.DictReader(io.StringIO(read_text(where, file, newline=""), newline=""))
        try:
            return [dict(row) for row in rows]
        except csv.Error as error:
            raise ConfigurationError(
                Problem(f"{file}, after line {rows.line_num}", str(error))
            ) from None
    return records_of(file, read_text(where, file))


def records_of(file: Path, text: str) -> list[dict[str, Any]]:
    """The records on the lines of a .jsonl file with this text.

    Raises:
        ConfigurationError: naming the first line that holds none.
    """
    records = []
    # str.splitlines would cut at U+2028 and others, which may stand in a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            # A line of its own is always line 1 to `json`.
            what = str(error)
            if isinstance(error, json.JSONDecodeError):
                what = f"{error.msg}, column {error.colno}"
            raise ConfigurationError(
                Problem(f"{file}:{number}", f"not valid JSON: {what}")
            ) from None
        if not isinstance(record, dict):
            what = f"expected a record, got {type(record).__name__}"
            raise ConfigurationError(Problem(f"{file}:{number}", what))
        records.append(record)
    return records


def text_of(where: str, file: Path, number: int, record: Mapping[str, Any], field: str) -> str:
    """A record's field, which must be a text.

    Raises:
        ConfigurationError: there is none.
    """
    value = record.get(field)
    if isinstance(value, str) and value:
        return value
    what = f"no text {field!r}" if value in (None, "") else f"{field} is no text: {value!r}"
    raise ConfigurationError(
        Problem(f"{where}: {file}, record {number + 1}", what, nearest(field, map(str, record)))
    )


def prompts_of(where: str, path: str | None, of: Any, field: str, limit: int | None) -> Prompting:
    """The prompts that a task is about: a file's, or another task's.

    Raises:
        ConfigurationError: neither or both are given, or the other task has no prompts.
    """
    if (path is None) == (of is None):
        what = "needs either `path`, a file of prompts, or `of`, a task whose prompts to use"
        raise ConfigurationError(Problem(where, what))
    if path is not None:
        return FilePrompts(where, path, field, limit)
    if not isinstance(of, Prompting):
        what = f"a task of kind {type(of).__name__} has no prompts"
        raise ConfigurationError(Problem(f"{where} of", what, "name one of kind lm_eval"))
    return of if limit is None else _First(of, limit)


class _First:
    """The first prompts of another task."""

    def __init__(self, prompts: Prompting, limit: int) -> None:
        self._prompts = prompts
        self.items: Sequence[ItemId] = prompts.items[:limit]
        self.fingerprint = f"{prompts.fingerprint}[:{limit}]"
        self.settings = getattr(prompts, "settings", None)

    def prompt(self, item: ItemId, tokenizer: Any) -> str:
        return self._prompts.prompt(item, tokenizer)
