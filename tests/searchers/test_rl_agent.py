"""The agent on problems with a known optimum; its learner against torch, its episodes against the
codec, and its rewards against the order of evaluations."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searcher_calls import Cube, Setting, evaluation
from torch import nn

from evomerge.errors import ConfigurationError
from evomerge.genes import (
    AllDifferent,
    AtLeast,
    Beyond,
    Choice,
    Constraint,
    Count,
    Flag,
    Gene,
    Integer,
    NoneIs,
    OneOf,
    Real,
)
from evomerge.records import Estimate, Evaluation, Facts, Failure, Genome, Score
from evomerge.search_spaces.codec import Codec
from evomerge.searchers import make_searcher, ppo
from evomerge.searchers.episode import Course
from evomerge.searchers.order import total_order
from evomerge.searchers.ppo import Agent, Floats, Network, Settings, Steps
from evomerge.searchers.rl_agent import Rewards, RlAgent

PAPER = Settings(
    epochs=40, actor_rate=3e-4, critic_rate=1e-3, discount=0.99, clip=0.2, entropy=1e-4
)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "rl_agent.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_the_agent", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def catalogue_space(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "search_spaces"))
    from stand_ins import catalogue_space

    made: Callable[[str, int, int], Any] = catalogue_space
    return made


# --- what it finds --------------------------------------------------------------------------------


def test_the_toys_optimum_is_brute_forces(benchmark: ModuleType) -> None:
    toy = benchmark.Toy(3, 5)
    values = [toy.of(np.array(c)) for c in itertools.product(range(benchmark.SOURCES), repeat=5)]
    assert min(values) == pytest.approx(0)
    assert max(values) == pytest.approx(1)


def test_a_layer_choice_comes_close_to_its_optimum_in_700_episodes(benchmark: ModuleType) -> None:
    toys = [benchmark.Toy(seed) for seed in range(10)]
    found = [benchmark.search(toy, toy, i, "rl_agent", {}, 700) for i, toy in enumerate(toys)]
    assert sum(f.best >= 0.97 for f in found) >= 9
    assert np.mean([f.greedy for f in found]) >= 0.97
    random = [benchmark.search(toy, toy, i, "random", {}, 700).best for i, toy in enumerate(toys)]
    assert max(random) < 0.97


def test_coefficients_in_bins_come_close_to_a_bowls_bottom() -> None:
    searcher = Setting("rl_agent", 8).make()
    told, target = 0, np.linspace(0.1, 0.9, 8)
    while told < 700:
        genomes = searcher.ask(16)
        values = [-float(((np.array(g) - target) ** 2).mean()) for g in genomes]
        searcher.tell([evaluation(told + i, g, [values[i]]) for i, g in enumerate(genomes)])
        told += len(genomes)
    believed = np.array(searcher.recommend())
    assert np.allclose(believed * 10, np.rint(believed * 10))  # eleven bins, both ends among them
    assert ((believed - target) ** 2).mean() < 0.02  # the nearest bins: 0.001; at random: 0.15


def walk_value(space: Any, seed: int) -> Callable[[Genome], float | None]:
    """A layer's worth hangs on whom it is taken from, repeats cost; None for impossible walks."""
    generator = np.random.default_rng([seed, 7])
    sources = [option for option in space.genes[0].options if option != "skip it"]
    gains = generator.random((space.anatomy.num_layers, len(sources)))

    def value(genome: Genome) -> float | None:
        if space.violations(genome):
            return None
        worth, at, repeats = np.zeros(len(gains)), 0, 0
        for step, matters in zip(space.codec.values(genome), space.active(genome), strict=True):
            if not matters:
                break
            if step in sources:
                repeats += worth[at] > 0
                worth[at] = gains[at, sources.index(step)]
            at += -1 if step == "go back" else 1
        return float((worth.sum() - 0.3 * repeats) / gains.max(axis=1).sum())

    return value


