"""Several models at home: what stands beside them, that they are the merges, and going on.

The oracle is the run's own ledger and final table, and transformers, which loads the folders.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from small_run import SPLIT, write_experiment

import evomerge
from evomerge.cli import app
from evomerge.errors import ConfigurationError, ModelError
from evomerge.experiment import rescore
from evomerge.experiment.chosen import Choice
from evomerge.experiment.config import read_experiment
from evomerge.experiment.exports import ExportOptions, export_chosen, folder_name
from evomerge.experiment.rescore import Rescorer
from evomerge.experiment.run import run_experiment
from evomerge.ledger import LEDGER, Ledger
from evomerge.pareto import knee

NO_CHECK = ExportOptions(verify=0)


@pytest.fixture(scope="module")
def folder(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two accuracies and a cost, so that its front has several points."""
    place = tmp_path_factory.mktemp("front")
    experiment = write_experiment(
        place,
        tiny_zoo,
        name="a small front",
        objectives={"sort": "sort", "back": "back", "size": {"cost": "parameters"}},
        searcher={"kind": "nsga2", "population": 6},
        finalists=6,
        seed=1,
    )
    return run_experiment(read_experiment(experiment), place / "run")


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first three models of it, verified on everything."""
    out = tmp_path_factory.mktemp("exported") / "models"
    export_chosen(folder, out, Choice("top", count=3), ExportOptions(verify=None))
    return out


def told(out: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((out / "front.json").read_text())
    return data


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what stands beside them ----------------------------------------------------------------------


def test_the_table_is_the_final_one_in_the_users_units(folder: Path, tmp_path: Path) -> None:
    final = evomerge.Run(folder).status()["final"]
    done = export_chosen(folder, tmp_path / "out", Choice("front"), NO_CHECK)
    data = told(tmp_path / "out")
    assert data["complete"] is True
    assert [o["better"] for o in data["objectives"]] == ["more", "more", "less"]
    assert len(data["models"]) == len(done) == len(final["front"])
    for entry, row in zip(data["models"], final["front"], strict=True):
        assert entry["candidate"] == row["candidate"]
        assert entry["best"] == (row["candidate"] == final["best"]["candidate"])
        assert entry["front"] is True
        for part in ("holdout", "fresh", "search", "told"):
            assert entry["objectives"]["sort"][part] == row[part]["sort"]
            assert entry["objectives"]["size"][part]["value"] == -row[part]["size"]["value"] > 0
        assert entry["mean_of_objectives"]["holdout"] == row["holdout_mean"]
        assert (tmp_path / "out" / entry["folder"] / "model.safetensors").exists()
    assert data["references"].keys() == final["references"].keys()
    assert [entry["candidate"] for entry in data["models"] if entry["knee"]] == [
        final["front"][
            knee([[e["value"] for e in row["fresh"].values()] for row in final["front"]])
        ]["candidate"]
    ]
    for line, entry in zip(
        csv.DictReader(io.StringIO((tmp_path / "out" / "front.csv").read_text())),
        data["models"],
        strict=True,
    ):
        assert int(line["candidate"]) == entry["candidate"]
        assert line["fingerprint"] == entry["fingerprint"]
        assert float(line["size"]) == entry["objectives"]["size"]["holdout"]["value"]
        assert float(line["sort_told"]) == entry["objectives"]["sort"]["told"]["value"]
        assert int(line["sort_items"]) == SPLIT["holdout"]
        error = entry["objectives"]["back"]["fresh"]["standard_error"]
        assert float(line["back_fresh_standard_error"]) == error


def test_the_front_verb_prints_the_same_rows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_chosen(folder, tmp_path / "out", Choice("front"), NO_CHECK)
    app(["front", str(folder), "--csv"], standalone_mode=False)
    printed = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    written = list(csv.DictReader(io.StringIO((tmp_path / "out" / "front.csv").read_text())))
    assert [{**line, "folder": ""} for line in written] == printed
    app(["front", str(folder), "--json"], standalone_mode=False)
    rows = json.loads(capsys.readouterr().out)
    assert [row["fingerprint"] for row in rows] == [line["fingerprint"] for line in printed]
    size = rows[0]["objectives"]["size"]["holdout"]["value"]
    assert rows[0]["holdout"]["size"]["value"] == -size < 0  # as it always was, and as it is read


def test_the_first_are_those_of_the_last_choice(folder: Path, exported: Path) -> None:
    """Brute force: the mean of the measured objectives over the fresh items, from the ledger."""
    run = evomerge.Run(folder)
    final, known = run.status()["final"], run.ledger.measurements
    fresh = {
        task: sorted(
            item
            for responses in run.ledger.recorded(final["best"] and run.best().fingerprint)
            if responses.task == task and len(responses.items) == SPLIT["fresh"]
            for item in responses.items.tolist()
        )
        for task in ("sort", "back")
    }
    assert all(len(items) == SPLIT["fresh"] for items in fresh.values())
    means = {}
    for id_, candidate in run.ledger.candidates.items():
        values = [known.values(candidate.fingerprint, t, items) for t, items in fresh.items()]
        if id_ >= 0 and not np.isnan(np.concatenate(values)).any():
            means.setdefault(candidate.fingerprint, float(np.mean(values)))
    models = told(exported)["models"]
    assert models[0]["candidate"] == final["best"]["candidate"]
    found = [means[entry["fingerprint"]] for entry in models]
    assert found == sorted(means.values(), reverse=True)[:3]
    with pytest.raises(ConfigurationError, match="different merges were measured"):
        export_chosen(folder, exported, Choice("top", count=1000), NO_CHECK)


# --- they are the merges --------------------------------------------------------------------------


def test_every_held_out_answer_is_the_recorded_one(folder: Path, exported: Path) -> None:
    on_front = [e for e in told(exported)["models"] if "holdout" in e["objectives"]["sort"]]
    assert on_front
    for entry in on_front:
        assert entry["verification"]["verified"] is True
        for task in ("sort", "back"):
            counts = entry["verification"]["tasks"][task]
            everything = SPLIT["holdout"]
            assert counts["part"] == "holdout"
            assert counts["items"] == counts["of"] == counts["to_the_last_bit"] == everything
            assert counts["different"] == 0


def test_plain_transformers_gives_the_recorded_texts(folder: Path, exported: Path) -> None:
    """The oracle is `generate`, prompt by prompt, and the task's own file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evomerge.files import catalogue_folder

    lines = (catalogue_folder("fitness") / "tasks" / "tiny" / "sort.jsonl").read_text().splitlines()
    entry = told(exported)["models"][0]
    model = AutoModelForCausalLM.from_pretrained(exported / entry["folder"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported / entry["folder"])
    with closing(Ledger(folder / LEDGER, read_only=True)) as ledger:
        (recorded,) = [
            responses
            for responses in ledger.recorded(entry["fingerprint"])
            if responses.task == "sort" and len(responses.items) == SPLIT["holdout"]
        ]
    assert recorded.texts is not None
    for item, text, score in zip(
        recorded.items.tolist(), recorded.texts, recorded.columns["score"], strict=True
    ):
        document = json.loads(lines[item])
        inputs = tokenizer(document["prompt"], return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]).split("</s>")[0]
        assert answer == text
        assert (answer == document["answer"]) == bool(score)


