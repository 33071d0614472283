"""Hostile models through the command line: exit code 3, a clear message, nothing else read."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from contained import Watch, contained
from damaged_models import DAMAGED, FOLDERS
from fuzz_models import fuzz
from safetensors.torch import save_file

from evomerge.merging import OPERATORS

LIMIT_S = 1.0
LIMIT_KB = 200_000


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """What the children would else import in their second."""
    import transformers  # noqa: F401

    import evomerge.cli
    import evomerge.experiment.recipes
    import evomerge.results.export  # noqa: F401


def recipe(folder: Path, expert: Path, **default: Any) -> Path:
    """A recipe of a good base and the expert."""
    (folder / "base").mkdir(exist_ok=True)
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, folder / "base" / "model.safetensors")
    path = folder / "recipe.yaml"
    content = {
        "base": "base",
        "models": {"base": "base", "expert": str(expert)},
        "default": {"operator": "task_arithmetic", **default},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def command_line(*arguments: str) -> tuple[int, str, str]:
    """The exit code, and what was printed; a traceback goes up as an exception."""
    from evomerge.cli import main

    sys.argv = ["evomerge", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            return int(error.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def refused(tmp_path: Path, expert: Path) -> str:
    """What `evomerge merge` says of a model that it must refuse."""
    path = recipe(tmp_path, expert)

    def work(_: Watch) -> Any:
        return command_line("merge", str(path), "--out", str(tmp_path / "merged"))

    allowed = [tmp_path / "expert", tmp_path / "base", path]
    ended = contained(work, allowed, limit_s=5.0)
    assert ended.result is not None, f"killed by signal {ended.signal}"
    code, out, err = ended.result
    assert (code, out) == (3, ""), err
    assert "Traceback" not in err
    assert ended.outside == ()
    assert ended.cpu_s < LIMIT_S
    assert ended.grown_kb < LIMIT_KB
    assert not (tmp_path / "merged").exists()
    return str(err)


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_ends_with_3(tmp_path: Path, case: str) -> None:
    content, word = DAMAGED[case]
    (tmp_path / "expert").mkdir()
    (tmp_path / "expert" / "model.safetensors").write_bytes(content)
    err = refused(tmp_path, tmp_path / "expert")
    assert "expert/model.safetensors" in err
    assert word in err
    assert len(err.splitlines()) <= 22


@pytest.mark.parametrize("case", FOLDERS)
def test_a_damaged_folder_ends_with_3(tmp_path: Path, case: str) -> None:
    make, word = FOLDERS[case]
    make(tmp_path / "expert")
    err = refused(tmp_path, tmp_path / "expert")
    assert str(tmp_path / "expert") in err
    assert word in err
    assert len(err.splitlines()) <= 22


def test_a_model_that_was_cut_off_is_one_line(tmp_path: Path) -> None:
    """The last 20 of 30 tensors are gone."""
    (tmp_path / "expert").mkdir()
    path = tmp_path / "expert" / "model.safetensors"
    save_file({f"t{i:02}": torch.ones(10) for i in range(30)}, path)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[: whole - 20 * 40 + 8])
    assert refused(tmp_path, tmp_path / "expert") == (
        f"evomerge: model expert: {path}: is cut off at byte {whole - 792} of {whole} "
        "(20 tensors end after it, first 't10')\n"
    )


def test_the_watch_sees_what_is_opened(tmp_path: Path) -> None:
    """The test's own oracle: opening, listing and running outside are all noticed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_text("x")
    (tmp_path / "out.txt").write_text("x")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out.txt")

    def work(_: Watch) -> Any:
        (tmp_path / "in" / "x").read_text()
        (tmp_path / "in" / "link").read_text()
        list(tmp_path.iterdir())

    ended = contained(work, [tmp_path / "in"])
    assert [line.split()[0] for line in ended.outside] == ["open", "os.listdir"]
    hung = contained(lambda _: [None for _ in iter(int, 1)], [], limit_s=0.2)
    assert hung.result is None
    assert hung.signal == 14  # SIGALRM


# --- NaN and Inf ----------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_operator_swallows_what_is_not_finite(
    tmp_path: Path, operator: str, value: float
) -> None:
    """One bad number in one of two experts, and all weights above zero."""
    from evomerge import merge
    from evomerge.errors import CandidateError, ModelError

    generator = torch.Generator().manual_seed(0)
    state = {
        name: {"a.weight": torch.randn(8, 8, generator=generator)} for name in ("base", "x", "y")
    }
    state["y"]["a.weight"][3, 4] = value
    base = state.pop("base")
    experts = {"y": state["y"]} if OPERATORS[operator].max_sources == 1 else state
    with pytest.raises((CandidateError, ModelError), match=r"finite|NaN"):
        merge(experts, operator, base=base)


def test_an_expert_that_is_not_finite_ends_with_3_and_its_name(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        (tmp_path / "expert").mkdir(exist_ok=True)
        state = {"a": torch.ones(2), "b": torch.tensor([1.0, value])}
        save_file(state, tmp_path / "expert" / "model.safetensors")
        path = recipe(tmp_path, tmp_path / "expert")
        code, out, err = command_line("merge", str(path), "--out", str(tmp_path / "merged"))
        assert (code, out) == (3, "")
        assert "expert" in err
        assert "'b'" in err
        assert not (tmp_path / "merged").exists()


# --- mutations ------------------------------------------------------------------------------------


def test_mutated_models_open_or_are_refused(tmp_path: Path) -> None:
    """A sample of `make fuzz`: no crash, no hang, no read outside the folder."""
    found = fuzz(300, 7, tmp_path)
    assert found.wrong == []
    assert sum(found.counts.values()) == 300
    assert found.counts["opened"] > 5
    assert found.counts["refused"] > 150
    assert found.slowest_s < 5
    assert found.highest_kb < LIMIT_KB