def test_a_walk_learns_to_arrive_and_whom_to_take(
    catalogue_space: Callable[[str, int, int], Any],
) -> None:
    space = catalogue_space("reinforced_merging", 12, 3)
    value = walk_value(space, 0)
    searcher = make_searcher("rl_agent", space, 0, Facts(), {})
    fails, best = [], 0.0
    for told in range(0, 704, 16):
        genomes = searcher.ask(16)
        values = [value(genome) for genome in genomes]
        evaluations = [
            Evaluation(told + i, genome, None, Failure("violation", "the walk"), 1.0)
            if found is None
            else evaluation(told + i, genome, [found])
            for i, (genome, found) in enumerate(zip(genomes, values, strict=True))
        ]
        searcher.tell(evaluations)
        fails += [found is None for found in values]
        best = max([best, *(found for found in values if found is not None)])
    assert sum(fails[:160]) >= 5
    assert sum(fails[-160:]) == 0
    assert best > 0.93  # 700 random walks reach 0.78
    greedy = value(searcher.recommend())
    assert greedy is not None
    assert greedy > 0.93


# --- what it learns, beside torch -----------------------------------------------------------------


def steps_of(generator: np.random.Generator, episodes: int, places: int, actions: int) -> Steps:
    allowed = generator.random((episodes, places, actions)) < 0.7
    done = generator.integers(actions, size=(episodes, places))
    np.put_along_axis(allowed, done[..., None], True, axis=-1)
    seen = generator.random((episodes, places, 6)).astype(np.float32)
    return Steps(seen, allowed, done, generator.random((episodes, places)) < 0.8)


def in_torch(network: Network) -> nn.Sequential:
    """The same network, with the place as a one-hot before the features."""
    place, features, middle, bias, last, last_bias = [
        torch.tensor(part.copy()) for part in network.weights
    ]
    num_inputs = len(place) + len(features)
    net = nn.Sequential(
        nn.Linear(num_inputs, 64, bias=False),
        nn.Tanh(),
        nn.Linear(64, 64),
        nn.Tanh(),
        nn.Linear(64, len(last_bias)),
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.cat([place, features]).T)
        net[2].weight.copy_(middle.T)
        net[2].bias.copy_(bias)
        net[4].weight.copy_(last.T)
        net[4].bias.copy_(last_bias)
    return net


