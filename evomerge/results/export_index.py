"""What lies beside several exported models: front.json, front.csv, and a README.md with a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.checkpoints.write import MARK
from evomerge.errors import ConfigurationError, Problem
from evomerge.files import write_bytes, write_text
from evomerge.results.account import ObjectiveFacts
from evomerge.results.card_scores import gain_sentence, holdout_cells, holdout_heads
from evomerge.results.exported_rows import Json, rows_csv
from evomerge.results.markdown import code, plain, table

INDEX, TABLE, CARD = "front.json", "front.csv", "README.md"
FORMAT = 1
OWN = "evomerge_front"  # the key that says whose front.json it is


def check_set_target(folder: Path) -> None:
    """Refuse a folder whose files would be lost.

    Raises:
        ConfigurationError: it is a model's, or has a README.md and no front.json of ours.
    """
    if (folder / MARK).exists():
        what = "holds a model; several are written into folders below it"
        raise ConfigurationError(Problem(str(folder), what, "choose another folder"))
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(Problem(str(folder), "is no folder", "choose another one"))
    if _is_ours(folder / INDEX):
        return
    for name in (INDEX, TABLE, CARD):
        if (folder / name).exists():
            what = f"has a {name} that evomerge did not write"
            raise ConfigurationError(Problem(str(folder), what, "choose another folder"))


def _is_ours(path: Path) -> bool:
    try:
        return OWN in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def write_index(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    objectives: Sequence[ObjectiveFacts],
    search: Mapping[str, Any],
    references: Mapping[str, Any],
    chosen: str,
    pictures: Mapping[str, tuple[str, bytes]],
    *,
    complete: bool,
) -> None:
    """Write front.json; once all models are there, also the table, the README and the pictures.

    rows: as `exported_row` makes them, with their folders. pictures: file name -> what it shows,
    and the file. chosen: by which rule.
    """
    said = {key: value for key, value in search.items() if key != "experiment"}
    data = {
        OWN: FORMAT,
        "complete": complete,
        "chosen": chosen,
        "search": said,
        "objectives": [
            {"name": o.name, "better": "more" if o.sign > 0 else "less", "cost": o.cost}
            for o in objectives
        ],
        "models": list(rows),
        "references": references,
    }
    if complete:
        for name, (_, content) in pictures.items():
            write_bytes(folder / name, content)
        write_text(folder / TABLE, rows_csv(rows, objectives))
        shown = {name: what for name, (what, _) in pictures.items()}
        text = index_card(rows, objectives, search, references, chosen, shown)
        write_text(folder / CARD, text)
    write_text(folder / INDEX, json.dumps(data, indent=2, allow_nan=False) + "\n")


def index_card(
    rows: Sequence[Mapping[str, Any]],
    objectives: Sequence[ObjectiveFacts],
    search: Mapping[str, Any],
    references: Mapping[str, Any],
    chosen: str,
    pictures: Mapping[str, str],
) -> str:
    """The README.md: which models there are, what each can do, and which was chosen."""
    lines = []
    for row in rows:
        marks = [word for word in ("best", "knee") if row[word]]
        name = f"[{plain(row['folder'])}]({row['folder']}/)"
        name += f" **{', '.join(marks)}**" if marks else ""
        lines.append([name, *holdout_cells(row, objectives), _verified(row)])
    for label, row in references.items():
        lines.append([plain(label), *holdout_cells(row, objectives), ""])
    heads = ["model", *holdout_heads(objectives), "loaded and asked again"]
    best = next((row for row in rows if row["best"]), None)
    gain = best.get("gain") if best is not None else None
    told = f"The best: {gain_sentence(gain, objectives)}\n\n" if gain else ""
    shown = "".join(f"![{what}]({name})\n\n" for name, what in pictures.items())
    return f"""# {plain(search["name"])}: {len(rows)} merged models

{plain(chosen).capitalize()} of the search {code(search["name"])}, made with evomerge. Each folder
loads with transformers' `from_pretrained`; its card says how it was made.

Mean ± standard error on the holdout, which no choice has looked at. The last lines are the models
that went in, and plain merges of them.

{table(heads, lines)}

{told}{shown}The same as data: [{INDEX}]({INDEX}), [{TABLE}]({TABLE}).
"""


def _verified(row: Mapping[str, Any]) -> str:
    told: Json = row.get("verification") or {}
    if not told.get("verified"):
        return "no"
    items = sum(task.get("items", 0) for task in told["tasks"].values())
    different = sum(task.get("different", 0) for task in told["tasks"].values())
    return f"{items - different:,} of {items:,} answers equal"
