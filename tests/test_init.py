"""`evomerge init`: what it finds out of models, and that what it writes is valid.

The oracle for the base is who trained the others (the zoo's own), for files the parser.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.cli import main
from evomerge.experiment.config import read_experiment
from evomerge.experiment.first_look import checked_experiment
from evomerge.experiment.plan import plan_experiment
from evomerge.files import catalogue_folder

sys.path.insert(0, str(Path(__file__).parent))
from adapter_folders import lora

TASKS = catalogue_folder("fitness") / "tasks" / "tiny"


@pytest.fixture
def evomerge(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out + captured.err

    return call


Call = Callable[..., tuple[int, str]]


def copied(zoo: Path, folder: Path, names: dict[str, str]) -> list[Path]:
    """Models of the zoo under other names, which tell nothing."""
    for name, new in names.items():
        shutil.copytree(zoo / name, folder / new)
    return [folder / new for new in names.values()]


def test_a_zoo_has_its_fitness_and_the_experiment_can_be_run(
    tiny_zoo: Path, evomerge: Call, tmp_path: Path
) -> None:
    names = ("rot", "base", "sort", "back")
    code, told = evomerge("init", *(tiny_zoo / name for name in names))
    assert code == 0, told
    assert "base: base, by its name" in told
    config = checked_experiment(tmp_path / "my_search.yaml")
    assert Path(config.base).resolve() == (tiny_zoo / "base").resolve()
    assert list(config.experts) == ["rot", "sort", "back"]
    text = (tmp_path / "my_search.yaml").read_text()
    assert text.startswith("# ")
    assert "# yaml-language-server: $schema=" in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert plan_experiment(config)["genes"] == 3


def test_every_commented_alternative_is_valid_too(
    tiny_zoo: Path, evomerge: Call, tmp_path: Path
) -> None:
    assert evomerge("init", *sorted(tiny_zoo.glob("*/")), "--tasks", TASKS / "sort.yaml")[0] == 0
    path = tmp_path / "my_search.yaml"
    lines = path.read_text().splitlines()
    alternatives = [
        line for line in lines if line.startswith(("# space: ", "# dtype: ", "# pool:"))
    ]
    assert len(alternatives) >= 4
    for alternative in alternatives:
        key = alternative[2:].split(":")[0]
        changed = [line for line in lines if not line.startswith(f"{key}:")]
        other = tmp_path / "other.yaml"
        other.write_text("\n".join([*changed, alternative[2:]]))
        checked_experiment(other)


def test_tasks_or_texts_make_a_fitness(tiny_zoo: Path, evomerge: Call, tmp_path: Path) -> None:
    models = [tiny_zoo / name for name in ("base", "sort", "back")]
    tasks = ["--tasks", TASKS / "sort.yaml", "--tasks", TASKS / "back.yaml"]
    assert evomerge("init", *models, *tasks, "--out", "a.yaml")[0] == 0
    fitness = read_experiment(tmp_path / "a.yaml").fitness
    assert [entry["task"] for entry in fitness.tasks.values()] == [
        "evomerge_tiny_sort",
        "evomerge_tiny_back",
    ]
    (tmp_path / "lines.txt").write_text("some text\n" * 50)
    assert evomerge("init", *models, "--texts", "lines.txt", "--out", "b.yaml")[0] == 0
    [entry] = read_experiment(tmp_path / "b.yaml").fitness.tasks.values()
    assert entry["kind"] == "perplexity"


def test_the_base_is_found_by_cards_adapters_and_distances(
    tiny_zoo: Path, evomerge: Call, tmp_path: Path
) -> None:
    paths = copied(tiny_zoo, tmp_path / "m", {"sort": "a", "base": "b", "back": "c"})
    (paths[0] / "README.md").write_text("---\nbase_model: someone/b\n---\n# A model\n")
    extra = ("--tasks", TASKS / "sort.yaml", "--force")
    code, told = evomerge("init", *paths, *extra)
    assert (code, "base: b, named as the origin of a (README.md)" in told) == (0, True), told
    (paths[0] / "README.md").unlink()
    code, told = evomerge("init", *paths, *extra)
    assert code == 0
    assert "which is a guess" in told
    code, told = evomerge("init", *paths, *extra, "--base", "b")
    assert code == 0
    assert Path(read_experiment(tmp_path / "my_search.yaml").base).name == "b"
    assert evomerge("init", *paths, *extra, "--base", "x")[0] == 2


def test_models_are_found_in_the_folder_and_nothing_is_overwritten(
    tiny_zoo: Path, evomerge: Call, tmp_path: Path
) -> None:
    code, told = evomerge("init")
    assert code == 2
    assert "no models below" in told
    assert "evomerge init models/base" in told
    copied(tiny_zoo, tmp_path / "models", {"base": "base", "sort": "sort"})
    code, told = evomerge("init")
    assert (code, "which merge is better?" in told) == (2, True)
    code, told = evomerge("init", "--tasks", TASKS / "sort.yaml")
    assert code == 0, told
    data = yaml.safe_load((tmp_path / "my_search.yaml").read_text())
    assert (data["base"], data["experts"]) == ("models/base", {"sort": "models/sort"})
    before = (tmp_path / "my_search.yaml").read_bytes()
    code, told = evomerge("init", "--tasks", TASKS / "back.yaml")
    assert (code, "is there already (--force overwrites it)" in told) == (2, True)
    assert (tmp_path / "my_search.yaml").read_bytes() == before


def test_strangers_are_matched_or_refused(tiny_zoo: Path, evomerge: Call, tmp_path: Path) -> None:
    [base, sort, other] = copied(
        tiny_zoo, tmp_path / "m", {"base": "base", "sort": "sort", "back": "other"}
    )
    file = next(other.glob("*.safetensors"))
    generator = torch.Generator().manual_seed(1)
    noise = {k: torch.randn(v.shape, generator=generator) for k, v in load_file(file).items()}
    save_file(noise, file, metadata={"format": "pt"})
    code, told = evomerge("init", base, sort, other, "--tasks", TASKS / "sort.yaml")
    if code == 0:
        assert "other is of another training run: it is matched to the base first" in told
        assert read_experiment(tmp_path / "my_search.yaml").matches == {"other": "base"}
    else:
        assert code == 3
        assert "is not related to base" in told
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": 12}))
    half = {k: v[: v.shape[0] // 2].clone() for k, v in noise.items()}
    save_file(half, file, metadata={"format": "pt"})
    code, told = evomerge("init", base, sort, other, "--tasks", TASKS / "sort.yaml", "--force")
    assert code == 3
    assert "other" in told


def test_other_files_beside_models_are_passed_by(
    tiny_zoo: Path, evomerge: Call, tmp_path: Path
) -> None:
    copied(tiny_zoo, tmp_path / "models", {"base": "base", "sort": "sort"})
    (tmp_path / "models" / "README.md").write_text("what they are\n")
    paths = sorted((tmp_path / "models").iterdir())  # as a shell writes out models/*
    code, told = evomerge("init", *paths, "--tasks", TASKS / "sort.yaml")
    assert code == 0, told
    assert "README.md is no model: it is passed by" in told
    data = yaml.safe_load((tmp_path / "my_search.yaml").read_text())
    assert (data["base"], data["experts"]) == ("models/base", {"sort": "models/sort"})


def test_what_is_no_model_is_said(evomerge: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, told = evomerge("init", "empty", "nowhere")
    assert code == 2
    assert "evomerge: 2 problems" in told
    assert "nowhere: no model here (a folder with config.json" in told


def test_the_catalogue_is_copied_to_be_changed(evomerge: Call, tmp_path: Path) -> None:
    assert evomerge("init", "--catalogue", "mine")[0] == 0
    theirs = sorted(p.name for p in (tmp_path / "mine" / "search_spaces").glob("*.yaml"))
    assert theirs == sorted(p.name for p in catalogue_folder("search_spaces").glob("*.yaml"))
    checked_experiment(tmp_path / "mine" / "experiments" / "quickstart.yaml")
    assert evomerge("init", "--catalogue", "mine")[0] == 2
    for name in ("quickstart", "ties", "tiny_mean"):
        assert evomerge("init", "--copy", name)[0] == 0
    assert checked_experiment(tmp_path / "quickstart.yaml").name == "quickstart"
    code, told = evomerge("init", "--copy", "quikstart")
    assert (code, "did you mean 'quickstart'?" in told) == (2, True)


def test_an_adapter_names_its_base(tiny_zoo: Path, evomerge: Call, tmp_path: Path) -> None:
    [base] = copied(tiny_zoo, tmp_path / "m", {"base": "origin"})
    adapter = tmp_path / "m" / "adapter"
    lora(base, adapter)
    code, told = evomerge("init", adapter, base, "--tasks", TASKS / "sort.yaml")
    assert code == 0, told
    assert "base: origin, named as the origin of adapter (adapter_config.json)" in told


def test_a_schema_is_printed_or_written(evomerge: Call, tmp_path: Path) -> None:
    code, told = evomerge("schema", "space")
    assert (code, json.loads(told)["title"]) == (0, "evomerge: space")
    assert evomerge("schema", "--out", "s.json")[0] == 0
    assert json.loads((tmp_path / "s.json").read_text())["title"] == "evomerge: experiment"
    code, told = evomerge("schema", "spaces")
    assert (code, "did you mean 'space'?" in told) == (2, True)
