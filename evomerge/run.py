"""A run from Python: what it found, and to take that home."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ConfigurationError, EvomergeError
from evomerge.experiment.chosen import Choice
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.exports import Exported, ExportOptions, export_chosen
from evomerge.experiment.rescore import SAMPLE
from evomerge.experiment.run import read_run_config, run_calibration
from evomerge.experiment.wire import InMemory, open_models
from evomerge.ledger import LEDGER, Ledger
from evomerge.protocols import Progress
from evomerge.recipe import Recipe
from evomerge.records import Candidate, CandidateId
from evomerge.results.account import Account
from evomerge.results.adapter_export import AdapterReport
from evomerge.results.compare import compare
from evomerge.results.comparison import Comparison
from evomerge.results.export import merged_tensors
from evomerge.results.hub import Push
from evomerge.results.run_view import Rows, as_html, in_a_line
from evomerge.results.status import best_candidate
from evomerge.results.watch import status

if TYPE_CHECKING:
    from torch import Tensor


class Run:
    """A run folder, read from its ledger.

    Attributes:
        folder: the run folder.
        config: its experiment, resolved.
        ledger: everything that happened.
    """

    def __init__(self, folder: str | Path, *, in_memory: InMemory | None = None) -> None:
        """Open a run.

        in_memory: the models, if they were handed over as state dicts.

        Raises:
            ConfigurationError: there is no run in the folder.
            LedgerDamaged: its ledger cannot be read.
        """
        self.folder = Path(folder)
        self.config: ExperimentConfig = read_run_config(self.folder)
        self.ledger = Ledger(self.folder / LEDGER, read_only=True)
        self._in_memory = in_memory

    def __repr__(self) -> str:
        try:
            return f"Run({in_a_line(self.folder)})"
        except (EvomergeError, OSError) as error:  # what shows a run must not stop a session
            return f"Run({self.folder}: {error})"

    def _repr_html_(self) -> str:
        try:
            return as_html(self.folder)
        except (EvomergeError, OSError):
            return f"<p>{escape(repr(self))}</p>"

    def status(self) -> dict[str, Any]:
        """State, counts, incumbent and final table, as `evomerge status --json` prints them now."""
        return status(self.folder)

    def best(self) -> Candidate:
        """The chosen candidate; before a run is finished, the best by its search score.

        Raises:
            ConfigurationError: nothing was measured yet.
        """
        return best_candidate(self.folder, self.ledger)

    def front(self) -> list[dict[str, Any]]:
        """The front's rows of the final table; with one objective, the best alone.

        Raises:
            ConfigurationError: the run is not finished.
        """
        final = self.ledger.final()
        if final is None:
            raise ConfigurationError(
                f"{self.folder}: not finished; `evomerge resume {self.folder}` goes on"
            )
        rows = Rows(final["front"] or [final["best"]])
        with Account(self.folder) as account:
            rows.objectives = account.objectives
        return rows

    def compare(self, *others: Run | str | Path, by: str | None = None) -> Comparison:
        """This run beside others, as `evomerge compare` prints it.

        by: group runs by `searcher`, `estimator`, `space` or `name`; by default runs that differ
            in their seeds alone are a group.

        Raises:
            ConfigurationError: the runs were scored by other tasks, or there is none in a folder.
        """
        folders = [other.folder if isinstance(other, Run) else Path(other) for other in others]
        return Comparison(compare([self.folder, *folders], by))

    def candidate(self, id_: CandidateId) -> Candidate:
        """A candidate by its id.

        Raises:
            ConfigurationError: there is none, or it has no recipe.
        """
        found = self.ledger.candidates.get(id_)
        if found is None or found.recipe is None:
            last = max(self.ledger.candidates, default=-1)
            raise ConfigurationError(f"{self.folder}: no candidate {id_} to merge (last: {last})")
        return found

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report of the run, one HTML file; by default `report.html` in its folder.

        Returns the file. It shows the run as it is now, finished or not.

        Raises:
            DiskFull: it does not fit.
        """
        from evomerge.results.report import write_report

        return write_report(self.folder, None if path is None else Path(path))

    def merge(self, candidate: Candidate | CandidateId | None = None) -> dict[str, Tensor]:
        """The merged state dict of a candidate; the best if none is given.

        Raises:
            ConfigurationError: the candidate scales what goes into layers: export it.
        """
        texts = run_calibration(self.folder)
        return merged_tensors(self._recipe(candidate), self._checkpoints(), texts)

    def export(
        self,
        candidate: Candidate | CandidateId | None = None,
        folder: str | Path = "models/best",
        *,
        scales: str | None = None,
        verify: int | None = SAMPLE,
        allow_code: bool = False,
        push: str | None = None,
        public: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Write a candidate as a model folder; the best if none is given.

        A transformers model is loaded again, asked a sample of the run's items, and compared with
        the recorded responses; evomerge_export.json in the folder says what was compared.

        scales: where the candidate scales what goes into layers, `attribute` writes that into
            config.json, which stock loaders ignore (see `evomerge.apply_scales`).
        verify: items of each task that are asked again; 0 for none, None for the whole holdout.
        allow_code: whether tasks may run the code that they name, to verify.
        push: `ORG/NAME` on a hub, to upload to; a repository is private unless `public` is said.

        Raises:
            ConfigurationError: the candidate scales what goes into layers, and `scales` is None.
            ModelError: the written model answers otherwise than its merge did.
        """
        options = ExportOptions(
            scales=scales,
            verify=verify,
            allow_code=allow_code,
            push=None if push is None else Push(push, public),
        )
        return self._export(candidate, folder, options, progress).folder.resolve()

    def export_adapter(
        self,
        candidate: Candidate | CandidateId | None = None,
        folder: str | Path = "models/best",
        *,
        rank: int | None = None,
        progress: Progress | None = None,
    ) -> AdapterReport:
        """Write a candidate as a LoRA adapter of the base; the best if none is given.

        rank: the largest; None is exact where the merge is linear in adapters.

        Raises:
            ConfigurationError: the candidate has no form as an adapter.
        """
        options = ExportOptions(form="adapter", rank=rank)
        report = self._export(candidate, folder, options, progress).adapter
        if report is None:  # only models of a set are kept as they are
            raise ConfigurationError(f"{folder}: the adapter was not written")
        return report

    def export_front(
        self,
        folder: str | Path = "models",
        *,
        top: int | None = None,
        scales: str | None = None,
        verify: int | None = SAMPLE,
        allow_code: bool = False,
        push: str | None = None,
        public: bool = False,
        progress: Progress | None = None,
    ) -> list[Exported]:
        """Write the whole front, a folder each, with front.json, front.csv and a README.md.

        Interrupted, the same call goes on. The arguments are those of `export`.

        top: the first so many in the order of the last choice, instead of the front.

        Raises:
            ConfigurationError: the run is not finished, or there are fewer.
            ModelError: a written model answers otherwise than its merge did.
        """
        choice = Choice("front") if top is None else Choice("top", count=top)
        options = ExportOptions(
            scales=scales,
            verify=verify,
            allow_code=allow_code,
            push=None if push is None else Push(push, public),
        )
        return export_chosen(
            self.folder, Path(folder), choice, options, in_memory=self._in_memory, progress=progress
        )

    def _export(
        self,
        candidate: Candidate | CandidateId | None,
        folder: str | Path,
        options: ExportOptions,
        progress: Progress | None,
    ) -> Exported:
        """One candidate, into a folder itself."""
        choice = Choice("candidates", (self._chosen(candidate).id,))
        (done,) = export_chosen(
            self.folder, Path(folder), choice, options, in_memory=self._in_memory, progress=progress
        )
        return done

    def _chosen(self, candidate: Candidate | CandidateId | None) -> Candidate:
        if candidate is None:
            return self.best()
        return self.candidate(candidate) if isinstance(candidate, int) else candidate

    def _recipe(self, candidate: Candidate | CandidateId | None) -> Recipe:
        recipe = self._chosen(candidate).recipe
        if recipe is None:
            raise ConfigurationError("the candidate violates its space and has no recipe")
        return recipe

    def _checkpoints(self) -> dict[str, Checkpoint]:
        return open_models(self.config, self._in_memory).checkpoints