def rescorer(folder: Path, num_items: int | None) -> Rescorer:
    run = evomerge.Run(folder)
    return Rescorer(run.config, run.ledger, run._checkpoints(), num_items)


def test_a_model_that_is_another_one_is_refused(
    folder: Path, exported: Path, tmp_path: Path
) -> None:
    """The oracle is the ledger: where the answers of the two candidates differ."""
    run = evomerge.Run(folder)
    ours, others = (run.candidate(e["candidate"]) for e in told(exported)["models"][:2])
    wrong = tmp_path / "wrong"
    shutil.copytree(exported / folder_name({"label": "", "candidate": others.id}), wrong)
    known = run.ledger.measurements
    items = range(run.ledger.meta["num_items"]["sort"])
    pair = [known.values(c.fingerprint, "sort", items, "score") for c in (ours, others)]
    differ = np.flatnonzero(np.abs(pair[0] - pair[1]) == 1)
    with pytest.raises(ModelError) as caught:
        rescorer(folder, None).check(ours, wrong)
    text = str(caught.value)
    assert f"{wrong}: task sort, item " in text
    assert "expected" in text
    assert "got" in text
    for problem in caught.value.problems:
        if "its score" in problem.what:
            assert int(problem.where.split("item ")[1]) in differ
    assert rescorer(folder, None).check(others, wrong)["verified"]


