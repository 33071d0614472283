"""NSGA-II, from pymoo: several objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.pareto import non_dominated
from evomerge.protocols import SearchSpace
from evomerge.records import CandidateId, Evaluation, Facts, Genome
from evomerge.searchers.generation import Generations, read_designs
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import is_scored, order_key


class Nsga2:
    """NSGA-II in the unit cube: simulated binary crossover and polynomial mutation.

    Deb, Pratap, Agarwal & Meyarivan, A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II,
    IEEE Transactions on Evolutionary Computation 6 (2002), with its constrained domination: who has
    a score of the highest rung and violates nothing is compared by the objectives; everybody else
    comes after, in one order (less violation, then a higher rung, then the front within the rung;
    failures last). The first generation is the designs, then uniform random genomes. New scores
    of a survivor replace its old ones.
    """

    kind: ClassVar[str] = "nsga2"
    summary: ClassVar[str] = "NSGA-II: two or three objectives, a front in one run; one works too"
    multi_objective: bool = True
    asks_designs: bool = True
    needs: frozenset[str] = frozenset({"genes"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `nsga2`."""

        population: int = Field(32, ge=2, le=100_000, description="candidates a generation")
        crossover_probability: float = Field(
            0.9, ge=0, le=1, description="share of the pairs of parents that are crossed"
        )
        crossover_eta: float = Field(
            15.0, gt=0, description="distribution index: larger keeps children near their parents"
        )
        mutation_eta: float = Field(
            20.0, gt=0, description="distribution index: larger makes smaller mutations"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        self.options = read_options(self.Options, options, self.kind)
        self.population = self.in_flight = self.options.population
        self._num_genes = len(space.genes)
        self._num_objectives = len(facts.objectives)
        self._generator = np.random.default_rng(np.random.SeedSequence(seed))
        self._evaluations: dict[CandidateId, Evaluation] = {}  # of the living population
        self._generations = Generations(self)
        self._start(self._first_generation(facts.designs))

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while the rest of a generation is outstanding."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until a generation is whole."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """None: the front is made of candidates."""
        return None

    def breed(self) -> list[Genome]:
        """The offspring of the living population (see `Breeder`)."""
        from pymoo.core.population import Population

        offspring = self._algorithm.ask()
        num_bred = 0 if offspring is None else len(offspring)
        # Children equal to somebody alive are dropped; after many vain attempts pymoo gives up.
        num_missing = self.population - num_bred
        if num_missing > 0:
            strangers = Population.new(X=self._generator.random((num_missing, self._num_genes)))
            offspring = strangers if num_bred == 0 else Population.merge(offspring, strangers)
        self._offspring = offspring
        genomes: list[Genome] = np.clip(offspring.get("X"), 0.0, 1.0).tolist()
        return genomes

    def learn(self, generation: list[Evaluation]) -> None:
        """The survival of the fittest (see `Breeder`)."""
        for individual, evaluation in zip(self._offspring, generation, strict=True):
            individual.X = np.asarray(evaluation.genome, dtype=np.float64)
            individual.set("candidate", evaluation.id)
        self._evaluations.update((evaluation.id, evaluation) for evaluation in generation)
        self._judge([*self._living(), *self._offspring])
        self._algorithm.tell(infills=self._offspring)
        alive = {individual.get("candidate") for individual in self._algorithm.pop}
        self._evaluations = {i: e for i, e in self._evaluations.items() if i in alive}

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """New scores of survivors; the dead stay dead (see `Breeder`)."""
        known = {e.id: e for e in evaluations if e.id in self._evaluations}
        if not known:
            return
        self._evaluations.update(known)
        algorithm = self._algorithm
        self._judge(list(algorithm.pop))
        algorithm.pop = algorithm.survival.do(
            algorithm.problem, algorithm.pop, algorithm=algorithm, random_state=self._generator
        )

    def _first_generation(self, designs: Sequence[Genome]) -> NDArray[np.float64]:
        """Each different design, then random genomes; shape (>= population, num_genes)."""
        known = read_designs(designs, self._num_genes)
        num_random = max(self.population - len(known), 0)
        return np.vstack([known, self._generator.random((num_random, self._num_genes))])

    def _start(self, first_generation: NDArray[np.float64]) -> None:
        """Set up pymoo; it takes the generator as its seed, and reads no global one."""
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM

        self._algorithm = NSGA2(
            pop_size=self.population,
            sampling=first_generation,
            crossover=SBX(prob=self.options.crossover_probability, eta=self.options.crossover_eta),
            mutation=PM(eta=self.options.mutation_eta),
            seed=self._generator,
        )
        problem = Problem(
            n_var=self._num_genes,
            n_obj=self._num_objectives,
            n_ieq_constr=1,
            xl=np.zeros(self._num_genes),
            xu=np.ones(self._num_genes),
        )
        self._algorithm.setup(problem, termination=NoTermination())

    def _living(self) -> list[Any]:
        """Pymoo's individuals of the population."""
        return list(self._algorithm.pop) if self._algorithm.is_initialized else []

    def _judge(self, individuals: list[Any]) -> None:
        """Give individuals that compete with each other objectives and a constraint violation."""
        evaluations = [self._evaluations[one.get("candidate")] for one in individuals]
        values, violations = standing(evaluations, self._num_objectives)
        for individual, value, violation in zip(individuals, values, violations, strict=True):
            individual.F = -value
            individual.G = np.array([violation])
            individual.CV = np.array([violation])


def standing(
    evaluations: Sequence[Evaluation], num_objectives: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How evaluations that compete with each other compare.

    Returns:
        Values, shape (n, num_objectives), maximised, the worst of the others where there is no
        score; and violations, shape (n,): 0 for those that are compared by their values, and 1, 2,
        ... in one order for the others.
    """
    keys = [order_key(evaluation)[:3] for evaluation in evaluations]
    values = np.full((len(evaluations), num_objectives), np.nan)
    for i, evaluation in enumerate(evaluations):
        if evaluation.score is not None and is_scored(evaluation):
            values[i] = evaluation.score.values
    best = min(keys)
    is_valid = best[:2] == (False, 0.0)
    others = [i for i, key in enumerate(keys) if key != best or not is_valid]
    fronts = _fronts(values, keys, others)
    others.sort(key=lambda i: (*keys[i], fronts[i], evaluations[i].id))
    violations = np.zeros(len(evaluations))
    violations[others] = np.arange(1, len(others) + 1)
    scored = ~np.isnan(values).any(axis=1)
    worst = values[scored].min(axis=0) if scored.any() else np.zeros(num_objectives)
    return np.where(scored[:, None], values, worst), violations


def _fronts(
    values: NDArray[np.float64], keys: list[tuple[bool, float, int]], members: list[int]
) -> dict[int, int]:
    """For each member the number of its front, from 0, among the members with the same key."""
    fronts = dict.fromkeys(members, 0)
    for key in {keys[i] for i in members if not keys[i][0]}:  # without a score there is no front
        left = np.array([i for i in members if keys[i] == key])
        front = 0
        while len(left):
            best = non_dominated(values[left])
            fronts.update((int(i), front) for i in left[best])
            left, front = left[~best], front + 1
    return fronts
