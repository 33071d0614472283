"""Models with different tokens, seen with the rows of one output vocabulary.

Rows are matched by token, never by their number. What a row of the output is in a model:

- its own row of that token, where it has one;
- else the base's, where the base has the token: so the model's task vector is zero there;
- else the mean of the rows of those models that have it (the row itself where just one has it). The
  base gets the same: models that do not know the token have a task vector of zero, and a token that
  a single model knows keeps that model's row, whatever the weights;
- a row that no model has is the mean of the base's tokens: nobody reads it as input, and as output
  it gets an average logit (zero would often be the largest one).

Rows without a token are padding, and are matched by their order among the padding rows of a model.
The output has the number of rows that the chosen model has. A union keeps the base's number while
the new tokens fit into its padding; else it has a row for each token, rounded up, if the base was
padded, to the largest power of two (at most 512) that divides the base's number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor

from evomerge.checkpoints.derived import Derived, Made
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.output_tokenizer import (
    Output,
    OwnTokens,
    choose_output,
    own_tokens,
)
from evomerge.checkpoints.token_rows import AskedRow, asked_rows
from evomerge.checkpoints.token_settings import following, resized, with_ids_of
from evomerge.checkpoints.token_tables import Tables, find_tables
from evomerge.errors import ConfigurationError, ModelError, Problem, nearest
from evomerge.protocols import Progress
from evomerge.recipe import UNION, TokenizerSpec

Key = str | int  # what a row stands for: a token, or the n-th padding row
_NONE = -1  # in place of a row that a model has not
_LARGEST_STEP = 512
_SHOWN = 3


def align_vocabularies(
    checkpoints: Mapping[str, Checkpoint],
    base: str,
    tokenizer: str | TokenizerSpec,
    progress: Progress | None = None,
) -> tuple[dict[str, Checkpoint], tuple[str, ...]]:
    """The models with the rows of one vocabulary, and what was changed for it.

    The base's view also has the output's small files and config; no tensor is read.

    Args:
        checkpoints: by name.
        base: one of the names.
        tokenizer: whose tokens the output has, `union` or a model's name; or more about them.
        progress: called with the number of the model under way, and how many there are.

    Raises:
        ConfigurationError: there is no such model.
        ModelError: with every model whose tokens, or tables of tokens, cannot be told.
    """
    spec = TokenizerSpec.of(tokenizer)
    if spec.source != UNION and spec.source not in checkpoints:
        hint = nearest(spec.source, [UNION, *checkpoints])
        raise ConfigurationError(Problem("tokenizer", f"no model {spec.source!r}", hint))
    problems: list[Problem] = []
    tables: dict[str, Tables] = {}
    for name, checkpoint in checkpoints.items():
        try:
            tables[name] = find_tables(checkpoint)
        except ModelError as error:
            problems += [Problem(f"model {name}", str(p)) for p in error.problems]
    if problems:
        raise ModelError(problems)
    sizes = {name: found.num_rows for name, found in tables.items()}
    tokens = own_tokens(checkpoints, base, sizes, progress)
    output = choose_output(checkpoints, tokens, base, spec)
    asked = asked_rows(spec.tokens, output.ids, tokens, sizes)
    aligned = _align(tables, tokens, output, base, asked, spec.pad_to_multiple_of)
    views: dict[str, Checkpoint] = {}
    for name, checkpoint in checkpoints.items():
        if aligned.keeps(name) and not (name == base and output.changes_base):
            views[name] = checkpoint
        else:
            views[name] = _view(checkpoint, aligned, name, tokens[name], output)
    return views, (*output.notes, *aligned.notes(tokens))


def keys_of_rows(tokens: Mapping[int, str], num_rows: int) -> list[Key]:
    """What each row of a table stands for."""
    padding = count()
    return [tokens[i] if i in tokens else next(padding) for i in range(num_rows)]


def rows_of_union(needed: int, base_rows: int, base_tokens: int) -> int:
    """How many rows a union has (see the module's text); `needed` are up to its last token."""
    if needed <= base_rows:
        return base_rows
    step = min(base_rows & -base_rows, _LARGEST_STEP) if base_rows > base_tokens else 1
    return -(-needed // step) * step


@dataclass(frozen=True)
class _Aligned:
    """Which row of a model is which row of the output.

    Attributes:
        base: the base's name.
        keys: what the output's rows stand for.
        rows: by model, its row for each of the output's, int64 of shape (rows,); _NONE if it has
            none.
        tables: by model, its own tables.
        asked: rows that are taken from elsewhere.
    """

    base: str
    keys: tuple[Key, ...]
    rows: Mapping[str, Tensor]
    tables: Mapping[str, Tables]
    asked: tuple[AskedRow, ...] = ()

    def keeps(self, name: str) -> bool:
        """Whether a model's rows are the output's as they are."""
        rows, own = self.rows[name], self.tables[name].num_rows
        forced = any(one.force for one in self.asked)
        return not forced and len(rows) == own and bool(torch.equal(rows, torch.arange(own)))

    def digest(self) -> str:
        """A hash of all that decides which row goes where; what the rows hold is hashed apart."""
        made = hashlib.sha256()
        for name in sorted(self.rows, key=lambda name: (name != self.base, name)):
            made.update(len(self.rows[name]).to_bytes(8, "little"))
            made.update(self.rows[name].numpy().astype("<i8").tobytes())
        if self.asked:
            # By its place, not its name: paths and names of models do not matter.
            places = {name: k for k, name in enumerate(sorted(self.rows))} | {None: -1}
            rules = [(one.row, places[one.model], one.own, one.force) for one in self.asked]
            made.update(repr(rules).encode())
        return made.hexdigest()

    def table(self, checkpoint: Checkpoint, name: str, tensor: str) -> Tensor:
        """A model's table with the output's rows, in its own dtype and layout."""
        axis = self.tables[name].axes[tensor]
        own = checkpoint.tensor(tensor).movedim(axis, 0)
        rows = self.rows[name]
        made = own.new_empty((len(rows), *own.shape[1:]))
        known = rows != _NONE
        made[known] = own[rows[known]]
        missing = torch.nonzero(~known).view(-1)
        if len(missing):
            made[missing] = self._filled(tensor, missing, made.dtype)
        for one in self.asked:
            if one.force or rows[one.row] == _NONE:
                made[one.row] = self._asked(tensor, one)
        return made.movedim(0, axis).contiguous()

    def _asked(self, tensor: str, one: AskedRow) -> Tensor | float:
        """A row that is asked for."""
        if one.model is None:
            return 0.0
        found = self.tables[one.model]
        if tensor not in found.axes:
            raise ModelError(Problem(tensor, f"{one.model} has no such table of tokens"))
        return found.checkpoint.tensor(tensor).movedim(found.axes[tensor], 0)[one.own]

    def _filled(self, tensor: str, missing: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of tokens that a model lacks, shape (missing, ...)."""
        of_base = self.rows[self.base][missing] != _NONE
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        total: Tensor | None = None
        owners = torch.zeros(len(missing))
        for name in sorted(self.tables, key=lambda name: (name != self.base, name)):
            found = self.tables[name]
            if tensor not in found.axes:
                continue  # preflight names the models that lack a tensor
            own = found.checkpoint.tensor(tensor).movedim(found.axes[tensor], 0)
            rows = self.rows[name][missing]
            gives = (rows != _NONE) & (of_base if name == self.base else ~of_base)
            if total is None:
                total = torch.zeros((len(missing), *own.shape[1:]), dtype=wide)
            total[gives] += own[rows[gives]].to(wide)
            owners += gives
        nobody = owners == 0
        if total is None:
            raise ModelError(Problem(tensor, "no model has such a table of tokens"))
        total /= owners.clamp(min=1).view(-1, *[1] * (total.ndim - 1))
        if nobody.any():
            total[nobody] = self._mean_of_base(tensor, wide)
        return total.to(dtype)

    def _mean_of_base(self, tensor: str, wide: torch.dtype) -> Tensor:
        found = self.tables[self.base]
        own = found.checkpoint.tensor(tensor).movedim(found.axes[tensor], 0)
        named = torch.tensor([isinstance(key, str) for key in self.keys])
        rows = self.rows[self.base][named]
        return own[rows[rows != _NONE]].to(wide).mean(0)

    def notes(self, tokens: Mapping[str, OwnTokens]) -> list[str]:
        """What a user should know of each model whose tokens are not the output's."""
        output = {key for key in self.keys if isinstance(key, str)}
        asked = {self.keys[one.row] for one in self.asked}
        notes = []
        for name, own in tokens.items():
            lacking = [
                key
                for key in self.keys
                if isinstance(key, str) and key not in own.ids and key not in asked
            ]
            left_out = [t for t in sorted(own.ids, key=own.ids.__getitem__) if t not in output]
            if lacking:
                notes.append(f"{name}: lacks {_listed(lacking)}, and gets the rows of others")
            if left_out:
                notes.append(f"{name}: {_listed(left_out)} not in the output, left out")
        return notes


def _align(
    tables: Mapping[str, Tables],
    tokens: Mapping[str, OwnTokens],
    output: Output,
    base: str,
    asked: tuple[AskedRow, ...],
    multiple: int | None,
) -> _Aligned:
    like = base if output.chosen is None else output.chosen
    givers = tokens.values() if output.chosen is None else (tokens[like],)
    owned = {token for own in givers for token in own.ids}
    rows_used = [i for token, i in output.ids.items() if token in owned]
    needed = 1 + max([*rows_used, *(one.row for one in asked)], default=-1)
    if multiple is None:
        last = 1 + max(tokens[like].ids.values(), default=-1)
        num_rows = rows_of_union(needed, tables[like].num_rows, last)
    else:
        num_rows = -(-needed // multiple) * multiple
    keys = keys_of_rows({i: token for token, i in output.ids.items()}, num_rows)
    rows = {}
    for name, found in tables.items():
        own = keys_of_rows({i: token for token, i in tokens[name].ids.items()}, found.num_rows)
        row_of = {key: row for row, key in enumerate(own)}
        rows[name] = torch.tensor([row_of.get(key, _NONE) for key in keys], dtype=torch.int64)
    return _Aligned(base, tuple(keys), rows, tables, asked)


def _view(
    checkpoint: Checkpoint, aligned: _Aligned, name: str, tokens: OwnTokens, output: Output
) -> Derived:
    tensors: dict[str, str | Made] = {key: key for key in checkpoint.names}
    for tensor, axis in {} if aligned.keeps(name) else aligned.tables[name].axes.items():
        shape = list(checkpoint.shape(tensor))
        shape[axis] = len(aligned.keys)
        make = partial(aligned.table, checkpoint, name, tensor)
        tensors[tensor] = Made(tuple(shape), checkpoint.dtype(tensor), make)
    config = resized(checkpoint.config, len(aligned.keys))
    is_base = name == aligned.base
    if output.chosen is not None or not is_base:  # in a union the base's ids stay
        by_id = {i: token for token, i in tokens.all_ids.items()}
        config = following(config, by_id, output.ids)
    return Derived(
        checkpoint,
        tensors,
        config=with_ids_of(config, output.special) if is_base else config,
        small_files=output.files,
        change={"vocabulary": aligned.digest()},
    )


def _listed(tokens: list[str]) -> str:
    shown = ", ".join(map(repr, tokens[:_SHOWN])) + (", ..." if len(tokens) > _SHOWN else "")
    return f"{len(tokens)} token{'s' * (len(tokens) != 1)} ({shown})"
