"""A user's code in a fitness file: only where it is allowed, in all places where tasks are made."""

from __future__ import annotations

import importlib
import linecache
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_lm_eval_task import Resident
from torch import nn

from evomerge.documents import Document, read_yaml
from evomerge.errors import CandidateError, ConfigurationError
from evomerge.experiment.config import read_experiment, read_fitness
from evomerge.experiment.run import run_experiment
from evomerge.experiment.score import score_model
from evomerge.experiment.wire import wire
from evomerge.fitness import make_task
from evomerge.ledger import Ledger

CODE = """
import numpy as np
import torch
from evomerge.records import Responses

FACTOR = 2.0

def norm(module, items, scale=1.0):
    total = sum(float(p.double().abs().sum()) for p in module.parameters())
    return [scale * total / (1 + item) for item in items]

norm.num_items = 12

def weird(module, items):
    special = {3: ValueError("weird"), 4: float("nan")}
    return [special.get(item, float(item == 5)) for item in items]

weird.num_items = 8
weird.worst = 0.0

def broken(module, items):
    raise RuntimeError("not today")

def changes(module, items):
    with torch.no_grad():
        module.weight.mul_(2)
    return [0.0]

class Sizes:
    def __init__(self, factor=1.0):
        self.factor = factor
    def __len__(self):
        return 6
    def respond(self, model, items):
        biggest = max(float(p.abs().max()) for p in model.module.parameters())
        return Responses("sizes", np.array(items), {
            "score": np.array([self.factor * biggest] * len(items), np.float32),
            "twice": np.array([2.0] * len(items), np.float32)})

class Empty:
    def respond(self, model, items): ...

class Odd:
    items = (3, 5, 7)
    def __init__(self, how):
        self.how = how
    def respond(self, model, items):
        score = np.array(items, np.float32)
        answers = {
            "order": (sorted(items)[::-1], {"score": score}),
            "fewer": (list(items)[:2], {"score": score[:2]}),
            "short": (items, {"score": score[:2]}),
            "nameless": (items, {"scores": score}),
            "text": (items, {"score": score}),
        }
        found, columns = answers[self.how]
        texts = ("a",) if self.how == "text" else None
        return Responses("odd", np.array(found), columns, texts)

class Some:
    def __init__(self, items):
        self.items = items
    def respond(self, model, items):
        return [0.0] * len(items)
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    return f"python:{tmp_path}/mine.py"


@pytest.fixture
def model() -> Resident:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.fill_(-2.0)
    return Resident(module, None)


def made(kind: str, **options: Any) -> Any:
    return make_task("t", {"kind": kind, "allow_code": True, **options})


def test_a_function_gets_the_module_the_items_and_the_options(code, model):
    task = made(f"{code}:norm", scale=3.0)
    assert list(task.items) == list(range(12))
    assert task.respond(model, [1, 0]).columns["score"].tolist() == [12.0, 24.0]
    assert list(made(f"{code}:norm", num_items=5).items) == [0, 1, 2, 3, 4]


def test_a_class_is_made_once_and_may_have_columns(code, model):
    task = made(f"{code}:Sizes", factor=0.5)
    found = task.respond(model, [4, 2])
    assert found.columns["score"].tolist() == [1.0, 1.0]
    assert found.columns["twice"].tolist() == [2.0, 2.0]
    assert found.task == "t"


def test_single_items_may_fail(code, model):
    found = made(f"{code}:weird").respond(model, [2, 3, 4, 5])
    assert found.columns["score"].tolist() == [0, 0, 0, 1]
    assert found.failures == {3: "ValueError: weird", 4: "the score is not finite"}
    with pytest.raises(CandidateError, match=r"RuntimeError: not today \(mine.py:\d+\)"):
        made(f"{code}:broken").respond(model, [0])
    with pytest.raises(CandidateError, match="changed the model's tensors"):
        made(f"{code}:changes").respond(model, [0])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("order", "to the items 7, 5, 3, asked were 3, 5, 7: return them in that order"),
        ("fewer", "to the items 3, 5, asked were 3, 5, 7"),
        ("short", r"'score' has shape \(2,\), expected \(3,\)"),
        ("nameless", r"no column 'score' \(did you mean 'scores'"),
        ("text", "1 texts were returned for 3 items"),
    ],
)
def test_responses_have_to_be_to_what_was_asked(code, model, how, message):
    with pytest.raises(CandidateError, match=message):
        made(f"{code}:Odd", how=how).respond(model, [3, 5, 7])


def test_code_runs_only_where_it_is_allowed(code):
    Path(code.removeprefix("python:")).write_text("raise SystemExit('it ran')")
    with pytest.raises(
        ConfigurationError, match=r"would run norm of .*mine.py \(code runs only.*--allow-code"
    ):
        make_task("t", {"kind": f"{code}:norm"})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("{code}:nrom", "no 'nrom' in .*did you mean 'norm'"),
        ("{code}:FACTOR", "neither a function nor a class"),
        ("{code}:Empty", "neither `items` nor a length"),
        ("python:nowhere/at.py:all", "no such file: nowhere/at.py"),
        ("python:no_such_package.name", "cannot be imported: ModuleNotFoundError"),
        ("python:", "names no code"),
    ],
)
def test_what_is_wrong_is_said(code, kind, message):
    with pytest.raises(ConfigurationError, match=message):
        made(kind.format(code=code))
    with pytest.raises(ConfigurationError, match="Sizes cannot be made: TypeError"):
        made(f"{code}:Sizes", fctor=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_items": "abc"}, "num_items: should be a valid integer"),
        ({"num_items": 2.5}, "num_items: should be a valid integer"),
        ({"num_items": 0}, "num_items: should be greater than or equal to 1"),
        ({"worst": "abc"}, "worst: should be a valid number"),
        ({"worst": float("nan")}, "worst: should be a finite number"),
        ({"name": "n"}, "name: the task has this key itself"),
        ({"code": "c"}, "code: the task has this key itself"),
    ],
)
def test_options_are_looked_at_before_code_runs(code, options, message):
    with pytest.raises(ConfigurationError, match=message):
        made(f"{code}:norm", **options)
    tasks = {"t": {"kind": f"{code}:norm", **options}}
    with pytest.raises(ConfigurationError, match=rf"tasks\.t\.{message}"):
        read_fitness(Document({"tasks": tasks, "objectives": {"t": "t"}}))


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("num_items = 'abc'", "task t num_items: should be a whole number from 1, got 'abc'"),
        ("num_items = -1", "task t num_items: should be a whole number from 1, got -1"),
        ("worst = float('inf')", "task t worst: should be a finite number, got inf"),
    ],
)
def test_attributes_are_looked_at_as_well(tmp_path, attribute, message):
    file = tmp_path / "own.py"
    file.write_text(f"def f(module, items):\n    return items\nf.{attribute}\n")
    with pytest.raises(ConfigurationError, match=message):
        made(f"python:{file}:f")


def test_items_are_whole_numbers(code):
    with pytest.raises(ConfigurationError, match="items of Some are no whole numbers"):
        made(f"{code}:Some", items=["a"])


def test_a_kind_is_a_name():
    with pytest.raises(ConfigurationError, match=r"tasks.t.kind: unknown kind \['a'\]"):
        read_fitness(Document({"tasks": {"t": {"kind": ["a"]}}, "objectives": {"t": "t"}}))


def test_the_fingerprint_follows_the_source_and_the_options(tmp_path):
    def fingerprint(text: str, name: str, folder: str = "a", **options: Any) -> str:
        file = tmp_path / folder / "mine.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        found: str = made(f"python:{file}:{name}", **options).fingerprint
        return found

    for name in ("norm", "Sizes"):
        here = fingerprint(CODE, name)
        assert fingerprint(CODE, name, "b") == here
        changed = CODE.replace("1 + item", "2 + item").replace("biggest]", "-biggest]")
        assert fingerprint(changed, name) != here
    assert fingerprint(CODE, "norm", scale=2.0) != fingerprint(CODE, "norm", scale=3.0)


def test_the_fingerprint_of_a_class_follows_its_items_and_where_it_comes_from(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "data.json").write_text("[1, 2, 3]")
    theirs = "import json, pathlib\nclass Theirs:\n    items = json.loads("
    theirs += f"pathlib.Path({str(tmp_path / 'data.json')!r}).read_text())\n"
    theirs += "    def respond(self, model, items):\n        return [1.0] * len(items)\n"
    (tmp_path / "theirs.py").write_text(theirs)
    (tmp_path / "named.py").write_text("from theirs import Theirs\n")

    def fingerprint() -> str:
        for name in [n for n in sys.modules if n == "theirs" or n.startswith("_evomerge_task_")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        linecache.clearcache()
        found: str = made(f"python:{tmp_path / 'named.py'}:Theirs").fingerprint
        return found

    first = fingerprint()
    assert fingerprint() == first
    (tmp_path / "data.json").write_text("[4, 5, 6]")
    other_items = fingerprint()
    (tmp_path / "theirs.py").write_text(theirs.replace("1.0", "2.00"))
    assert len({first, other_items, fingerprint()}) == 3


def test_a_package_on_the_path_serves_as_well(code, model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    task = made("python:mine.norm")
    assert task.fingerprint == made(f"{code}:norm").fingerprint
    assert task.respond(model, [0]).columns["score"].tolist() == [8.0]


# --- in a search ----------------------------------------------------------------------------------


@pytest.fixture
def experiment(code: str, tmp_path: Path) -> Path:
    fitness = {
        "tasks": {"mine": {"kind": "python:mine.py:norm", "scale": 0.001}},
        "objectives": {"small": {"tasks": ["mine"], "minimize": True}},
        "split": {"search": 4, "fresh": 4, "holdout": 4},
        "finalists": 2,
    }
    (tmp_path / "fitness.yaml").write_text(yaml.safe_dump(fitness))
    content = {
        "base": "zoo:tiny/base",
        "experts": {name: f"zoo:tiny/{name}" for name in ("sort", "rot")},
        "space": "per_expert",
        "fitness": "fitness.yaml",
        "searcher": {"kind": "random"},
        "budget": {"candidates": 4},
        "cohort": 2,
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "experiment.yaml"


def test_processes_run_it_too_and_a_moved_file_is_the_same_experiment(
    experiment, tiny_zoo, tmp_path
):
    config = read_experiment(experiment)
    with pytest.raises(ConfigurationError, match="--allow-code"):
        wire(config)
    digests = []
    for workers in (0, 1):
        pool = config.pool.model_copy(update={"workers": workers})
        allowed = config.model_copy(update={"allow_code": True, "pool": pool})
        folder = run_experiment(allowed, tmp_path / f"run{workers}")
        ledger = Ledger(folder / "ledger.sqlite", read_only=True)
        digests.append(ledger.digest())
        ledger.close()
    assert digests[0] == digests[1]
    identity = wire(allowed).identity
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("mine.py", "fitness.yaml", "experiment.yaml"):
        (moved / name).write_text((tmp_path / name).read_text())
    again = read_experiment(moved / "experiment.yaml").model_copy(update={"allow_code": True})
    assert wire(again).identity == identity


def test_score_and_validate_take_it(experiment, tiny_zoo, tmp_path):
    fitness = str(tmp_path / "fitness.yaml")
    with pytest.raises(ConfigurationError, match="--allow-code"):
        score_model("zoo:tiny/rot", fitness)
    rows = score_model("zoo:tiny/rot", fitness, allow_code=True)
    assert np.isfinite(rows["holdout"]["small"]["value"])
    assert (
        read_fitness(read_yaml(Path(fitness)))
        .tasks["mine"]["kind"]
        .startswith(f"python:{tmp_path}")
    )
    for flags, code in (([], 2), (["--allow-code"], 0)):
        command = [sys.executable, "-m", "evomerge", "validate", str(experiment), *flags]
        assert subprocess.run(command, capture_output=True, check=False).returncode == code