@pytest.mark.parametrize("portion", [1024, 21, 1])  # rows: all episodes, three of them, each
def test_an_update_is_torchs(portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 7 of the PPO paper with autograd and torch's Adam, on the same episodes."""
    monkeypatch.setattr(ppo, "PORTION", portion)
    generator = np.random.default_rng(0)
    steps = steps_of(generator, 4, 7, 5)
    rewards = generator.normal(size=4) * 30
    # Large steps, so that ratios are clipped.
    bold = Settings(
        epochs=40, actor_rate=3e-3, critic_rate=1e-2, discount=0.9, clip=0.2, entropy=0.05
    )
    agent = Agent(7, 6, 5, bold, np.random.default_rng(1))
    actor, critic = in_torch(agent._actor), in_torch(agent._critic)
    groups = [
        {"params": actor.parameters(), "lr": bold.actor_rate},
        {"params": critic.parameters(), "lr": bold.critic_rate},
    ]
    adam = torch.optim.Adam(groups)
    agent.learn(steps, rewards)

    acted = torch.tensor(steps.acted)
    places = torch.eye(7).expand(4, 7, 7)
    inputs = torch.cat([places, torch.tensor(steps.seen)], dim=-1)[acted]
    returns = torch.zeros(4, 7)
    for episode in range(4):
        value = float((rewards[episode] - rewards.mean()) / rewards.std())
        for place in reversed(range(7)):
            if steps.acted[episode, place]:
                returns[episode, place] = value
                value *= bold.discount
    returns = returns[acted]
    advantages = returns - critic(inputs)[:, 0].detach()
    before, largest = None, 0.0
    for _ in range(bold.epochs):
        logits = actor(inputs).masked_fill(~torch.tensor(steps.allowed)[acted], -1e9)
        chosen = torch.distributions.Categorical(logits=logits)
        logs = chosen.log_prob(torch.tensor(steps.done)[acted])
        before = logs.detach() if before is None else before
        ratio = torch.exp(logs - before)
        largest = max(largest, float(ratio.detach().max()))
        clipped = torch.clamp(ratio, 1 - bold.clip, 1 + bold.clip)
        surrogate = torch.min(ratio * advantages, clipped * advantages)
        error = 0.5 * (critic(inputs)[:, 0] - returns) ** 2
        loss = (-surrogate + error - bold.entropy * chosen.entropy()).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert largest > 1.25
    for network, net in ((agent._actor, actor), (agent._critic, critic)):
        for mine, theirs in zip(network.weights[2:], in_order(net), strict=True):
            np.testing.assert_allclose(mine, theirs.detach().numpy(), atol=2e-4)
        first = np.concatenate(network.weights[:2])
        np.testing.assert_allclose(first, net[0].weight.detach().numpy().T, atol=2e-4)


@pytest.mark.parametrize("portion", [21, 1])
def test_portions_are_imitated_as_the_whole_is(
    portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = steps_of(np.random.default_rng(0), 4, 7, 5)

    def imitated(enough: float) -> Agent:
        agent = Agent(7, 6, 5, PAPER, np.random.default_rng(1))
        agent.imitate(steps, 30, enough)
        return agent

    whole = [imitated(enough)._actor.weights for enough in (0.34, 1.0)]
    monkeypatch.setattr(ppo, "PORTION", portion)
    parts = [imitated(enough)._actor.weights for enough in (0.34, 1.0)]
    assert not np.allclose(whole[0][2], whole[1][2], atol=1e-4)  # the first stopped midway
    for one, other in zip(whole, parts, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_imitating_no_further_leaves_nothing_to_learn_from() -> None:
    generator = np.random.default_rng(0)
    steps, rewards = steps_of(generator, 4, 7, 5), generator.normal(size=4)
    plain, content = (Agent(7, 6, 5, PAPER, np.random.default_rng(1)) for _ in range(2))
    content.imitate(steps, 30, enough=0.0)
    for agent in (plain, content):
        agent.learn(steps, rewards)
    for mine, theirs in zip(plain._actor.weights, content._actor.weights, strict=True):
        assert np.array_equal(mine, theirs)


def in_order(net: nn.Sequential) -> list[torch.Tensor]:
    return [net[2].weight.T, net[2].bias, net[4].weight.T, net[4].bias]


def test_one_place_alone_gives_what_all_places_give() -> None:
    generator = np.random.default_rng(0)
    network = Network(9, 6, 5, 1e-3, generator)
    seen = generator.random((3, 9, 6)).astype(np.float32)
    together = network.forward(seen)
    for place in range(9):
        alone = network.at(place, seen[:, place])
        np.testing.assert_allclose(alone, together[:, place], rtol=1e-5, atol=1e-6)


# --- episodes, beside the codec -------------------------------------------------------------------

FLAGS = tuple(Flag(f"f{i}") for i in range(5))
SPACES: dict[str, tuple[tuple[Gene, ...], tuple[Constraint, ...]]] = {
    "conditions": (
        (
            Choice("kind", ("a", "b", "c")),
            Real("weight", -1.0, 1.0),
            Real("density", 0.01, 1.0, log=True, when=Beyond("weight", 0.6)),
            Integer("rank", 2, 9, when=OneOf("kind", ("a", "c"))),
            Flag("split", when=OneOf("rank", (3, 5, 7))),
            Real("share", 0.0, 1.0, when=NoneIs(("kind", "split"), "b")),
        ),
        (),
    ),
    "two of five": (FLAGS, (Count(tuple(f.name for f in FLAGS), 2, 2),)),
    "one to three of five": (
        (*FLAGS, Real("scale", 0.0, 2.0, when=AtLeast(tuple(f.name for f in FLAGS), 2))),
        (Count(tuple(f.name for f in FLAGS), 1, 3),),
    ),
    "order": (
        (
            Flag("long"),
            *(Integer(f"i{k}", 0, 4) for k in range(3)),
            Integer("i3", 0, 4, when=OneOf("long", (True,))),
            Integer("i4", 0, 4),
        ),
        (AllDifferent(tuple(f"i{k}" for k in range(5)), "reject"),),
    ),
}
SPACES["order, moved on"] = (
    SPACES["order"][0],
    (AllDifferent(tuple(f"i{k}" for k in range(5)), "next"),),
)


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_genomes_decode_to_what_was_chosen(name: str, seed: int) -> None:
    genes, constraints = SPACES[name]
    codec, course = Codec(genes, constraints), Course(genes, constraints, 6)
    generator = np.random.default_rng(seed)

    def anything(place: int, seen: Floats, allowed: np.ndarray) -> np.ndarray:
        return np.array([generator.choice(np.flatnonzero(row)) for row in allowed])

    genomes, steps = course.walk(3, anything)
    for row, genome in enumerate(genomes):
        assert codec.violations(genome) == []
        values = codec.values(genome)
        assert codec.active(values) == steps.acted[row].tolist()
        for place, gene in enumerate(genes):
            if not steps.acted[row, place]:
                continue
            action = int(steps.done[row, place]) - course.starts[place]
            expected = course.value(place, action)
            found = values[place]
            assert found == (pytest.approx(expected) if isinstance(gene, Real) else expected)
    followed = course.follow(genomes)
    assert np.array_equal(followed.acted, steps.acted)
    assert np.array_equal(followed.seen, steps.seen)
    assert np.array_equal(followed.done[steps.acted], steps.done[steps.acted])


def test_what_a_constraint_forbids_is_masked_and_what_is_left_is_not() -> None:
    genes, constraints = SPACES["two of five"]
    course = Course(genes, constraints, 6)
    always_yes = course.walk(1, lambda place, seen, allowed: last(allowed))[1]
    assert always_yes.done[0].tolist() == [1, 1, 0, 0, 0]
    never = course.walk(1, lambda place, seen, allowed: allowed.argmax(axis=1))[1]
    assert never.done[0].tolist() == [0, 0, 0, 1, 1]
    assert never.allowed[0].tolist() == [[True, True]] * 3 + [[False, True]] * 2


def last(allowed: np.ndarray) -> np.ndarray:
    found: np.ndarray = allowed.shape[1] - 1 - allowed[:, ::-1].argmax(axis=1)
    return found


def test_genes_of_one_type_and_size_share_their_actions() -> None:
    genes = (*FLAGS, Real("x", 0, 1), Real("y", -1, 1), Choice("c", ("a", "b", "c")))
    course = Course(genes, (), 11)
    assert course.num_columns == 2 + 11 + 3
    assert course.starts == [0, 0, 0, 0, 0, 2, 2, 13]
    yes = course.walk(1, lambda place, seen, allowed: last(allowed))[1].seen[0]
    assert yes[:6, 1] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])  # how many flags are set
    assert yes[1, course.num_columns :].tolist() == [0, 1] + [0] * 14
    assert yes[7, course.num_columns :].tolist() == [0, 1] + [0] * 10 + [1] + [0] * 3


# --- rewards --------------------------------------------------------------------------------------


def scored(candidate: int, value: float, rung: int = 0) -> Evaluation:
    return Evaluation(candidate, [0.5], Score({"f": Estimate(value, 0.0, 8)}, rung))


def test_a_score_is_a_hundred_points_and_a_failure_costs_ten() -> None:
    failed = evaluation(2, [0.5], None)
    impossible = Evaluation(3, [0.5], None, Failure("violation", "x"), 1.0)
    rewards = Rewards(RlAgent.Options())
    assert rewards.of([scored(0, 0.5), scored(1, 0.75), failed, impossible]).tolist() == [
        50,
        75,
        -10,
        -10,
    ]
    # Where scores are below 0, a failure is still the worst of its update, and not for ever.
    found = rewards.of([scored(4, -3.0), evaluation(5, [0.5], None)])
    assert found.tolist() == [-300, -310]
    found = rewards.of([scored(6, -0.2), evaluation(7, [0.5], None)])
    assert found.tolist() == [-20, -30]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(st.none(), st.tuples(st.integers(0, 1000), st.integers(0, 3))),
        min_size=2,
        max_size=12,
    )
)
def test_rewards_are_in_the_order_of_evaluations(entries: list[tuple[int, int] | None]) -> None:
    told = [
        evaluation(i, [0.5], None) if entry is None else scored(i, entry[0] / 1000, entry[1])
        for i, entry in enumerate(entries)
    ]
    rewards = Rewards(RlAgent.Options()).of(told)
    assert np.isfinite(rewards).all()
    order = total_order(told)
    for better, worse in itertools.pairwise(order):
        assert rewards[better] >= rewards[worse] - 1e-9
        if (entries[better] is None) != (entries[worse] is None):
            assert rewards[better] > rewards[worse]
        elif entries[better] and entries[worse] and entries[better][1] != entries[worse][1]:
            assert rewards[better] > rewards[worse] + 0.5


