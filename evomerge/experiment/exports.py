"""Taking candidates of a run home: written, loaded again, asked again, and uploaded if asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from evomerge.checkpoints.adapter_config import ADAPTER_CONFIG
from evomerge.checkpoints.input_scales import INPUT_SCALES
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.checkpoints.write import MARK, check_target
from evomerge.errors import ConfigurationError, EvomergeError
from evomerge.experiment.chosen import Choice, Known, chosen, known_of
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.rescore import SAMPLE, Rescorer
from evomerge.experiment.run import read_run_config, run_calibration
from evomerge.experiment.wire import InMemory, open_models
from evomerge.files import write_bytes, write_text
from evomerge.ledger import LEDGER, Ledger
from evomerge.protocols import Progress
from evomerge.recipe import Recipe
from evomerge.records import CandidateId
from evomerge.results.account import Account
from evomerge.results.adapter_export import AdapterReport, export_adapter
from evomerge.results.card import recipe_yaml
from evomerge.results.card_scores import Found
from evomerge.results.export import Beside, export_model
from evomerge.results.export_index import check_set_target, write_index
from evomerge.results.exported_rows import exported_row
from evomerge.results.hub import Push, check_push, push_folder
from evomerge.results.origins import CARD

Json = dict[str, Any]

FACTS = "evomerge_export.json"  # in each folder: the row of the candidate, and what was verified
PICTURES = {
    "front.png": "the front on the holdout",
    "convergence.png": "how the search converged",
}
CHOSEN = {"front": "the front", "top": "the first in the order of the last choice"}


@dataclass(frozen=True)
class ExportOptions:
    """How candidates are exported.

    form: a whole `model`, or an `adapter` of the base. rank: the adapter's largest; None is exact
    where it can be. scales: `attribute`, see `export_model`. verify: items of each task that a
    written model is asked again; 0 for none, None for all of the holdout. allow_code: whether
    tasks may run code then. push: where to upload.
    """

    form: Literal["model", "adapter"] = "model"
    rank: int | None = None
    scales: str | None = None
    verify: int | None = SAMPLE
    allow_code: bool = False
    push: Push | None = None


@dataclass(frozen=True)
class Exported:
    """A model that is there.

    kept: whether it was there already. verification: what was asked again, or why nothing was.
    adapter: what an adapter lost. url: where it was uploaded.
    """

    candidate: CandidateId
    folder: Path
    kept: bool
    verification: Json
    adapter: AdapterReport | None = None
    url: str | None = None
    row: Json = field(default_factory=dict)


def export_chosen(
    run: Path,
    out: Path,
    choice: Choice,
    options: ExportOptions | None = None,
    *,
    in_memory: InMemory | None = None,
    progress: Progress | None = None,
    on_done: Callable[[Exported], None] = lambda _: None,
) -> list[Exported]:
    """Export candidates of a run: one into `out` itself, several into folders below it.

    Interrupted, it goes on where it was: folders appear whole, and those that are there already
    with the same recipe are kept. Beside several stand front.json, front.csv and README.md.

    Raises:
        ConfigurationError: there is no such candidate, or a folder holds something else.
        ModelError: a written model answers otherwise than its merge did.
    """
    options = options or ExportOptions()
    if options.push is not None:
        check_push(options.push)
    with closing(Export(run, options, in_memory, progress)) as work:
        ids = chosen(choice, run, work.config, work.ledger)
        if not choice.is_set:
            done = [work.one(ids[0], out, work.known(ids)[ids[0]])]
            on_done(done[0])
            return done
        return work.all(ids, out, choice, on_done)


class Export:
    """What all models of one export share."""

    def __init__(
        self,
        run: Path,
        options: ExportOptions,
        in_memory: InMemory | None,
        progress: Progress | None,
    ) -> None:
        self.config: ExperimentConfig = read_run_config(run)
        self.ledger = Ledger(run / LEDGER, read_only=True)
        self._run = run
        self._options = options
        self._in_memory = in_memory
        self._progress = progress
        with Account(run) as account:
            self._objectives = account.objectives
            self._final = account.final
            self._search = search_facts(account)

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    def known(self, ids: list[CandidateId]) -> dict[CandidateId, Known]:
        """What the run knows of candidates."""
        return known_of(ids, self._run, self.config, self.ledger)

    @cached_property
    def _checkpoints(self) -> dict[str, Checkpoint]:
        return open_models(self.config, self._in_memory, self._progress).checkpoints

    @cached_property
    def _rescorer(self) -> Rescorer:
        options = self._options
        return Rescorer(
            self.config,
            self.ledger,
            self._checkpoints,
            options.verify,
            allow_code=options.allow_code,
        )

    @cached_property
    def _pictures(self) -> dict[str, bytes]:
        paths = {name: self._run / name for name in PICTURES}
        return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}

    @cached_property
    def _references(self) -> dict[str, Json]:
        rows = self._final["references"] if self._final else {}
        return {label: exported_row(row, "", self._objectives, None) for label, row in rows.items()}

    def all(
        self,
        ids: list[CandidateId],
        out: Path,
        choice: Choice,
        on_done: Callable[[Exported], None],
    ) -> list[Exported]:
        """Several candidates, a folder each, and what stands beside them."""
        check_set_target(out)
        known = self.known(ids)
        names = {id_: folder_name(known[id_].row) for id_ in ids}
        for name in names.values():  # before the first of them is merged
            check_target(out / name, ())
        pictures = {name: (PICTURES[name], data) for name, data in self._pictures.items()}
        said = CHOSEN.get(choice.kind, "some candidates")

        def index(rows: list[Json], *, complete: bool) -> None:
            about = (self._objectives, self._search, self._references, said, pictures)
            write_index(out, rows, *about, complete=complete)

        planned = [{**self._row(id_, known[id_]), "folder": names[id_]} for id_ in ids]
        index(planned, complete=False)
        done = []
        for number, id_ in enumerate(ids):
            if self._progress is not None:
                self._progress("models", number, len(ids))
            done.append(self.one(id_, out / names[id_], known[id_], in_set=True))
            on_done(done[-1])
        if self._progress is not None:
            self._progress("models", len(ids), len(ids))
        index([{**d.row, "folder": d.folder.name} for d in done], complete=True)
        return done

    def one(
        self, id_: CandidateId, target: Path, known: Known, *, in_set: bool = False
    ) -> Exported:
        """One candidate in a folder: written if it is not there, verified, uploaded if asked."""
        candidate = self.ledger.candidates[id_]
        recipe = candidate.recipe
        if recipe is None:  # `chosen` names none of those
            raise ConfigurationError("the candidate violates its space and has no recipe")
        row = {**self._row(id_, known), "form": self._form}
        found = Found(
            row,
            self._objectives,
            self._references,
            known.gain,
            self._search,
            {name: PICTURES[name] for name in self._pictures},
        )
        for_hub = self._options.push is not None
        beside = Beside(found, self.config.models(), self._pictures, for_hub)
        before = self._kept(recipe, target) if in_set else None
        adapter: AdapterReport | None = None
        if before is None:
            adapter = self._write(recipe, target, beside)
        else:
            self._bring_up_to_date(recipe, target, beside)
        verification = (before or {}).get("verification")
        if not self._is_enough(verification):
            verification = self._rescorer.check(candidate, target, self._progress)
        row["verification"] = verification
        facts = {"evomerge_export": 1, **row, "folder": None, "sha256": weights_sha256(target)}
        write_text(target / FACTS, json.dumps(facts, indent=2, allow_nan=False) + "\n")
        url = None
        if (push := self._options.push) is not None:
            repo = push.repo_of(target, is_set=in_set)
            url = push_folder(target, repo, public=push.public)
        return Exported(id_, target, before is not None, verification or {}, adapter, url, row)

    @property
    def _form(self) -> Json:
        return {"kind": self._options.form, "rank": self._options.rank}

    def _row(self, id_: CandidateId, known: Known) -> Json:
        fingerprint = self.ledger.candidates.fingerprint(id_)
        row = exported_row(known.row, fingerprint, self._objectives, self._final)
        return {**row, "gain": known.gain}

    def _write(self, recipe: Recipe, target: Path, beside: Beside) -> AdapterReport | None:
        options, texts = self._options, run_calibration(self._run)
        if options.form == "adapter":
            return export_adapter(
                recipe,
                self._checkpoints,
                target,
                rank=options.rank,
                progress=self._progress,
                calibration=texts,
                beside=beside,
            )
        export_model(
            recipe,
            self._checkpoints,
            target,
            self._progress,
            options.scales,
            texts,
            beside=beside,
        )
        return None

    def _kept(self, recipe: Recipe, target: Path) -> Json | None:
        """What an earlier export noted of a folder that need not be written again; {} if nothing.

        A folder appears whole. What was changed in it since is told by the hash of its tensors.
        """
        try:
            if (target / MARK).read_text("utf-8") != recipe_yaml(recipe):
                return None
            if not (target / FACTS).exists():
                is_adapter = (target / ADAPTER_CONFIG).exists()
                return None if is_adapter or self._options.form == "adapter" else {}
            facts: Json = json.loads((target / FACTS).read_text("utf-8"))
            same = facts["form"] == self._form and facts["sha256"] == weights_sha256(target)
        except (OSError, ValueError, KeyError, TypeError, EvomergeError):
            return None
        return facts if same else None

    def _bring_up_to_date(self, recipe: Recipe, target: Path, beside: Beside) -> None:
        """The card and pictures of a model that is kept: its run may have gone on."""
        if self._options.form == "adapter":
            return  # what its card says of losses is known to whoever wrote it
        scaled = INPUT_SCALES in open_checkpoint(str(target), name=target.name).config
        text = beside.card(recipe, self._checkpoints, target.name, scaled=scaled)
        if not (target / CARD).exists() or (target / CARD).read_bytes() != text.encode():
            write_text(target / CARD, text)
        for name, content in beside.files.items():
            if not (target / name).exists() or (target / name).read_bytes() != content:
                write_bytes(target / name, content)

    def _is_enough(self, before: Json | None) -> bool:
        """Whether an earlier verification was of as many items as are wanted now."""
        if not before or not before.get("verified"):
            return False
        wanted = self._options.verify
        if wanted == 0:
            return True  # what was found out stays known
        return all(
            "items" in told
            and told["items"] >= (told["of"] if wanted is None else min(told["of"], wanted))
            for told in before["tasks"].values()
        )


def folder_name(row: Mapping[str, Any]) -> str:
    """What the folder of a candidate is called among others."""
    label = re.sub(r"[^A-Za-z0-9.-]+", "_", str(row["label"])).strip("._-")[:60]
    number = f"candidate_{row['candidate']}".replace("-", "minus_")
    return f"{label}_{number}" if label and row["candidate"] < 0 else number


def weights_sha256(folder: Path) -> str | None:
    """The hash of a folder's tensors; None of one that evomerge cannot open as a model."""
    path = folder / "adapter_model.safetensors"
    if path.exists():
        return open_checkpoint(str(path), name=folder.name).sha256()
    is_folder = (folder / "config.json").exists()
    path = folder if is_folder else folder / "model.safetensors"
    return open_checkpoint(str(path), name=folder.name).sha256()


def search_facts(account: Account) -> Json:
    """What a card tells of a search, so that it can be made again."""
    experiment = account.experiment
    sessions = account.sessions
    facts: Json = {
        "name": account.name,
        "seed": experiment.get("seed", 0),
        "searcher": str((experiment.get("searcher") or {}).get("kind", "")),
        "candidates": len(account.evaluations),
        "item evaluations": account.ledger.item_evaluations,
        "digest": account.ledger.digest(),
    }
    if sessions:
        facts |= {key: sessions[-1].get(key, "") for key in ("processor", "instructions")}
    versions = sessions[-1].get("versions", {}) if sessions else {}
    facts["versions"] = {k: v for k, v in versions.items() if v != "absent"}
    return {**facts, "experiment": account.experiment_text}
