"""A population of pymoo's: what NSGA-II and NSGA-III have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.protocols import SearchSpace
from evomerge.records import CandidateId, Evaluation, Facts, Genome
from evomerge.searchers.cells import cells_of, snapped
from evomerge.searchers.generation import read_designs
from evomerge.searchers.order import is_scored
from evomerge.searchers.standing import standing

ATTEMPTS = 20  # to breed a child that is in nobody's place, before a stranger comes


class GeneticPopulation:
    """Breeds by a genetic algorithm of pymoo's, and lets the fittest survive (a `Breeder`).

    Who has a score of the highest rung and violates nothing is compared by the objectives;
    everybody else comes after, in one order (see standing.py), as in constrained domination (Deb,
    Pratap, Agarwal & Meyarivan, IEEE Transactions on Evolutionary Computation 6, 2002). New scores
    of a survivor replace its old ones.

    The first generation is the designs, then the fittest of a warm start, then random genomes. A
    warm start's candidates are asked for like any other: their scores are of another run's items.

    make: the algorithm, given the first generation, shape (>= population, genes), and the generator
        for its `seed`; it draws from no other one.
    """

    def __init__(
        self,
        make: Callable[[NDArray[np.float64], np.random.Generator], Any],
        population: int,
        space: SearchSpace,
        seed: int,
        facts: Facts,
    ) -> None:
        self.size = population
        self.evaluations: dict[CandidateId, Evaluation] = {}  # of the living
        self._cells = cells_of(space)
        self._num_objectives = len(facts.objectives)
        self._generator = np.random.default_rng(np.random.SeedSequence(seed))
        self.algorithm = make(self._first_generation(facts), self._generator)
        self._set_up()

    # --- whole generations ------------------------------------------------------------------------

    def breed(self) -> list[Genome]:
        """The offspring of the living (see `Breeder`)."""
        from pymoo.core.population import Population

        offspring = self.algorithm.ask()
        num_bred = 0 if offspring is None else len(offspring)
        # Children equal to somebody alive are dropped; after many vain attempts pymoo gives up.
        num_missing = self.size - num_bred
        if num_missing > 0:
            strangers = Population.new(X=self._strangers(num_missing))
            offspring = strangers if num_bred == 0 else Population.merge(offspring, strangers)
        self._offspring = offspring
        genomes: list[Genome] = np.clip(offspring.get("X"), 0.0, 1.0).tolist()
        return genomes

    def learn(self, generation: list[Evaluation]) -> None:
        """The survival of the fittest (see `Breeder`)."""
        for individual, evaluation in zip(self._offspring, generation, strict=True):
            self._identify(individual, evaluation)
        self._judge([*self._living(), *self._offspring])
        self.algorithm.tell(infills=self._offspring)
        self._bury()

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """New scores of survivors; the dead stay dead (see `Breeder`)."""
        known = {e.id: e for e in evaluations if e.id in self.evaluations}
        if not known:
            return
        self.evaluations.update(known)
        self._judge(self._living())
        self._forget()
        self._survive(self.algorithm.pop, len(self.algorithm.pop))

    # --- one by one -------------------------------------------------------------------------------

    def first(self, count: int) -> list[Genome]:
        """The first generation, and strangers where it is smaller than the count."""
        known = np.clip(self.algorithm.ask().get("X"), 0.0, 1.0)
        strangers = self._strangers(max(count - len(known), 0))
        genomes: list[Genome] = np.vstack([known, strangers]).tolist()
        return genomes

    def child(self, elsewhere: Sequence[Genome]) -> Genome:
        """A child of the living, in nobody's place; the places that are taken elsewhere, too."""
        algorithm, taken = self.algorithm, {tuple(genome) for genome in elsewhere}
        for _ in range(ATTEMPTS):
            children = algorithm.mating.do(
                algorithm.problem,
                algorithm.pop,
                1,
                n_max_iterations=1,
                algorithm=algorithm,
                random_state=self._generator,
            )
            for point in np.clip(children.get("X"), 0.0, 1.0).tolist() if len(children) else ():
                if tuple(point) not in taken:
                    child: Genome = point
                    return child
        stranger: Genome = self._strangers(1)[0].tolist()
        return stranger

    def join(self, evaluation: Evaluation) -> None:
        """One more among the living; once they are more than their size, the worst dies."""
        from pymoo.core.individual import Individual
        from pymoo.core.population import Population

        newcomer = Individual()
        self._identify(newcomer, evaluation)
        everybody = Population.create(*self._living(), newcomer)
        self._judge(list(everybody))
        self.algorithm.is_initialized = True
        self._survive(everybody, self.size)
        self._bury()

    # --- inside -----------------------------------------------------------------------------------

    def _first_generation(self, facts: Facts) -> NDArray[np.float64]:
        """Each different design, the best of a warm start, random genomes."""
        num_genes = len(self._cells)
        known = read_designs(facts.designs, num_genes)
        if room := max(self.size - len(known), 0):
            warm = [e.genome for e in self._fittest(facts.warm_start, room)]
            known = read_designs([*known.tolist(), *warm], num_genes)
        known = read_designs(snapped(known, self._cells).tolist(), num_genes)
        return np.vstack([known, self._strangers(max(self.size - len(known), 0))])

    def _fittest(self, evaluations: Sequence[Evaluation], count: int) -> list[Evaluation]:
        """Those that would survive if there were room for so many, from the best on."""
        from pymoo.core.population import Population
        from pymoo.core.problem import Problem
        from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

        valid = [
            e
            for e in evaluations
            if e.score and is_scored(e) and len(e.score.values) == self._num_objectives
        ]
        if not valid:
            return []
        values, violations = standing(valid, self._num_objectives)
        compared = np.flatnonzero(violations == 0)
        problem = Problem(n_var=1, n_obj=values.shape[1])
        alive = RankAndCrowding().do(
            problem,
            Population.new(F=-values[compared], place=compared),
            n_survive=count,
            random_state=self._generator,
        )
        return [valid[one.get("place")] for one in alive]

    def _strangers(self, count: int) -> NDArray[np.float64]:
        """Random genomes, shape (count, genes)."""
        return snapped(self._generator.random((count, len(self._cells))), self._cells)

    def _set_up(self) -> None:
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination

        num_genes = len(self._cells)
        problem = Problem(
            n_var=num_genes,
            n_obj=self._num_objectives,
            n_ieq_constr=1,
            xl=np.zeros(num_genes),
            xu=np.ones(num_genes),
        )
        self.algorithm.setup(problem, termination=NoTermination())

    def _identify(self, individual: Any, evaluation: Evaluation) -> None:
        individual.X = np.asarray(evaluation.genome, dtype=np.float64)
        individual.set("candidate", evaluation.id)
        self.evaluations[evaluation.id] = evaluation

    def _living(self) -> list[Any]:
        """Pymoo's individuals of the population."""
        return list(self.algorithm.pop) if self.algorithm.is_initialized else []

    def _survive(self, everybody: Any, count: int) -> None:
        algorithm = self.algorithm
        algorithm.pop = algorithm.survival.do(
            algorithm.problem,
            everybody,
            n_survive=count,
            algorithm=algorithm,
            random_state=self._generator,
        )

    def _bury(self) -> None:
        alive = {individual.get("candidate") for individual in self.algorithm.pop}
        self.evaluations = {i: e for i, e in self.evaluations.items() if i in alive}

    def _forget(self) -> None:
        """Best and worst values that NSGA-III remembers: they were of scores that changed."""
        survival = self.algorithm.survival
        if hasattr(survival, "norm"):
            survival.norm = type(survival.norm)(self._num_objectives)

    def _judge(self, individuals: list[Any]) -> None:
        """Give individuals that compete with each other objectives and a constraint violation."""
        evaluations = [self.evaluations[one.get("candidate")] for one in individuals]
        values, violations = standing(evaluations, self._num_objectives)
        for individual, value, violation in zip(individuals, values, violations, strict=True):
            individual.F = -value
            individual.G = np.array([violation])
            individual.CV = np.array([violation])
