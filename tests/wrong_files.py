"""Experiment files with mistakes, and where each mistake is to be reported, with what hint.

`good_files` are an experiment without any; a case replaces some of its files. A problem is three
texts: the place (`file:line key`), a part of what is said, a part of the hint.
"""
# ruff: noqa: E501 - a table

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

E, S, F = "experiment.yaml", "space.yaml", "fitness.yaml"

EXPERIMENT = """\
name: wrong
base: models/base
experts:
  math: models/math
  code: models/code
space: space.yaml
fitness: fitness.yaml
searcher: {kind: cma_es, population: 12}
budget: {candidates: 100}
seed: 0
"""
SPACE = """\
kind: weights
operator: ties
search:
  weight: {per: [expert], range: [0, 1]}
  density: {range: [0.2, 1]}
fixed: {normalize: true}
"""
FITNESS = """\
tasks:
  sums: {task: sums, path: tasks/sums.yaml, batch_size: 64}
  words: {kind: perplexity, path: words.txt}
objectives:
  skill: {tasks: [sums]}
split: {search: 20, fresh: 10, holdout: 20}
"""
TASK = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match}]
"""
RECIPE = """\
base: base
models: {base: models/base, math: models/math, code: models/code}
default: {operator: ties, parameters: {weight: 0.5, density: 0.5}}
"""
TWO = "objectives: {skill: {tasks: [sums]}, fluent: {tasks: [words]}}"


def good_files() -> dict[str, str | bytes]:
    """Path -> content: an experiment with two experts, a space, a fitness, and its data."""
    return {
        E: EXPERIMENT,
        S: SPACE,
        F: FITNESS,
        "tasks/sums.yaml": TASK,
        "tasks/sums.jsonl": '{"question": "1+1=", "answer": "2"}\n' * 60,
        "words.txt": "some words\n" * 90,
        "recipe.yaml": RECIPE,
        **{f"models/{name}/config.json": "{}" for name in ("base", "math", "code")},
    }


@dataclass(frozen=True)
class Wrong:
    """A case.

    files: replace those of `good_files`. problems: all that are to be reported, and no more.
    """

    name: str
    files: dict[str, str | bytes]
    problems: tuple[tuple[str, str, str], ...]

    def write(self, folder: Path) -> Path:
        """Write all files; the experiment's path."""
        for name, content in {**good_files(), **self.files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / E


def _changed(file: str, *edits: tuple[str, str]) -> dict[str, str | bytes]:
    """A file of `good_files` with some texts replaced; each must be there once."""
    text = good_files()[file]
    assert isinstance(text, str)
    for old, new in edits:
        assert text.count(old) == 1, (file, old)
        text = text.replace(old, new)
    return {file: text}


def _case(name: str, file: str, edits: dict[str, str], *problems: tuple[str, str, str]) -> Wrong:
    return Wrong(name, _changed(file, *edits.items()), problems)


SEARCHER = "searcher: {kind: cma_es, population: 12}"
BUDGET = "budget: {candidates: 100}"
OBJECTIVES = "objectives:\n  skill: {tasks: [sums]}"
SPLIT = "split: {search: 20, fresh: 10, holdout: 20}"
DENSITY = "density: {range: [0.2, 1]}"
WEIGHT = "weight: {per: [expert], range: [0, 1]}"

CASES: tuple[Wrong, ...] = (
    # --- misspelt keys, at every depth ---
    _case(
        "key at the top",
        E,
        {"seed: 0": "sead: 0"},
        (f"{E}:10 sead", "unknown key", "did you mean 'seed'?"),
    ),
    _case(
        "key of an expert",
        E,
        {"math: models/math": "math: {pth: models/math}"},
        (f"{E}:4 experts.math.pth", "unknown key", "did you mean 'path'?"),
        (f"{E}:4 experts.math", "has no `path`", ""),
    ),
    _case(
        "key of the space",
        S,
        {"fixed:": "fixd:"},
        (f"{S}:6 fixd", "unknown key", "did you mean 'fixed'?"),
    ),
    _case(
        "key of what is searched",
        S,
        {DENSITY: "density: {rnge: [0.2, 1]}"},
        (f"{S}:5 search.density.rnge", "unknown key", "did you mean 'range'?"),
    ),
    _case(
        "key that could be given instead of another",
        S,
        {DENSITY: "density: {level: [0.2, 1]}"},
        (f"{S}:5 search.density.level", "unknown key", "did you mean 'levels'?"),
    ),
    _case(
        "key of the fitness",
        F,
        {"split:": "splt:"},
        (f"{F}:6 splt", "unknown key", "did you mean 'split'?"),
    ),
    _case(
        "key of a task",
        F,
        {"batch_size: 64": "bach_size: 64"},
        (f"{F}:2 tasks.sums.bach_size", "unknown key", "did you mean 'batch_size'?"),
    ),
    _case(
        "key of an objective",
        F,
        {"{tasks: [sums]}": "{tasks: [sums], minimise: true}"},
        (f"{F}:5 objectives.skill.minimise", "unknown key", "did you mean 'minimize'?"),
    ),
    _case(
        "key of an estimator",
        F,
        {SPLIT: "estimator: {kind: stratified, item: 20}\n" + SPLIT},
        (f"{F}:6 estimator.items", "this key is missing", ""),
        (f"{F}:6 estimator.item", "unknown key", "did you mean 'items'?"),
    ),
    _case(
        "key of an estimator in another",
        F,
        {SPLIT: "estimator: {kind: racing, estimator: {kind: stratified, stata: 4}}\n" + SPLIT},
        (f"{F}:6 estimator.estimator.stata", "unknown key", "did you mean 'strata'?"),
    ),
    _case(
        "key of a split",
        F,
        {"fresh: 10": "frsh: 10"},
        (f"{F}:6 split.frsh", "unknown key", "did you mean 'fresh'?"),
    ),
    _case(
        "key of select",
        F,
        {SPLIT: SPLIT + "\nselect: {at_lest: {skill: 0.5}}"},
        (f"{F}:7 select.at_lest", "unknown key", "did you mean 'at_least'?"),
    ),
    _case(
        "option of the searcher",
        E,
        {"population: 12": "popsize: 12"},
        (f"{E}:8 searcher.popsize", "unknown key", "did you mean 'population'?"),
    ),
    _case(
        "key of the budget",
        E,
        {"candidates": "candidate"},
        (f"{E}:9 budget.candidate", "unknown key", "did you mean 'candidates'?"),
    ),
    _case(
        "key of the pool",
        E,
        {"seed: 0": "pool:\n  kind: local\n  worker: 2"},
        (f"{E}:12 pool.worker", "unknown key", "did you mean 'workers'?"),
    ),
    _case(
        "key of the calibration",
        E,
        {"seed: 0": "calibration: {text: words.txt}"},
        (f"{E}:10 calibration.text", "unknown key", "did you mean 'texts'?"),
    ),
    # --- wrong types ---
    _case(
        "experts in a list",
        E,
        {"experts:\n  math: models/math\n  code: models/code": "experts: [models/math]"},
        (f"{E}:3 experts", "should be a mapping", "NAME: VALUE for each"),
    ),
    _case(
        "text for a number",
        E,
        {"seed: 0": "seed: zero"},
        (f"{E}:10 seed", "should be a valid integer, got 'zero'", ""),
    ),
    _case(
        "number in quotes for an option",
        E,
        {"population: 12": 'population: "12"'},
        (f"{E}:8 searcher.population", "should be a valid integer, got '12'", ""),
    ),
    _case(
        "fraction for a count",
        E,
        {"candidates: 100": "candidates: 10.5"},
        (f"{E}:9 budget.candidates", "should be a valid integer, got 10.5", ""),
    ),
    _case(
        "a number for a range",
        S,
        {"range: [0.2, 1]": "range: 0.5"},
        (f"{S}:5 search.density.range", "should be a list", ""),
    ),
    _case(
        "a range of three",
        S,
        {"range: [0.2, 1]": "range: [0.2, 0.5, 1]"},
        (f"{S}:5 search.density.range", "should have 2 values, got 3", ""),
    ),
    _case(
        "a kind alone for the searcher",
        E,
        {SEARCHER: "searcher: cma_es"},
        (f"{E}:8 searcher", "should be a mapping", "{kind: cma_es}"),
    ),
    _case(
        "a space that is a number",
        E,
        {"space: space.yaml": "space: 3"},
        (f"{E}:6 space", "should be a file, a name in the catalogue, or a mapping, got 3", ""),
    ),
    # --- missing files ---
    _case(
        "model that is not there",
        E,
        {"math: models/math": "math: models/mth"},
        (f"{E}:4 experts.math", "no such file or folder", "did you mean 'math'?"),
    ),
    _case(
        "base that is not there",
        E,
        {"base: models/base": "base: model/base"},
        (f"{E}:2 base", "no such file or folder", "did you mean 'models'?"),
    ),
    _case(
        "space that is not there",
        E,
        {"space: space.yaml": "space: ./spce.yaml"},
        (f"{E}:6 space -> spce.yaml", "no such file", "did you mean 'space.yaml'?"),
    ),
    _case(
        "fitness that is not there",
        E,
        {"fitness: fitness.yaml": "fitness: fits/fitness.yaml"},
        (f"{E}:7 fitness -> fits/fitness.yaml", "no such file", ""),
    ),
    _case(
        "name that is not in the catalogue",
        E,
        {"space: space.yaml": "space: per_experts"},
        (
            f"{E}:6 space -> per_experts",
            "no such name in search_spaces",
            "did you mean 'per_expert'?",
        ),
    ),
    _case(
        "task file that is not there",
        F,
        {"path: tasks/sums.yaml": "path: tasks/sum.yaml"},
        (f"{F}:2 tasks.sums.path", "no such file or folder", "did you mean 'sums.yaml'?"),
    ),
    _case(
        "task that is not in its file",
        F,
        {"task: sums": "task: sum"},
        (f"{F}:2 tasks.sums.task", "tasks/sums.yaml has no task 'sum'", "did you mean 'sums'?"),
    ),
    _case(
        "data that is not there",
        "tasks/sums.yaml",
        {"sums.jsonl": "sum.jsonl"},
        (
            "tasks/sums.yaml:3 dataset_kwargs.data_files.test",
            "no such file",
            "did you mean 'sums.jsonl'?",
        ),
    ),
    _case(
        "design that is not there",
        E,
        {"seed: 0": "designs:\n  - recipe.yaml\n  - recip.yaml"},
        (f"{E}:12 designs.1", "no such file", "did you mean 'recipe.yaml'?"),
    ),
    _case(
        "calibration texts that are not there",
        E,
        {"seed: 0": "calibration: {texts: word.txt}"},
        (f"{E}:10 calibration.texts", "no such file", "did you mean 'words.txt'?"),
    ),
    _case(
        "run to start from that is not there",
        E,
        {"seed: 0": "warm_start: runs/before"},
        (f"{E}:10 warm_start", "no run here", ""),
    ),
    # --- impossible values ---
    _case(
        "low above high",
        S,
        {"range: [0.2, 1]": "range: [1, 0]"},
        (f"{S}:5 search.density.range", "expected low < high, got [1, 0]", ""),
    ),
    _case(
        "density above 1",
        S,
        {"range: [0.2, 1]": "range: [0, 2]"},
        (f"{S}:5 search.density.range", "[0, 2] leaves the operator's [0, 1]", ""),
    ),
    _case(
        "budget of nothing",
        E,
        {"candidates: 100": "candidates: 0"},
        (f"{E}:9 budget.candidates", "should be greater than or equal to 1, got 0", ""),
    ),
    _case(
        "empty budget",
        E,
        {BUDGET: "budget: {}"},
        (f"{E}:9 budget", "at least one of candidates, item_evaluations, hours", ""),
    ),
    _case(
        "seed below 0",
        E,
        {"seed: 0": "seed: -1"},
        (f"{E}:10 seed", "should be greater than or equal to 0, got -1", ""),
    ),
    _case(
        "split of more than there is",
        F,
        {"search: 20": "search: 40"},
        (f"{F}:6 split", "sums has 60 items, the split asks for 40 search + 10 fresh + 20", ""),
    ),
    _case(
        "shares of more than all",
        F,
        {SPLIT: "split: {search: 0.6, fresh: 0.5}"},
        (f"{F}:6 split.search", "the shares sum to 1.1", ""),
    ),
    _case(
        "one expert for an operator of two",
        S,
        {SPACE: "kind: weights\noperator: slerp\nsearch: {t: {range: [0, 1]}}\n"},
        (f"{E}:3 experts", "slerp merges", ""),
    ),
    _case(
        "not a number",
        S,
        {"range: [0.2, 1]": "range: [.nan, 1]"},
        (f"{S}:5 search.density.range.0", "finite number", ""),
    ),
    # --- circles ---
    _case(
        "alias of itself",
        E,
        {BUDGET: "budget: &again {candidates: 100, target: *again}"},
        (f"{E}:9 budget.target", "refers to itself", ""),
    ),
    _case(
        "calibration in itself",
        E,
        {"seed: 0": "calibration: &again {texts: words.txt, of: *again}"},
        (f"{E}:10 calibration.of", "refers to itself", ""),
    ),
    _case(
        "space that is the experiment",
        E,
        {"space: space.yaml": "space: experiment.yaml"},
        (f"{E}:6 space", "is an experiment, and a search space is wanted", ""),
    ),
    _case(
        "fitness that is the space",
        E,
        {"fitness: fitness.yaml": "fitness: space.yaml"},
        (f"{E}:7 fitness", "is a search space, and a fitness is wanted", ""),
    ),
    _case(
        "task that uses its own prompts",
        F,
        {"words: {kind: perplexity, path: words.txt}": "words: {kind: entropy, of: words}"},
        (f"{F}:3 tasks.words.of", "uses the prompts of another task itself", ""),
    ),
    Wrong(
        "run that goes on from itself",
        {
            **_changed(E, ("base: models/base", "base: run:runs/first")),
            "runs/first/ledger.sqlite": b"",
            "runs/first/experiment.yaml": EXPERIMENT.replace("models/base", "run:../second"),
            "runs/second/ledger.sqlite": b"",
            "runs/second/experiment.yaml": EXPERIMENT.replace("models/base", "run:../first"),
        },
        ((f"{E}:2 base", "goes round in a circle", ""),),
    ),
    # --- not even YAML ---
    _case(
        "key that stands twice",
        E,
        {"seed: 0": "seed: 0\nbase: models/math"},
        (f"{E}:11 base", "the key stands twice", "first in line 2"),
    ),
    _case(
        "tabs",
        E,
        {"  math: models/math": "\tmath: models/math"},
        (f"{E}:4", "a tab", "spaces"),
    ),
    Wrong(
        "latin-1",
        {E: EXPERIMENT.replace("wrong", "fäls").encode("latin-1")},
        ((f"{E}:1", "is no text in UTF-8", ""),),
    ),
    Wrong("empty", {E: ""}, ((E, "the file is empty", "base, experts, space, fitness"),)),
    Wrong("comments alone", {E: "# nothing\n"}, ((E, "the file is empty", ""),)),
    Wrong("a list at the top", {E: "- base: x\n"}, ((f"{E}:1", "expected a mapping", ""),)),
    Wrong("bytes", {E: b"\x00\x01\x02"}, ((E, "not valid YAML", ""),)),
    _case(
        "bracket left open",
        E,
        {"{candidates: 100}": "{candidates: 100"},
        (f"{E}:10", "not valid YAML", ""),
    ),
    # --- names of what there is not ---
    _case(
        "searcher",
        E,
        {"kind: cma_es": "kind: cmaes"},
        (f"{E}:8 searcher.kind", "unknown searcher 'cmaes'", "did you mean 'cma_es'?"),
    ),
    _case(
        "searcher without a kind",
        E,
        {SEARCHER: "searcher: {population: 12}"},
        (f"{E}:8 searcher.kind", "this key is missing", "valid: "),
    ),
    _case(
        "kind of space",
        S,
        {"kind: weights": "kind: weight"},
        (f"{S}:1 kind", "unknown kind 'weight'", "did you mean 'weights'?"),
    ),
    _case(
        "operator",
        S,
        {"operator: ties": "operator: tise"},
        (f"{S}:2 operator", "unknown operator 'tise'", "did you mean 'ties'?"),
    ),
    _case(
        "parameter",
        S,
        {"density: {": "densty: {"},
        (f"{S}:5 search.densty", "ties has no such parameter", "did you mean 'density'?"),
    ),
    _case(
        "fixed parameter",
        S,
        {"normalize: true": "normalise: true"},
        (f"{S}:6 fixed.normalise", "no such parameter", "did you mean 'normalize'?"),
    ),
    _case(
        "axis",
        S,
        {"per: [expert]": "per: [experts]"},
        (f"{S}:4 search.weight.per.0", "should be", "did you mean 'expert'?"),
    ),
    _case(
        "kind of task",
        F,
        {"kind: perplexity": "kind: perplexty"},
        (f"{F}:3 tasks.words.kind", "unknown kind 'perplexty'", "did you mean 'perplexity'?"),
    ),
    _case(
        "kind of estimator",
        F,
        {SPLIT: SPLIT + "\nestimator: {kind: race}"},
        (f"{F}:7 estimator.kind", "unknown kind 'race'", "did you mean 'racing'?"),
    ),
    _case(
        "kind of pool",
        E,
        {"seed: 0": "pool: {kind: rey}"},
        (f"{E}:10 pool.kind", "should be", "did you mean 'ray'?"),
    ),
    _case(
        "dtype",
        E,
        {"seed: 0": "dtype: float8"},
        (f"{E}:10 dtype", "should be", "did you mean 'float32'?"),
    ),
    _case(
        "cost",
        F,
        {OBJECTIVES: OBJECTIVES + "\n  size: {cost: parameter}"},
        (f"{F}:6 objectives.size.cost", "should be", "did you mean 'parameters'?"),
        (f"{E}:8 searcher.kind", "cma_es searches one objective, got 2: skill, size", "nsga2"),
    ),
    _case(
        "tracker",
        E,
        {"seed: 0": "trackers: [tensorboad, {kind: wandb, projct: x}]"},
        (f"{E}:10 trackers.0", "unknown tracker 'tensorboad'", "did you mean 'tensorboard'?"),
        (f"{E}:10 trackers.1.projct", "unknown key", "did you mean 'project'?"),
    ),
    _case(
        "expert named base",
        E,
        {"math: models/math": "base: models/math"},
        (f"{E}:4 experts.base", "is the base model's own name", ""),
    ),
    _case(
        "objective of a task",
        F,
        {"{tasks: [sums]}": "{tasks: [sum]}"},
        (f"{F}:5 objectives.skill", "no task 'sum'", "did you mean 'sums'?"),
    ),
    _case(
        "select of an objective",
        F,
        {SPLIT: SPLIT + "\nselect: {weights: {skil: 1}}"},
        (f"{F}:7 select.weights.skil", "no such objective", "did you mean 'skill'?"),
    ),
    _case(
        "target for an objective",
        E,
        {"candidates: 100": "candidates: 100, target: {skil: 0.9}"},
        (f"{E}:9 budget.target.skil", "no objective 'skil'", "did you mean 'skill'?"),
    ),
    _case(
        "tokenizer",
        E,
        {"seed: 0": "tokenizer: maths"},
        (f"{E}:10 tokenizer", "no model 'maths'", "did you mean 'math'?"),
    ),
    _case(
        "match",
        E,
        {"math: models/math": "math: {path: models/math, match: cod}"},
        (f"{E}:4 experts.math.match", "no model 'cod'", "did you mean 'code'?"),
    ),
    _case(
        "teacher",
        F,
        {
            "{kind: perplexity, path: words.txt}": "{kind: teacher_kl, path: words.txt, teacher: mth}"
        },
        (f"{F}:3 tasks.words.teacher", "no model 'mth'", "did you mean 'math'?"),
    ),
    _case(
        "model of calibration texts",
        E,
        {"seed: 0": "calibration: {of: {mth: {texts: words.txt}}}"},
        (f"{E}:10 calibration.of.mth", "no such model", "did you mean 'math'?"),
    ),
    _case(
        "zoo",
        E,
        {"base: models/base": "base: zoo:tiny/bse"},
        (f"{E}:2 base", "tiny has no model 'bse'", "did you mean 'base'?"),
    ),
    Wrong(
        "model in a design",
        {
            **_changed(E, ("seed: 0", "designs: [recipe.yaml]")),
            **_changed("recipe.yaml", ("math: models/math", "maths: models/math")),
        },
        (
            (
                f"{E}:10 designs.0",
                "it merges 'maths', which is no model of this experiment",
                "did you mean 'math'?",
            ),
        ),
    ),
    # --- what does not go together ---
    _case(
        "several objectives, and a searcher of one",
        F,
        {OBJECTIVES: TWO},
        (f"{E}:8 searcher.kind", "cma_es searches one objective, got 2: skill, fluent", "nsga2"),
    ),
    Wrong(
        "one target for several objectives",
        {
            **_changed(E, ("cma_es", "nsga2"), ("candidates: 100", "candidates: 100, target: 0.9")),
            **_changed(F, (OBJECTIVES, TWO)),
        },
        ((f"{E}:9 budget.target", "there are several objectives: skill, fluent", "for each"),),
    ),
    _case(
        "lineages, and a searcher of genes",
        S,
        {SPACE: "kind: niches\n"},
        (f"{E}:8 searcher.kind", "searches lists of genes", "m2n2"),
    ),
    _case(
        "code that a file allows itself",
        E,
        {"seed: 0": "allow_code: true"},
        (E, "wants to run the code", "--allow-code"),
    ),
    # --- several at once, over several files ---
    Wrong(
        "five in three files",
        {
            **_changed(
                E,
                ("seed: 0", "sead: 0"),
                ("math: models/math", "math: models/mth"),
                ("popul", "pupul"),
            ),
            **_changed(S, ("density: {range: [0.2, 1]}", "densty: {range: [1, 0.2]}")),
            **_changed(
                F,
                ("batch_size: 64", "bach_size: 64"),
                ("tasks: [sums]", "tasks: [sum]"),
            ),
        },
        (
            (f"{E}:4 experts.math", "no such file or folder", "did you mean 'math'?"),
            (f"{E}:8 searcher.pupulation", "unknown key", "did you mean 'population'?"),
            (f"{E}:10 sead", "unknown key", "did you mean 'seed'?"),
            (f"{S}:5 search.densty.range", "expected low < high, got [1, 0.2]", ""),
            (f"{S}:5 search.densty", "ties has no such parameter", "did you mean 'density'?"),
            (f"{F}:2 tasks.sums.bach_size", "unknown key", "did you mean 'batch_size'?"),
            (f"{F}:5 objectives.skill", "no task 'sum'", "did you mean 'sums'?"),
        ),
    ),
    Wrong(
        "a broken space hides nothing else",
        {
            **_changed(E, ("seed: 0", "tokenizer: maths"), ("candidates: 100", "candidates: 0")),
            S: "kind: weights\n  operator: ties\n",
            **_changed(F, ("holdout: 20", "holdout: 60"), ("path: words.txt", "path: word.txt")),
        },
        (
            (f"{E}:9 budget.candidates", "should be greater than or equal to 1, got 0", ""),
            (f"{E}:10 tokenizer", "no model 'maths'", "did you mean 'math'?"),
            (f"{E}:6 space -> {S}:2", "not valid YAML", ""),
            (f"{F}:3 tasks.words.path", "no such file", "did you mean 'words.txt'?"),
            (f"{F}:6 split", "sums has 60 items", ""),
        ),
    ),
    Wrong(
        "four in a fitness",
        {
            F: """\
tasks:
  sums: {task: sums, path: tasks/sums.yaml, limit: 0}
  words: {kind: perplexity, path: words.txt, max_len: 12}
objectives:
  skill: {tasks: [sums, word]}
  fluent: {tasks: {words: -1}, minimize: maybe}
select: {kind: kne}
split: {search: 20, fresh: 10, holdout: 20, seed: -3}
""",
        },
        (
            (f"{F}:2 tasks.sums.limit", "should be greater than or equal to 1, got 0", ""),
            (f"{F}:3 tasks.words.max_len", "unknown key", "did you mean 'max_length'?"),
            (f"{F}:5 objectives.skill", "no task 'word'", "did you mean 'words'?"),
            (f"{F}:6 objectives.fluent.tasks", "weights must be positive", ""),
            (f"{F}:6 objectives.fluent.minimize", "should be a valid boolean, got 'maybe'", ""),
            (f"{F}:7 select.kind", "should be", "did you mean 'knee'?"),
            (f"{E}:8 searcher.kind", "cma_es searches one objective, got 2", "nsga2"),
            (f"{F}:8 split.seed", "should be greater than or equal to 0, got -3", ""),
        ),
    ),
)