def test_a_change_that_only_other_batches_make_is_none(
    folder: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample that differs is asked again as the run did; here the sample's answers are spoilt."""
    from evomerge.fitness.lm_eval_task import LmEvalTask

    entry = told(exported)["models"][0]
    respond = LmEvalTask.respond
    asked: list[int] = []

    def spoilt(self: Any, model: Any, items: Any) -> Any:
        asked.append(len(items))
        got = respond(self, model, items)
        if len(items) == SPLIT["holdout"]:
            return got
        columns = {**got.columns, "score": 1 - got.columns["score"]}
        return replace(got, columns=columns)

    monkeypatch.setattr(LmEvalTask, "respond", spoilt)
    candidate = evomerge.Run(folder).candidate(entry["candidate"])
    counts = rescorer(folder, 4).check(candidate, exported / entry["folder"])["tasks"]["sort"]
    assert asked == [4, SPLIT["holdout"]] * 2
    assert counts["different"] == 0
    assert counts["items"] == SPLIT["holdout"]


def test_on_another_machine_few_differences_are_told_and_many_are_an_error(
    folder: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.fitness.lm_eval_task import LmEvalTask

    entry = told(exported)["models"][0]
    respond, spoilt = LmEvalTask.respond, [1]

    def another(self: Any, model: Any, items: Any) -> Any:
        got = respond(self, model, items)
        score = got.columns["score"].copy()
        score[: spoilt[0]] = 1 - score[: spoilt[0]]
        return replace(got, columns={**got.columns, "score": score})

    monkeypatch.setattr(LmEvalTask, "respond", another)
    candidate = evomerge.Run(folder).candidate(entry["candidate"])
    here = exported / entry["folder"]
    with pytest.raises(ModelError, match="1 of 30 answers differ"):
        rescorer(folder, None).check(candidate, here)
    facts = rescore.session_facts()
    monkeypatch.setattr(rescore, "session_facts", lambda: {**facts, "instructions": "ALTIVEC"})
    found = rescorer(folder, None).check(candidate, here)
    assert found["tasks"]["sort"]["different"] == 1
    assert "is ALTIVEC" in found["otherwise"][0]
    spoilt[0] = 2
    with pytest.raises(ModelError, match="other than in the run: instructions was"):
        rescorer(folder, None).check(candidate, here)


@pytest.mark.parametrize("fact", ["instructions", "scoring"])
def test_last_bits_count_where_nothing_was_changed(
    folder: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, fact: str
) -> None:
    """On another processor, or since answers are asked otherwise, all of them may differ so."""
    from evomerge.fitness.lm_eval_task import LmEvalTask

    entry = told(exported)["models"][0]
    respond, compare, off = LmEvalTask.respond, rescore.Comparison.__init__, [3e-5]

    def between(answers: Any, off: float = 0.0) -> Any:
        """No whole numbers: of those, all bits count."""
        columns = {name: 0.5 * values + 0.25 - off for name, values in answers.columns.items()}
        return replace(answers, columns=columns)

    def recorded(self: Any, answers: Any, places: Any) -> None:
        compare(self, list(map(between, answers)), places)

    def answered(self: Any, model: Any, items: Any) -> Any:
        return between(respond(self, model, items), off[0])

    monkeypatch.setattr(rescore.Comparison, "__init__", recorded)
    monkeypatch.setattr(LmEvalTask, "respond", answered)
    candidate = evomerge.Run(folder).candidate(entry["candidate"])
    here = exported / entry["folder"]
    with pytest.raises(ModelError, match="30 of 30 answers differ"):
        rescorer(folder, None).check(candidate, here)
    facts = rescore.session_facts()
    monkeypatch.setattr(rescore, "session_facts", lambda: {**facts, fact: "another"})
    found = rescorer(folder, None).check(candidate, here)
    assert found["tasks"]["sort"] | {"different": 0, "to_the_last_bit": 0} == found["tasks"]["sort"]
    assert "is another" in found["otherwise"][0]
    off[0] = 1e-3
    with pytest.raises(ModelError, match="30 of 30 answers differ"):
        rescorer(folder, None).check(candidate, here)


# --- going on, and what is refused ----------------------------------------------------------------


def test_what_is_there_is_kept_and_what_was_damaged_is_not(
    folder: Path, exported: Path, tmp_path: Path
) -> None:
    out = tmp_path / "models"
    shutil.copytree(exported, out)
    names = [entry["folder"] for entry in told(out)["models"]]
    damaged = out / names[1] / "model.safetensors"
    shutil.copy(out / names[0] / "model.safetensors", damaged)
    (out / names[0] / "README.md").unlink()
    (out / names[2] / "README.md").write_text("nothing")
    done = export_chosen(folder, out, Choice("top", count=3), ExportOptions(verify=None))
    assert [e.kept for e in done] == [True, False, True]
    assert files_below(out) == files_below(exported)


def test_what_was_verified_stays_so(folder: Path, tmp_path: Path) -> None:
    choice = Choice("top", count=2)
    for number in (3, 0, 2):  # the last two are less than what is known already
        export_chosen(folder, tmp_path, choice, ExportOptions(verify=number))
        for model in told(tmp_path)["models"]:
            assert model["verification"]["verified"] is True
            assert model["verification"]["tasks"]["sort"]["items"] == 3


def test_foreign_folders_are_left_alone(folder: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"has a README.md that evomerge did not write"):
        export_chosen(folder, tmp_path, Choice("front"), NO_CHECK)
    assert (tmp_path / "README.md").read_text() == "mine"
    one = exported / told(exported)["models"][0]["folder"]
    with pytest.raises(ConfigurationError, match="holds a model"):
        export_chosen(folder, one, Choice("front"), NO_CHECK)
    with pytest.raises(ConfigurationError, match="was not written by evomerge"):
        export_chosen(folder, exported, Choice("best"), NO_CHECK)
    out = tmp_path / "out"
    theirs = out / told(exported)["models"][-1]["folder"] / "theirs"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(ConfigurationError, match="was not written by evomerge"):
        export_chosen(folder, out, Choice("top", count=3), NO_CHECK)
    assert [path for path in out.rglob("*") if path.is_file()] == [theirs]  # nothing was merged


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--top", "2", "--front"], "choose one of"),
        (["--verify", "some"], "expected a number of items, all or none, got 'some'"),
        (["--public"], "add --push"),
        (["--candidate", "1000", "--candidate", "2000"], "no candidate 2000"),
        (["--push", "nobody"], "expected ORG/NAME"),
        (["--push", "a/b/c"], "expected ORG/NAME"),
        (["--push", "a/b"], "stay offline"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(
    arguments: list[str], text: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=text):
        app(
            ["export", str(folder), "--out", str(tmp_path / "x"), *arguments], standalone_mode=False
        )
    assert not (tmp_path / "x").exists()


def test_one_objective_has_no_knee_and_two_have(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "knee"), "--verify", "2"]
    app(["export", str(folder), "--knee", *out], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "4 of 4 answers are the recorded ones (sort 2 of 30 holdout; back 2 of" in printed
    facts = json.loads((tmp_path / "knee" / "evomerge_export.json").read_text())
    assert facts["knee"] is True
    from evomerge.results.exported_rows import knee_of

    assert knee_of([]) is None
    assert knee_of([{"candidate": 1, "holdout": {"one": {"value": 1.0}}}]) is None


@pytest.mark.parametrize(
    ("label", "number", "name"),
    [
        ("", 17, "candidate_17"),
        ("recommended after 12", -40, "recommended_after_12_candidate_minus_40"),
        ("../../etc/passwd", -1, "etc_passwd_candidate_minus_1"),
        ("\n`rm`|", -2, "rm_candidate_minus_2"),
    ],
)
def test_a_folders_name_is_a_bare_name(label: str, number: int, name: str) -> None:
    assert folder_name({"label": label, "candidate": number}) == name


# --- the whole front of the quickstart ------------------------------------------------------------


@pytest.mark.slow
def test_the_quickstarts_front_answers_as_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_zoo: Path
) -> None:
    """The oracle is lm-eval's own `simple_evaluate` on the folders, with its own loading."""
    import lm_eval
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from evomerge.experiment.config import find_in_catalogue
    from evomerge.files import catalogue_folder

    path = find_in_catalogue("quickstart_pareto", "experiments", Path.cwd())
    run = run_experiment(read_experiment(path), tmp_path / "run")
    done = export_chosen(run, tmp_path / "out", Choice("front"), ExportOptions(verify=None))
    assert len(done) > 10
    tasks = catalogue_folder("fitness") / "tasks" / "tiny"
    monkeypatch.chdir(tasks)
    monkeypatch.setattr(evaluator, "add_env_info", lambda storage: None)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    compared = 0
    with closing(Ledger(run / LEDGER, read_only=True)) as ledger:
        for exported in done:
            assert all(t["different"] == 0 for t in exported.verification["tasks"].values())
            recorded = {
                f"evomerge_tiny_{r.task}": r
                for r in ledger.recorded(exported.row["fingerprint"])
                if len(r.items) == 544
            }
            results = lm_eval.simple_evaluate(
                model=HFLM(pretrained=str(exported.folder), batch_size=256, device="cpu"),
                task_manager=manager,
                tasks=list(recorded),
                samples={task: r.items.tolist() for task, r in recorded.items()},
                bootstrap_iters=0,
            )
            for task, responses in recorded.items():
                found = {s["doc_id"]: s for s in results["samples"][task]}
                assert responses.texts is not None
                texts = zip(responses.items.tolist(), responses.texts, strict=True)
                assert all(found[item]["resps"][0][0] == text for item, text in texts)
                scores = [found[item]["exact_match"] for item in responses.items.tolist()]
                assert scores == responses.columns["score"].tolist()
                compared += len(scores)
    assert compared == 3 * 544 * len(done)
    print(f"{len(done)} models, {compared} held-out answers equal")