def test_smoothing_is_the_papers() -> None:
    """r <- w last + (1 - w) r, w = .8 e / E, afresh with each pass: here every 2 x 3 episodes."""
    values = np.random.default_rng(0).random(15)
    rewards = Rewards(RlAgent.Options(population=3, subsets=2, episodes=20))
    found: list[float] = []
    for start in range(0, 15, 3):
        told = [scored(i, float(values[i])) for i in range(start, start + 3)]
        found += rewards.of(told).tolist()
    expected: list[float] = []
    for e, value in enumerate(values, start=1):
        weight = 0.0 if e % 6 == 1 else 0.8 * e / 20
        before = expected[-1] if expected else 0.0
        expected.append(weight * before + (1 - weight) * 100 * value)
    assert found == pytest.approx(expected)
    plain = Rewards(RlAgent.Options(population=3))
    assert plain.of([scored(0, 0.1), scored(1, 0.9), scored(2, 0.4)]) == pytest.approx([10, 90, 40])


def test_more_actions_than_it_can_learn_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at most 5,000 different actions, got 10,001"):
        RlAgent(cast(Any, ManyValues()), 0, Facts())


class ManyValues:
    """Genes of thousands of values, of which two are alike."""

    genes = (Integer("a", 1, 6000), Integer("b", 0, 5999), Integer("c", 0, 4000))
    constraints = ()


# --- what it begins with --------------------------------------------------------------------------


def test_a_warm_start_begins_near_the_best_of_another_run() -> None:
    space = Cube(20, "mixed")
    generator = np.random.default_rng(0)
    target = [(math.floor(2 * x) + 0.5) / 2 if i % 3 == 0 else x for i, x in enumerate([0.7] * 20)]
    warm = tuple(
        evaluation(i, genome, [-float(np.abs(np.array(genome) - target).mean())])
        for i, genome in enumerate([target] * 16 + [space.sample(generator) for _ in range(40)])
    )

    def distance(start: tuple[Evaluation, ...]) -> float:
        genomes = Setting("rl_agent", 20, shape="mixed", warm_start=start).make().ask(16)
        return float(np.abs(np.array(genomes) - target).mean())

    failed = tuple(evaluation(i, [0.5] * 20, None) for i in range(3))
    assert distance(failed) == distance(())
    assert distance(warm) < 0.6 * distance(())
    spread = Setting("rl_agent", 20, shape="mixed", warm_start=warm).make().ask(16)
    assert len({tuple(genome) for genome in spread}) == 16  # it still tries
