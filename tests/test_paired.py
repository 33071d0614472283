"""Of the benchmarks: paired comparisons, and runs that go on where they were stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_holm_is_that_of_the_textbook() -> None:
    from paired import holm

    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_a_difference_has_scipys_interval_and_is_judged_by_its_corrected_test() -> None:
    from paired import differences

    generator = np.random.default_rng(0)
    clear, nothing = generator.normal(1, 0.5, 12), generator.normal(0, 1, 12)
    found = {d.name: d for d in differences({"a > b": clear, "b > a": -clear, "c > d": nothing})}
    low, high = stats.ttest_1samp(clear, 0).confidence_interval(0.95)
    assert (found["a > b"].low, found["a > b"].high) == pytest.approx((low, high))
    assert found["a > b"].p_holm == pytest.approx(3 * stats.wilcoxon(clear).pvalue)
    assert found["a > b"].verdict == "holds"
    assert found["b > a"].verdict == "does not hold: the reverse"
    assert found["c > d"].verdict == "not told apart"


def test_digits_go_on_where_they_were_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from digits import compare

    def accuracies(folder: Path) -> dict[tuple[str, int], list[float]]:
        lines = map(json.loads, (folder / "pretrained-20.jsonl").read_text().splitlines())
        return {(line["variant"], line["run"]): line["accuracies"] for line in lines}

    names = ["M2N2", "GA", "MAP-Elites"]
    compare("pretrained", names, 2, 20, tmp_path / "whole", None)
    compare("pretrained", names[:2], 2, 20, tmp_path / "parts", None)
    with (tmp_path / "parts" / "pretrained-20.jsonl").open("r+") as file:
        file.truncate(len(file.read()) - 9)  # killed while it wrote the last run
    compare("pretrained", names, 2, 20, tmp_path / "parts", None)
    assert accuracies(tmp_path / "parts") == accuracies(tmp_path / "whole")
    assert "| M2N2 > GA |" in capsys.readouterr().out
