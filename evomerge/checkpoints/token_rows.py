"""Rows that a recipe asks for, token by token, where the usual rule would give others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.checkpoints.output_tokenizer import OwnTokens
from evomerge.errors import ModelError, Problem, nearest
from evomerge.recipe import TokenRow


@dataclass(frozen=True)
class AskedRow:
    """A row of the output.

    Attributes:
        row: in the output's tables.
        model: whose tables it is taken from; None for zeros.
        own: the row there.
        force: whether it takes the place of a model's own, too.
    """

    row: int
    model: str | None
    own: int
    force: bool


def asked_rows(
    asked: Mapping[str, TokenRow],
    ids: Mapping[str, int],
    tokens: Mapping[str, OwnTokens],
    num_rows: Mapping[str, int],
) -> tuple[AskedRow, ...]:
    """Which rows are asked for.

    Args:
        asked: by token.
        ids: of the output's tokens, all of `asked` among them.
        tokens: of each model.
        num_rows: of each model's tables.

    Raises:
        ModelError: a model has no such token or row.
    """
    found, problems = [], []
    for token, wanted in asked.items():
        where = f"tokenizer.tokens.{token}"
        own = 0
        if wanted.model is not None:
            named = tokens[wanted.model].ids
            name = token if wanted.token is None else wanted.token
            if wanted.id is not None and wanted.id >= num_rows[wanted.model]:
                what = f"{wanted.model} has {num_rows[wanted.model]} rows, none of id {wanted.id}"
                problems.append(Problem(where, what))
            elif wanted.id is None and name not in named:
                what = f"{wanted.model} has no token {name!r}"
                problems.append(Problem(where, what, nearest(name, named)))
            else:
                own = named[name] if wanted.id is None else wanted.id
        found.append(AskedRow(ids[token], wanted.model, own, wanted.force))
    if problems:
        raise ModelError(problems)
    return tuple(sorted(found, key=lambda one: one.row))
