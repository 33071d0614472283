"""What is told, as a study of optuna's: for the searchers built on its samplers.

Imported where such a searcher is made: optuna is heavy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from evomerge.records import CandidateId, Evaluation, Genome
from evomerge.searchers.parameters import Parameters

MakeSampler = Callable[[int], BaseSampler]  # from a seed


class Told(FrozenTrial):
    """A trial that nobody changes, so that a storage need not copy what is in it."""

    def __deepcopy__(self, memo: dict[int, object]) -> Told:
        return Told(
            number=self.number,
            trial_id=self._trial_id,
            state=self.state,
            value=None,
            values=self.values,
            datetime_start=self.datetime_start,
            datetime_complete=self.datetime_complete,
            params=self.params,
            distributions=self.distributions,
            user_attrs={},
            system_attrs=self.system_attrs,
            intermediate_values={},
        )


class StudyOfSpace:
    """Makes studies of what was told of a space, and asks samplers of optuna for more.

    A sampler is made for every candidate, from a seed of its own, and sees what is told as
    completed trials and what is outstanding as running ones (which optuna's samplers avoid: by a
    constant liar, or jointly). So nothing but what is told is remembered.

    Args:
        num_objectives: all maximised.
        only_active: whether trials lack the genes that do not matter to them; otherwise they have
            all, such genes in the middle.
    """

    def __init__(self, parameters: Parameters, num_objectives: int, only_active: bool) -> None:
        self._parameters = parameters
        self._directions = [StudyDirection.MAXIMIZE] * num_objectives
        self._only_active = only_active
        self._distributions = [
            _distribution(size, unordered)
            for size, unordered in zip(parameters.sizes, parameters.unordered, strict=True)
        ]
        self._read: dict[CandidateId, tuple[Genome, dict[str, float | int]]] = {}

    def learn(
        self,
        completed: Sequence[tuple[Evaluation, Sequence[float], float | None]],
        outstanding: Sequence[Genome] = (),
    ) -> None:
        """Begin a new study of what is told.

        completed: each with values, and with a violation: above 0 for those that rank after all
            others, None where the sampler need not know of constraints.
        outstanding: more that count as outstanding, for good.
        """
        with quiet():
            self._storage = InMemoryStorage()
            self._study = optuna.create_study(
                storage=self._storage, study_name="told", directions=self._directions
            )
            self._num_waiting = 0
            for evaluation, values, violation in completed:
                params = self._params(evaluation.genome, evaluation.id)
                trial = self._trial(TrialState.COMPLETE, params, values)
                if violation is not None:
                    trial.set_constraint("violation", violation)
                self._add(trial)
            for genome in outstanding:
                self._add(self._trial(TrialState.RUNNING, self._params(genome), None))

    def propose(
        self, make_sampler: MakeSampler, seed: np.random.SeedSequence, waiting: Sequence[Genome]
    ) -> Genome:
        """A new genome.

        waiting: what is outstanding; it only grows until `learn` is called again.
        """
        with quiet():
            for genome in waiting[self._num_waiting :]:
                self._add(self._trial(TrialState.RUNNING, self._params(genome), None))
            self._num_waiting = len(waiting)
            self._study.sampler = make_sampler(int(seed.generate_state(1)[0]))
            asked = self._study.ask()
            generator = np.random.default_rng(seed.spawn(1)[0])
            genome = self._parameters.write(lambda i: self._suggest(asked, i), generator)
            # What is outstanding is the genome, which is not always all that was suggested.
            self._study.tell(asked, state=TrialState.FAIL)
            return genome

    def _add(self, trial: FrozenTrial) -> None:
        self._storage.create_new_trial(self._storage.get_study_id_from_name("told"), trial)

    def _suggest(self, trial: Trial, i: int) -> float | int:
        """What the sampler gives a gene."""
        name, size = self._parameters.names[i], self._parameters.sizes[i]
        if size is None:
            return trial.suggest_float(name, 0.0, 1.0)
        if self._parameters.unordered[i]:
            return trial.suggest_categorical(name, range(size))
        return trial.suggest_int(name, 0, size - 1)

    def _params(self, genome: Genome, id_: CandidateId | None = None) -> dict[str, float | int]:
        """What a trial at this genome was given, remembered by candidate."""
        known = None if id_ is None else self._read.get(id_)
        if known is not None and known[0] == genome:
            return known[1]
        names, values = self._parameters.names, self._parameters.read(genome)
        params = dict(zip(names, values, strict=True))
        if self._only_active:
            active = self._parameters.active(genome)
            params = {name: params[name] for name, on in zip(names, active, strict=True) if on}
        if id_ is not None:
            self._read[id_] = genome, params
        return params

    def _trial(
        self, state: TrialState, params: dict[str, float | int], values: Sequence[float] | None
    ) -> Told:
        names = self._parameters.names
        distributions = dict(zip(names, self._distributions, strict=True))
        return Told(
            number=-1,  # given by the storage, as the id
            trial_id=-1,
            state=state,
            value=None,
            values=values,
            datetime_start=None,
            datetime_complete=None,
            params=params,
            distributions={name: distributions[name] for name in params},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's log and its notices of what is experimental, off for a while."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(size: int | None, unordered: bool) -> BaseDistribution:
    """Of what a gene can be given (see `Parameters`)."""
    if size is None:
        return FloatDistribution(0.0, 1.0)
    return CategoricalDistribution(range(size)) if unordered else IntDistribution(0, size - 1)
