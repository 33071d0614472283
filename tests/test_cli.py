"""The command line in-process: what verbs print, and what bad input comes to."""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge import Run
from evomerge.cli import app, main
from evomerge.experiment.config import read_experiment
from evomerge.experiment.plan import plan_experiment

sys.path.insert(0, str(Path(__file__).parent / "results"))
from small_run import SPLIT, write_experiment

VERBS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)  # type: ignore[union-attr]


class Called:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def evomerge(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Called]:
    """Call the command line; a traceback would come out of it as an exception."""

    def call(*arguments: Any) -> Called:
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Called(int(caught.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def finished(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run of two objectives."""
    folder = tmp_path_factory.mktemp("finished")
    objectives = {"sort": "sort", "back": "back"}
    searcher = {"kind": "nsga2", "population": 6}
    path = write_experiment(folder, tiny_zoo, objectives=objectives, searcher=searcher)
    command = [sys.executable, "-m", "evomerge", "run", str(path), "--out", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Gain over the best reference" in done.stdout
    assert f"evomerge export {folder / 'run'} --best" in done.stdout
    return folder / "run"


# --- help -----------------------------------------------------------------------------------------


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); sys.argv = ['evomerge', '--help']\n"
        "import evomerge.cli\n"
        "try: evomerge.cli.main()\n"
        "except SystemExit: print('LOADED', time.perf_counter() - start, *sys.modules)"
    )
    best = 99.0
    for _ in range(3):  # other processes may be busy
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        _, seconds, *modules = done.stdout[done.stdout.index("LOADED") :].split()
        assert set(modules).isdisjoint({"torch", "lm_eval", "transformers", "numpy", "matplotlib"})
        best = min(best, float(seconds))
        if best <= 1:
            break
    assert best <= 1
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", done.stdout)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_a_text_for_the_verb_and_each_of_its_options(
    verb: str, evomerge: Callable[..., Called]
) -> None:
    import typer.main

    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    assert len(command.help or "") > 20
    for parameter in command.params:
        assert len(getattr(parameter, "help", None) or "") > 5, parameter.name
    called = evomerge(verb, "--help")
    assert called.code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["rnu"],
        ["run"],
        ["run", "x", "--bugdet", "3"],
        ["run", "x", "--budget", "0"],
        ["run", "x", "--budget", "many"],
        ["run", "x", "--seed", "-1"],
        ["run", "x", "--workers", "-1"],
        ["status"],
        ["score", "x"],
    ],
)
def test_wrong_arguments_end_with_2_and_usage(
    arguments: list[str], evomerge: Callable[..., Called]
) -> None:
    called = evomerge(*arguments)
    assert called.code == 2
    assert "Usage: evomerge" in called.err


# --- bad files ------------------------------------------------------------------------------------


def test_all_problems_of_all_files_are_told_at_once(
    tiny_zoo: Path, tmp_path: Path, evomerge: Callable[..., Called]
) -> None:
    path = write_experiment(tmp_path, tiny_zoo, space="space.yaml")
    (tmp_path / "space.yaml").write_text(
        "kind: weights\noperator: ties\nserch: {}\nsearch:\n  densty: {range: [0, 1]}\n"
    )
    fitness = yaml.safe_load((tmp_path / "fitness.yaml").read_text())
    fitness["tasks"]["sort"]["num_fewshots"] = 3
    fitness["tasks"]["back"]["batch_size"] = "big"
    fitness["objectives"]["mean"]["tasks"].append("rto")
    fitness["estimator"] = {"kind": "racing", "rugns": [3]}
    fitness["select"] = {"weights": {"maen": 1}}
    (tmp_path / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
    text = path.read_text().replace("population", "popultion")
    path.write_text("sede: 3\n" + text)
    before = sorted(tmp_path.rglob("*"))
    called = evomerge("run", path, "--out", tmp_path / "run")
    assert called.code == 2
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written
    head, *problems = called.err.strip().splitlines()
    told = [
        r"space.yaml:3 serch: unknown key .did you mean 'search'",
        r"space.yaml:5 search.densty: ties has no such parameter .did you mean 'density'",
        r"fitness.yaml:\d+ tasks.sort.num_fewshots: unknown key .did you mean 'num_fewshot'",
        r"fitness.yaml:\d+ tasks.back.batch_size: should be a valid integer, got 'big'",
        r"fitness.yaml:\d+ objectives.mean: no task 'rto'",
        r"fitness.yaml:\d+ estimator.rugns: unknown key .did you mean 'rungs'",
        r"fitness.yaml:\d+ select.weights.maen: no such objective .did you mean 'mean'",
        r"experiment.yaml:1 sede: unknown key .did you mean 'seed'",
        r"experiment.yaml:\d+ searcher.popultion: unknown key .did you mean 'population'",
    ]
    assert head == f"evomerge: {len(told)} problems"
    for pattern in told:
        assert sum(bool(re.search(pattern, line)) for line in problems) == 1, (pattern, called.err)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: a\nbase: b\n", r":2 base: the key stands twice"),
        ("- a\n- b\n", r":1: expected a mapping, got \['a', 'b'\]"),
        ("", "the file is empty"),
        ("base: [\n", "not valid YAML"),
        ("budget: {candidates: lots}\n", ":1 budget.candidates: should be a valid integer.*'lots'"),
        ("space: 3\n", ":1 space: should be a file, a name in the catalogue, or a mapping, got 3"),
        ("space: per_expret\n", ":1 space -> per_expret: no such file.*did you mean 'per_expert'"),
        ("fitness: ./nowhere.yaml\n", ":1 fitness -> .*nowhere.yaml: no such file"),
        (
            "searcher: {kind: cmaes}\n",
            ":1 searcher.kind: unknown .* 'cmaes' .did you mean 'cma_es'",
        ),
        ("pool: {kind: local, workes: 1}\n", ":1 pool.workes: unknown key .did you mean 'workers'"),
        ("experts: [a, b]\n", ":1 experts: should be a mapping"),
        ("experts: {base: x}\n", "`base` is the base model's own name"),
        ("seed: -1\n", ":1 seed: should be greater than or equal to 0, got -1"),
        ("seed: .nan\n", ":1 seed: should be a finite number"),
        ("budget: {}\n", "at least one of candidates, item_evaluations, hours"),
    ],
)
def test_a_bad_experiment_is_told_with_its_line(
    text: str, told: str, tmp_path: Path, evomerge: Callable[..., Called]
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    for verb in ("run", "validate", "plan"):
        called = evomerge(verb, path)
        assert called.code == 2
        assert re.search(told, called.err), called.err
        assert called.out == ""


def test_a_missing_experiment_names_the_nearest(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evomerge: Callable[..., Called]
) -> None:
    monkeypatch.chdir(tmp_path)
    called = evomerge("run", "quikstart")
    assert called.code == 2
    assert "did you mean 'quickstart'" in called.err
    (tmp_path / "quickstart").mkdir()  # a folder of that name hides nothing
    assert evomerge("validate", "quickstart").code == 0
    called = evomerge("run", tmp_path / "none" / "x.yaml")
    assert (called.code, "no such file" in called.err) == (2, True)
    assert list(tmp_path.iterdir()) == [tmp_path / "quickstart"]


# --- bad models -----------------------------------------------------------------------------------


def damaged(zoo: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(zoo / "sort", folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_bad_models_end_with_3_and_their_names(
    tiny_zoo: Path, tmp_path: Path, evomerge: Callable[..., Called]
) -> None:
    shutil.copytree(tiny_zoo / "sort", tmp_path / "models" / "sorting")
    truncated = tmp_path / "models" / "truncated"
    shutil.copytree(tiny_zoo / "sort", truncated)
    data = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(data[:-1000])
    pickled = tmp_path / "models" / "weights.pt"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    norm = "model.norm.weight"
    head = "lm_head.weight"

    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        tensors[norm] = tensors[norm][:-1].clone()

    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[norm][3] = float("nan")

    def cut_words(tensors: dict[str, torch.Tensor]) -> None:
        tensors[head] = tensors[head][:-2].clone()
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-2].clone()

    cases = {
        tmp_path / "models" / "sortin": (2, "did you mean 'sorting'"),
        truncated: (3, "model.safetensors"),
        pickled: (3, "pickle"),
        damaged(tiny_zoo, tmp_path / "models" / "short", shorten): (
            3,
            f"sort: tensor '{norm}'.*63",
        ),
        damaged(tiny_zoo, tmp_path / "models" / "nan", poison): (3, f"sort.*'{norm}'.*NaN"),
        damaged(tiny_zoo, tmp_path / "models" / "words", cut_words): (3, "lm_head.*shape"),
        "zoo:tiny/sorted": (2, "did you mean 'sort'"),
        "zoo:tinny/sort": (2, "did you mean 'tiny'"),
    }
    for model, (code, told) in cases.items():
        experts = {"sort": str(model), "back": str(tiny_zoo / "back")}
        path = write_experiment(tmp_path / "experiment", tiny_zoo, experts=experts)
        for verb in ("validate", "run"):
            out = ["--out", tmp_path / "run"] if verb == "run" else []
            called = evomerge(verb, path, *out)
            assert called.code == code, (model, called.err)
            assert re.search(told, called.err), called.err
            assert "valid\n" not in called.out
        assert not (tmp_path / "run" / "ledger.sqlite").exists()
    called = evomerge(
        "score", tmp_path / "models" / "nan", "--fitness", tmp_path / "experiment" / "fitness.yaml"
    )
    assert (called.code, called.out) == (3, "")
    assert "NaN" in called.err


def test_code_in_a_task_file_runs_only_when_the_user_says_so(
    tiny_zoo: Path, tmp_path: Path, evomerge: Callable[..., Called]
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "code.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "def text(doc):\n    return doc['question']\n"
    )
    (evil / "data.json").write_text(
        json.dumps([{"question": f"S{i}", "answer": "a"} for i in range(99)])
    )
    (evil / "task.yaml").write_text(
        "task: evil\ndataset_path: json\ntest_split: test\noutput_type: generate_until\n"
        f"dataset_kwargs:\n  data_files:\n    test: {evil / 'data.json'}\n"
        "doc_to_text: !function code.text\ndoc_to_target: answer\n"
        "generation_kwargs: {until: ['=']}\n"
    )
    entry = {"task": "evil", "path": str(evil / "task.yaml")}
    objective = {"objectives": {"mean": "evil"}}
    path = write_experiment(tmp_path / "a", tiny_zoo, tasks={"evil": entry}, **objective)
    said = {**entry, "allow_code": True}  # a file cannot give itself leave
    own = write_experiment(tmp_path / "b", tiny_zoo, tasks={"evil": said}, **objective)
    whole = write_experiment(
        tmp_path / "c", tiny_zoo, tasks={"evil": entry}, allow_code=True, **objective
    )
    fitness = path.parent / "fitness.yaml"
    for arguments in (
        ["run", path], ["run", own], ["run", whole], ["plan", path], ["plan", whole],
        ["validate", whole], ["score", tiny_zoo / "base", "--fitness", fitness],
    ):  # fmt: skip
        out = ["--out", tmp_path / "run"] if arguments[0] == "run" else []
        called = evomerge(*arguments, *out)
        assert called.code == 2, called.err
        assert re.search("allow.code", called.err)
        assert not (tmp_path / "ran").exists()
    assert "code.py" in evomerge("validate", path).err  # what would run
    kind = f"python:{evil / 'code.py'}:text"
    for number, python in enumerate(({"kind": kind}, {"kind": kind, "allow_code": True})):
        own = write_experiment(
            tmp_path / f"python{number}", tiny_zoo, tasks={"evil": python}, **objective
        )
        fitness = own.parent / "fitness.yaml"
        for arguments in (
            ["run", own, "--out", tmp_path / "run"], ["plan", own], ["validate", own],
            ["score", tiny_zoo / "base", "--fitness", fitness],
        ):  # fmt: skip
            called = evomerge(*arguments)
            assert called.code == 2, called.err
            assert "--allow-code" in called.err
            assert not (tmp_path / "ran").exists()
    assert "if you trust it, add --allow-code" in evomerge("run", whole).err


# --- folders --------------------------------------------------------------------------------------


def test_a_budget_that_has_been_spent_is_refused(finished: Path, evomerge: Any) -> None:
    before = (finished / "experiment.yaml").read_bytes()
    called = evomerge("resume", finished, "--budget", 3)
    assert called.code == 2
    assert re.search(r"--budget 3: \d+ candidates are told already", called.err)
    assert (finished / "experiment.yaml").read_bytes() == before


@pytest.mark.parametrize("verb", ["resume", "status", "front", "digest", "export"])
def test_a_folder_without_a_run_is_said_so(
    verb: str, tmp_path: Path, evomerge: Callable[..., Called]
) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        out = ["--out", tmp_path / "models"] if verb == "export" else []
        called = evomerge(verb, folder, *out)
        assert called.code == 2
        assert "no run here" in called.err
        assert called.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_is_a_file_is_refused(
    tiny_zoo: Path, tmp_path: Path, evomerge: Callable[..., Called]
) -> None:
    path = write_experiment(tmp_path, tiny_zoo)
    called = evomerge("run", path, "--out", path)
    assert called.code == 2
    assert str(path) in called.err


def test_a_candidate_that_is_not_there_is_refused(
    finished: Path, tmp_path: Path, evomerge: Callable[..., Called]
) -> None:
    called = evomerge("export", finished, "--out", tmp_path / "x", "--candidate", 99)
    assert called.code == 2
    assert "no candidate 99 to merge (last: 11)" in called.err
    called = evomerge("export", finished, "--out", tmp_path / "x", "--best", "--front")
    assert called.code == 2
    assert not (tmp_path / "x").exists()


def test_the_doctor_takes_the_pool_that_a_run_would_take(
    tiny_zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    evomerge: Callable[..., Called],
) -> None:
    """What the file says of one pool does not hold for another."""
    from evomerge.experiment import doctor

    asked: list[Any] = []
    monkeypatch.setattr(doctor, "examine_cluster", lambda config, _: asked.append(config) or [])
    path = write_experiment(tmp_path, tiny_zoo, pool={"workers": 3, "device": "cpu"})
    evomerge("doctor", path, "--pool", "ray", "--address", "head:6379")
    assert [(one.workers, one.device, one.address) for one in asked] == [
        ("auto", "auto", "head:6379")
    ]
    called = evomerge("doctor", path, "--address", "head:6379")
    assert (called.code, "add --pool ray" in called.err) == (2, True)


# --- what verbs print -----------------------------------------------------------------------------


def test_status_has_what_scripts_read(finished: Path, evomerge: Callable[..., Called]) -> None:
    facts = json.loads(evomerge("status", finished, "--json").out)
    assert facts["state"] == "finished"
    assert facts["candidates"] == 12
    assert facts["failed"] == 0
    assert facts["item_evaluations"] == Run(finished).ledger.measurements.item_evaluations
    assert set(facts["incumbent"]["objectives"]) == {"sort", "back"}
    final = facts["final"]
    assert {"base", "sort", "back", "uniform"} < set(final["references"])
    for row in (final["best"], *final["references"].values()):
        for estimate in row["holdout"].values():
            assert 0 <= estimate["value"] <= 1
            assert estimate["standard_error"] >= 0
            assert estimate["num_items"] == SPLIT["holdout"]
    gain = final["gain_over_best_reference"]
    means = {name: row["holdout_mean"]["value"] for name, row in final["references"].items()}
    assert gain["reference"] == max(means, key=means.__getitem__)
    assert gain["value"] == pytest.approx(
        final["best"]["holdout_mean"]["value"] - max(means.values())
    )
    assert gain["low"] <= gain["value"] <= gain["high"]
    text = evomerge("status", finished).out
    assert "finished: 12 candidates (0 failed)" in text
    rows = [line for line in text.splitlines() if "±" in line]
    assert re.search(r"\bbase\b", rows[1])  # the models themselves come first, in the user's order
    assert "best" in rows[-1]


def test_front_as_json_and_csv_say_the_same(
    finished: Path, evomerge: Callable[..., Called]
) -> None:
    rows = json.loads(evomerge("front", finished, "--json").out)
    table = list(csv.DictReader(io.StringIO(evomerge("front", finished, "--csv").out)))
    assert [int(line["candidate"]) for line in table] == [row["candidate"] for row in rows]
    for line, row in zip(table, rows, strict=True):
        for name in ("sort", "back"):
            assert float(line[name]) == row["holdout"][name]["value"]
            assert float(line[f"{name}_standard_error"]) == row["holdout"][name]["standard_error"]
    assert evomerge("front", finished).code == 0


def test_digest_is_the_ledgers(finished: Path, evomerge: Callable[..., Called]) -> None:
    assert evomerge("digest", finished).out.strip() == Run(finished).ledger.digest()


def test_score_equals_the_runs_own_numbers(
    finished: Path, tiny_zoo: Path, tmp_path: Path, evomerge: Callable[..., Called]
) -> None:
    fitness = ["--fitness", finished.parent / "fitness.yaml", "--json"]
    final = Run(finished).status()["final"]
    row = final["references"]["sort"]
    scored = json.loads(evomerge("score", tiny_zoo / "sort", *fitness).out)
    assert scored["search"] == row["search"]
    assert scored["holdout"] == row["holdout"]

    best = final["best"]
    assert evomerge("export", finished, "--best", "--out", tmp_path / "best").code == 0
    again = json.loads(evomerge("score", tmp_path / "best", *fitness).out)
    recipe = tmp_path / "best" / "evomerge_recipe.yaml"
    by_recipe = json.loads(evomerge("score", recipe, *fitness).out)
    for part in ("search", "fresh", "holdout"):
        assert again[part] == by_recipe[part] == best[part]


def test_plan_agrees_with_what_a_run_spends(finished: Path, tiny_zoo: Path, tmp_path: Path) -> None:
    path = finished.parent / "experiment.yaml"
    figures = plan_experiment(read_experiment(path))
    number = {
        k: int(str(v).split()[0].replace(",", "")) for k, v in figures.items() if "items:" in k
    }
    per_model = 2 * SPLIT["search"]
    ledger = Run(finished).ledger
    spent: dict[int, int] = {}
    for _, cohort, data in ledger.events("measured"):
        spent[cohort] = spent.get(cohort, 0) + data["num_items"]
    assert number["items: search"] == 12 * per_model
    searched = sum(items for cohort, items in spent.items() if cohort >= 0)
    # Candidates with equal recipes, and those that a reference equals, are measured once.
    assert searched <= number["items: search"] <= searched + 4 * per_model
    assert number["items: references"] == 24 * per_model  # 4 models, 20 points of the grid
    assert ledger.measurements.item_evaluations <= number["items: all"] + 12 * 2 * SPLIT["holdout"]
    assert figures["genes"] == 2


# --- models that are written ----------------------------------------------------------------------


def test_exports_are_plain_models_with_the_resident_models_answers(
    finished: Path, tmp_path: Path, evomerge: Callable[..., Called]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evomerge.experiment.wire import open_models
    from evomerge.merging.resident import Resident

    run = Run(finished)
    assert evomerge("export", finished, "--candidate", 7, "--out", tmp_path / "seven").code == 0
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "seven").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "seven")("Sqhxbe=", return_tensors="pt")
    resident = Resident.open(open_models(run.config).checkpoints, "base")
    resident.write(run.candidate(7).recipe)  # type: ignore[arg-type]
    with torch.no_grad():
        theirs, ours = (m(**tokens).logits for m in (module, resident.module))
    assert torch.equal(theirs, ours)

    # The recipe beside it makes the same model again, bit for bit.
    recipe = tmp_path / "seven" / "evomerge_recipe.yaml"
    assert evomerge("merge", recipe, "--out", tmp_path / "again").code == 0
    stored = [load_file(tmp_path / name / "model.safetensors") for name in ("seven", "again")]
    merged = run.merge(7)
    for name, tensor in merged.items():
        assert torch.equal(stored[0][name], tensor)
        assert torch.equal(stored[1][name], tensor)
    card = (tmp_path / "seven" / "README.md").read_text()
    assert "base_model_relation: merge" in card


def test_the_whole_front_is_exported_a_folder_each(
    finished: Path, tmp_path: Path, evomerge: Callable[..., Called]
) -> None:
    called = evomerge("export", finished, "--front", "--out", tmp_path)
    names = {f"candidate_{row['candidate']}" for row in Run(finished).front()}
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == names
    assert called.out.count("wrote") == len(names)
    assert called.out.count("answers are the recorded ones") == len(names)
    for name in names:
        card = (tmp_path / name / "README.md").read_text()
        assert "| objective | search items | fresh | holdout |" in card


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"default": {"operator": "tise"}}, 2, "unknown operator 'tise' .did you mean 'ties'"),
        ({"defualt": {}}, 2, r"recipe.yaml:\d+ defualt: unknown key"),
        (
            {"default": {"operator": "ties", "parameters": {"densty": 1}}},
            2,
            "did you mean 'density'",
        ),
        ({"models": {"base": "x/base", "sort": "x/srot"}}, 3, "does not exist"),
        ({"slots": [{"layer": 50}, {"layer": 0}]}, 2, "there is no layer 50"),
        ({"default": {"operator": "linear", "parameters": {"weight": {"sort": 0}}}}, 3, "sum to 0"),
    ],
)
def test_a_recipe_that_cannot_be_merged_is_told(
    change: dict[str, Any], code: int, told: str, tiny_zoo: Path, tmp_path: Path,
    evomerge: Callable[..., Called],
) -> None:  # fmt: skip
    models = {name: str(tiny_zoo / name) for name in ("base", "sort")}
    data = {"base": "base", "models": models, "default": {"operator": "ties"}, **change}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    called = evomerge("merge", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    assert called.code == code, called.err
    assert re.search(told, called.err), called.err
    assert not (tmp_path / "out").exists()


def test_small_verbs_say_something(tiny_zoo: Path, evomerge: Callable[..., Called]) -> None:
    assert "task_arithmetic" in evomerge("operators").out
    called = evomerge("doctor")
    assert called.code == 0
    assert "quickstart" in called.out
    assert evomerge("zoo", "tinny").code == 2
    assert "sort" in evomerge("zoo", "tiny").out


def test_a_run_through_a_pipe_is_plain_text(finished: Path) -> None:
    start = time.perf_counter()
    command = [sys.executable, "-m", "evomerge", "status", str(finished)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert time.perf_counter() - start < 60
    assert np.isfinite(Run(finished).status()["final"]["best"]["holdout_mean"]["value"])
