"""R5: damaged and hostile model files, by the command line.

Passes if: exit code 3, a clear message, and nothing else is read; and of 300 mutated folders
(20,000 in `make fuzz`) each opens or is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contained import Watch, contained
from damaged_models import DAMAGED, FOLDERS
from drivers import command_line, two_models
from fuzz_models import fuzz
from safetensors.torch import save_file

LIMIT_S = 1.0
LIMIT_KB = 200_000


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """What the children would else import in their second."""
    import transformers  # noqa: F401

    import evomerge.cli
    import evomerge.experiment.recipes
    import evomerge.results.export  # noqa: F401


def refused(tmp_path: Path, expert: Path, figure: Any) -> str:
    """What `evomerge merge` says of a model that it must refuse."""
    path = two_models(tmp_path, expert)

    def work(_: Watch) -> Any:
        return command_line("merge", str(path), "--out", str(tmp_path / "merged"))

    allowed = [tmp_path / "expert", tmp_path / "base", path]
    ended = contained(work, allowed, limit_s=5.0)
    assert ended.result is not None, f"killed by signal {ended.signal}"
    code, out, err = ended.result
    assert (code, out) == (3, ""), err
    assert "Traceback" not in err
    figure("R5", "until a model is refused", ended.cpu_s, LIMIT_S)
    figure("R5", "more memory", ended.grown_kb / 1000, LIMIT_KB / 1000, unit="MB")
    figure("R5", "reads outside the model's folder", len(ended.outside), 0, unit="")
    assert not (tmp_path / "merged").exists()
    return str(err)


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_ends_with_3(tmp_path: Path, case: str, figure: Any) -> None:
    content, word = DAMAGED[case]
    (tmp_path / "expert").mkdir()
    (tmp_path / "expert" / "model.safetensors").write_bytes(content)
    err = refused(tmp_path, tmp_path / "expert", figure)
    assert "expert/model.safetensors" in err
    assert word in err
    assert len(err.splitlines()) <= 22


@pytest.mark.parametrize("case", FOLDERS)
def test_a_damaged_folder_ends_with_3(tmp_path: Path, case: str, figure: Any) -> None:
    make, word = FOLDERS[case]
    make(tmp_path / "expert")
    err = refused(tmp_path, tmp_path / "expert", figure)
    assert str(tmp_path / "expert") in err
    assert word in err
    assert len(err.splitlines()) <= 22


def test_a_model_that_was_cut_off_is_one_line(tmp_path: Path, figure: Any) -> None:
    """The last 20 of 30 tensors are gone."""
    (tmp_path / "expert").mkdir()
    path = tmp_path / "expert" / "model.safetensors"
    save_file({f"t{i:02}": torch.ones(10) for i in range(30)}, path)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[: whole - 20 * 40 + 8])
    assert refused(tmp_path, tmp_path / "expert", figure) == (
        f"evomerge: model expert: {path}: is cut off at byte {whole - 792} of {whole} "
        "(20 tensors end after it, first 't10')\n"
    )


def test_there_are_cases_enough(figure: Any) -> None:
    name = "damaged files and folders"
    figure("R5", name, len(DAMAGED) + len(FOLDERS), 30, unit="", at_least=True)


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
