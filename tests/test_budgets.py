"""What models cost, as an objective and as a limit, through whole searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dropping import DEPTH, Dropping, DroppingToy, Network, dropping, parameters_of, states
from toys import forked, outcome_of

from evomerge.errors import ConfigurationError
from evomerge.experiment import run as runs
from evomerge.experiment.some_recipes import SAMPLES
from evomerge.ledger import Ledger
from evomerge.score_tables import final_table, front_table, summary

__all__ = ["dropping"]  # the fixture

WHOLE = sum(p.numel() for p in Network().parameters())


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)


def ledger_of(folder: Path) -> Ledger:
    return Ledger(folder / runs.LEDGER, read_only=True)


@pytest.mark.parametrize("estimator", ["full", "racing"])
@pytest.mark.parametrize(
    "failpoint", ["ask.after_commit", "result.before_commit", "tell.before_commit"]
)
def test_killed_and_resumed_it_equals_an_uninterrupted_search(
    estimator: str, failpoint: str, tmp_path: Path, dropping: list[Dropping]
) -> None:
    toy = DroppingToy(estimator=estimator)
    expected = outcome_of(toy.run(tmp_path / "whole"))
    for occurrence in (1, 3):
        assert forked(lambda: toy.run(tmp_path / "parts"), f"{failpoint}:{occurrence}") == -9
    toy.run(tmp_path / "parts")
    assert outcome_of(tmp_path / "parts") == expected


@pytest.mark.parametrize("estimator", ["full", "racing"])
def test_what_is_told_and_reported_is_what_torch_counts(
    estimator: str, tmp_path: Path, dropping: list[Dropping]
) -> None:
    toy = DroppingToy(estimator=estimator)
    toy.run(tmp_path)
    ledger = ledger_of(tmp_path)
    seen = set()
    for id_, evaluation in ledger.evaluations().items():
        assert evaluation.score is not None
        size = evaluation.score.objectives["size"]
        recipe = ledger.candidates[id_].recipe
        assert recipe is not None
        assert (size.value, size.standard_error, size.num_items) == (-parameters_of(recipe), 0.0, 0)
        seen.add(size.value)
    assert len(seen) > 3
    final = ledger.final()
    assert final is not None
    for row in (final["best"], *final["front"], *final["references"].values()):
        recipe = ledger.candidates[row["candidate"]].recipe
        assert recipe is not None
        for part in {"search", "fresh", "holdout"} & row.keys():
            assert row[part]["size"]["value"] == -parameters_of(recipe)
            assert row[f"{part}_mean"]["value"] == pytest.approx(row[part]["mean"]["value"])
    assert {row["holdout"]["size"]["value"] for row in final["references"].values()} == {-WHOLE}
    gain = final["gain_over_best_reference"]
    rival = final["references"][gain["reference"]]["holdout"]["mean"]["value"]
    assert gain["value"] == pytest.approx(final["best"]["holdout"]["mean"]["value"] - rival)


def test_the_cheapest_is_among_the_finalists_and_the_choice_can_be_bound(
    tmp_path: Path, dropping: list[Dropping]
) -> None:
    bound = 120
    select = {"at_least": {"size": -bound}}
    toy = DroppingToy(budget=60)
    config = toy.config()
    bounded = config.fitness.select.model_validate(select)
    fitness = config.fitness.model_copy(update={"select": bounded, "finalists": 8})
    config = config.model_copy(update={"fitness": fitness})
    runs.run_experiment(config, tmp_path, in_memory=toy.given())
    ledger = ledger_of(tmp_path)
    final = ledger.final()
    assert final is not None
    sizes = [e.score.objectives["size"].value for e in ledger.evaluations().values() if e.score]
    assert min(-size for size in sizes) < bound < max(-size for size in sizes)
    assert max(sizes) in {row["holdout"]["size"]["value"] for row in final["front"]}
    assert -final["best"]["holdout"]["size"]["value"] <= bound


def test_limits_refuse_before_any_merge(tmp_path: Path, dropping: list[Dropping]) -> None:
    limits = {"layers": 3, "parameters": {"of_base": 0.7}}
    toy = DroppingToy("random", keys={"limits": limits})
    toy.run(tmp_path)
    ledger = ledger_of(tmp_path)
    refused, measured = 0, {data["candidate"] for _, _, data in ledger.events("measured")}
    for id_, evaluation in ledger.evaluations().items():
        space = dropping[0]
        recipe = Dropping.decode(space, ledger.candidates[id_].genome)
        size, layers = parameters_of(recipe), len(recipe.slots or ())
        expected = [f"layers: {layers}, the limit is 3"] if layers > 3 else []
        if size > 0.7 * WHOLE:
            expected = [f"parameters: {size}, the limit is {0.7 * WHOLE:.4g}", *expected]
        assert list(ledger.candidates[id_].violations) == expected
        assert (evaluation.score is None) == bool(expected)
        if expected:
            refused += 1
            assert id_ not in measured
            assert evaluation.failure is not None
            assert evaluation.failure.kind == "violation"
            assert evaluation.violation == len(expected)
    assert 0 < refused < len(ledger.evaluations())


def test_no_genome_is_decoded_twice(tmp_path: Path, dropping: list[Dropping]) -> None:
    DroppingToy("random", keys={"limits": {"layers": 3}}).run(tmp_path)
    asked = [c for id_, c in ledger_of(tmp_path).candidates.items() if id_ >= 0]
    assert sum(g == asked[0].genome for g in dropping[0].decoded) == 1
    beside = SAMPLES + 2 * 4 + 2  # random recipes, designs twice, and each expert alone
    assert len(dropping[0].decoded) <= len(asked) + beside


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"layers": 0.5}, "limits.layers: "),
        ({"layers": {"of_base": 0.1}}, "limits.layers: 0.4 is too little for any model"),
        ({"parameters": 30}, r"limits.parameters: 30 is too little .* has 39"),
        ({"parameters": {"of_bse": 1}}, "unknown key"),
        ({"paramters": 1e6}, "did you mean 'parameters'"),
        ({"bytes": "many"}, "limits.bytes: "),
    ],
)
def test_limits_that_nothing_can_keep(
    limits: Any, told: str, tmp_path: Path, dropping: list[Dropping]
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        DroppingToy(keys={"limits": limits}).run(tmp_path)


def test_limits_are_numbers_however_they_are_written() -> None:
    written = DroppingToy(keys={"limits": {"parameters": "120e6", "bytes": {"of_base": 0.5}}})
    limits = written.config().limits
    assert limits.parameters == 120_000_000
    assert DroppingToy().config().identity() == {
        key: value for key, value in written.config().identity().items() if key != "limits"
    }
    assert len(states()["base"]) == 4 * DEPTH + 2


def test_tables_show_costs_in_short(tmp_path: Path, dropping: list[Dropping]) -> None:
    from rich.console import Console

    DroppingToy().run(tmp_path)
    final = ledger_of(tmp_path).final()
    assert final is not None
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    console.print(final_table(final))
    console.print(front_table(final["front"]))
    text = console.export_text()
    assert f" {WHOLE} " in text
    assert f"-{WHOLE}" not in text  # that a cost is maximised inside is no user's business
    assert f"{WHOLE}.000" not in text
    size = -final["best"]["holdout"]["size"]["value"]
    rival = final["gain_over_best_reference"]["reference"]
    assert f"Costs, size: {size:.4g}; {rival}: {WHOLE}" in summary(final)
    console.file.close()
