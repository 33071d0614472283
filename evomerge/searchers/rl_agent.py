"""An agent that learns by reinforcement to make genomes gene by gene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge.errors import ConfigurationError, Problem
from evomerge.protocols import SearchSpace
from evomerge.records import Evaluation, Facts, Genome
from evomerge.searchers.episode import Course, num_actions
from evomerge.searchers.generation import Generations
from evomerge.searchers.options import StrictOptions, read_options
from evomerge.searchers.order import is_scored, order_key
from evomerge.searchers.ppo import Agent, Floats, Settings

POINTS = 100.0  # a score of 1 is so much reward
MOST_ACTIONS = 5_000  # of all types of genes; an update's arrays have that many columns twice
# Of another run's best genomes: towards them, and not up to them.
CLONING_STEPS, CLONED = 100, 0.7


class RlAgent:
    """Reinforced model merging: an episode makes a genome, gene by gene; its score is the reward.

    Han, Ye, Liu, Zhang, Song, Feng & Song 2025, Reinforced Model Merging, arXiv:2503.21272. As
    there: PPO with an actor and a critic of 2 x 64 tanh units, gamma .99, clipping at .2, an
    entropy weight of 1e-4; one reward at the end of an episode, 100 x the score, and -10 for a walk
    that leaves the model the wrong way, or any other failure; and the dynamic average reward (see
    below). On a space of kind `layer_walk` the actions are the paper's: take the layer from an
    expert or a merge, skip it, go back. A walk has as many steps as the space has genes.

    Departures (what the first brought stands in benchmarks/results/rl_agent.txt):

    - 16 episodes an update instead of 4, with which the agent settles too early more often. 10
      steps of Adam an update instead of 40, with a rate of 2e-3 for both networks instead of 3e-4
      and 1e-3: as good as far as 10 seeds tell, in a third of the time.
    - Any genes will do: choices, flags and integers are actions as they are, real ones have `bins`.
      What does not matter or would break a constraint is masked.
    - Rewards are standardised over an update's episodes, before they are discounted. The paper
      standardises discounted returns over all steps; with many genes, these differ by their place
      more than by the episode.
    - The agent sees which gene is next, how often each action was taken and the last action of each
      type of gene, instead of a matrix of layers x sources: two numbers an action, however many
      genes (see episode.py).
    - There is no weight of the value loss (.5 there): Adam's steps do not depend on it where actor
      and critic share nothing.
    - Where a score is below 0, a failure's reward is 10 below the lowest of its update. Who was
      dropped by racing has less than the worst of those who survived that rung.

    Dynamic average reward, for an estimator that rotates its items, a full pass of which takes
    `subsets` cohorts: r <- w r_before + (1 - w) r with w = smoothing x e / episodes in episode e,
    afresh at the beginning of each pass. In the paper each episode sees other items. Here the
    candidates of a cohort see the same ones; with one cohort an update, whether these were easy is
    gone once rewards are standardised, so nothing is smoothed by default (`subsets: 1`).

    A warm start is imitated: the best `population` genomes of the other run, until what they do
    has a probability of .7 in the mean. The space's designs are not asked for. A candidate that is
    told again after its update changes nothing. Networks, sampling and learning are numpy on one
    thread, from two generators made from the seed.
    """

    kind: ClassVar[str] = "rl_agent"
    summary: ClassVar[str] = "an agent (PPO) that chooses gene by gene: layer choices and walks"
    multi_objective: bool = False
    needs: frozenset[str] = frozenset({"genes"})
    resumes_on_drift: bool = True

    class Options(StrictOptions):
        """Options of `rl_agent`."""

        population: int = Field(
            16, ge=2, le=100_000, description="episodes between two updates of the agent"
        )
        bins: int = Field(
            11, ge=2, le=1001, description="equally spaced values of a real gene, both ends among"
        )
        epochs: int = Field(10, ge=1, le=1000, description="steps of Adam in an update")
        actor_rate: float = Field(2e-3, gt=0, le=1, description="learning rate of the actor")
        critic_rate: float = Field(2e-3, gt=0, le=1, description="learning rate of the critic")
        discount: float = Field(
            0.99, gt=0, le=1, description="of the reward, for each gene chosen before the last"
        )
        clip: float = Field(
            0.2, gt=0, lt=1, description="an update changes no probability by a larger share"
        )
        entropy: float = Field(
            1e-4, ge=0, description="weight of the actor's entropy, which keeps it trying"
        )
        penalty: float = Field(
            -10.0, le=0, description="reward of a failure, where a score of 1 is 100"
        )
        smoothing: float = Field(
            0.8,
            ge=0,
            le=1,
            description="weight that the reward before has in the last of the episodes, with "
            "rotating items",
        )
        subsets: int = Field(
            1,
            ge=1,
            description="cohorts until rotating items come round again; 1: they do not rotate, "
            "and nothing is smoothed",
        )
        episodes: int = Field(
            700, ge=1, description="until the weight of the reward before is `smoothing`"
        )

    def __init__(self, space: SearchSpace, seed: int, facts: Facts, **options: Any) -> None:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

        self.options = read_options(self.Options, options, self.kind)
        self.population = self.in_flight = self.options.population
        self._blas = ThreadpoolController().select(user_api="blas")
        if (count := num_actions(space.genes, self.options.bins)) > MOST_ACTIONS:
            what = f"expected genes of at most {MOST_ACTIONS:,} different actions, got {count:,}"
            hint = "fewer bins, smaller ranges, or cma_es"
            raise ConfigurationError(Problem(f"searcher.kind ({self.kind})", what, hint))
        self._course = Course(space.genes, space.constraints, self.options.bins)
        networks, actions = np.random.SeedSequence(seed).spawn(2)
        self._generator = np.random.default_rng(actions)
        self._agent = Agent(
            len(space.genes),
            self._course.num_features,
            self._course.num_columns,
            Settings(**{name: getattr(self.options, name) for name in Settings.__annotations__}),
            np.random.default_rng(networks),
        )
        self._generations = Generations(self)
        self._rewards = Rewards(self.options)
        self._has_learnt = False
        self._imitate(facts.warm_start)

    def ask(self, count: int) -> list[Genome]:
        """At most `count` genomes; empty while the rest of an update's episodes is outstanding."""
        return self._generations.ask(count)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Gather evaluations until the episodes of an update are whole."""
        self._generations.tell(evaluations)

    def recommend(self) -> Genome | None:
        """The genome of an episode that takes the likeliest action everywhere."""
        if not self._has_learnt:
            return None
        with self._blas.limit(limits=1):
            return self._course.walk(1, self._likeliest)[0][0]

    def breed(self) -> list[Genome]:
        """The episodes until the next update (see `Breeder`)."""
        with self._blas.limit(limits=1):
            self._asked, self._steps = self._course.walk(self.population, self._drawn)
        return list(self._asked)

    def learn(self, generation: list[Evaluation]) -> None:
        """An update of the agent (see `Breeder`)."""
        steps = self._steps
        genomes = [evaluation.genome for evaluation in generation]
        with self._blas.limit(limits=1):
            if genomes != self._asked:  # another machine's: what was done there counts
                steps = self._course.follow(genomes)
            self._agent.learn(steps, self._rewards.of(generation))
        self._has_learnt = True

    def relearn(self, evaluations: list[Evaluation]) -> None:
        """Nothing: an agent cannot unlearn (see `Breeder`)."""

    def _imitate(self, warm_start: Sequence[Evaluation]) -> None:
        """Begin near the best genomes of another run."""
        known = sorted((e for e in warm_start if is_scored(e) and e.violation <= 0), key=order_key)
        if known:
            with self._blas.limit(limits=1):
                steps = self._course.follow([e.genome for e in known[: self.population]])
                self._agent.imitate(steps, CLONING_STEPS, CLONED)

    def _drawn(self, place: int, seen: Floats, allowed: NDArray[np.bool_]) -> NDArray[np.intp]:
        """One action for each episode, as likely as the actor has them."""
        logits = self._agent.scores(place, seen, allowed)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
        at = self._generator.random((len(seen), 1), dtype=np.float32) * shares[:, -1:]
        # A number that is rounded up to the whole would lie beyond the last action.
        last = allowed.shape[1] - 1 - allowed[:, ::-1].argmax(axis=1)
        chosen: NDArray[np.intp] = np.minimum((shares <= at).sum(axis=1), last)
        return chosen

    def _likeliest(self, place: int, seen: Floats, allowed: NDArray[np.bool_]) -> NDArray[np.intp]:
        """The first of the likeliest actions."""
        chosen: NDArray[np.intp] = self._agent.scores(place, seen, allowed).argmax(axis=1)
        return chosen


class Rewards:
    """What evaluations are worth to the agent."""

    def __init__(self, options: RlAgent.Options) -> None:
        self._options = options
        self._num_seen = 0
        self._last = 0.0

    def of(self, generation: Sequence[Evaluation]) -> NDArray[np.float64]:
        """Rewards of an update's episodes, shape (episodes,), in the order of asking."""
        raw = POINTS * values_in_order(generation)
        lowest = min(0.0, float(np.nanmin(raw))) if not np.isnan(raw).all() else 0.0
        rewards = np.where(np.isnan(raw), lowest + self._options.penalty, raw)
        return np.array([self._smooth(reward) for reward in rewards.tolist()])

    def _smooth(self, reward: float) -> float:
        """The paper's dynamic average reward."""
        options = self._options
        number = self._num_seen
        self._num_seen += 1
        if options.subsets > 1 and number % (options.subsets * options.population):
            weight = options.smoothing * min((number + 1) / options.episodes, 1.0)
            reward = weight * self._last + (1 - weight) * reward
        self._last = reward
        return reward


def values_in_order(generation: Sequence[Evaluation]) -> NDArray[np.float64]:
    """The scores' values; NaN for failures. Who was dropped by racing is below who survived.

    A rung's values keep their distances and are moved down together, as far as it takes to be
    a hundredth below the worst of the rung above.
    """
    values = np.full(len(generation), math.nan)
    valid = [
        (i, e.score)
        for i, e in enumerate(generation)
        if e.score is not None and is_scored(e) and e.violation <= 0
    ]
    ceiling = math.inf
    for rung in sorted({score.rung for _, score in valid}, reverse=True):
        members = [i for i, score in valid if score.rung == rung]
        found = np.array([score.values[0] for _, score in valid if score.rung == rung])
        found -= max(0.0, float(found.max()) + 0.01 - ceiling)
        values[members] = found
        ceiling = float(found.min())
    return values
