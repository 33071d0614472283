"""Warns when a search looks at a public test set: what it finds has then seen the test.

Benchmarks are recognised by name. Data that were copied under another name are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from evomerge.fitness.lm_eval_files import FILE_FORMATS
from evomerge.records import Objective

SHOWN = 6  # names that the warning repeats


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark, the names that tell it, and the split that published scores are on.

    Names are compared without case and separators, so `commonsense_qa` is CommonsenseQA too, but
    only as whole words: `gsm8k_cot` is GSM8K, `gsm8kids` is not.
    """

    title: str
    names: tuple[str, ...]
    split: str = "test"  # or validation, or train: where a benchmark has no other labels


# The splits are those that lm-eval evaluates.
BENCHMARKS = (
    Benchmark("AGIEval", ("agieval",)),
    Benchmark("AIME", ("aime", "aime24", "aime25"), "train"),
    Benchmark("ANLI", ("anli",)),
    Benchmark("ARC", ("ai2_arc", "arc_challenge", "arc_easy")),
    Benchmark("BIG-bench Hard", ("bbh", "big_bench_hard")),
    Benchmark("Belebele", ("belebele",)),
    Benchmark("BoolQ", ("boolq",), "validation"),
    Benchmark("C-Eval", ("ceval",), "validation"),
    Benchmark("CMMLU", ("cmmlu",)),
    Benchmark("CommonsenseQA", ("commonsense_qa",), "validation"),
    Benchmark("CoQA", ("coqa",), "validation"),
    Benchmark("GPQA", ("gpqa",), "train"),
    Benchmark("GSM8K", ("gsm8k",)),
    Benchmark("GSM-Plus", ("gsm_plus",)),
    Benchmark("HellaSwag", ("hellaswag",), "validation"),
    Benchmark("HumanEval", ("humaneval", "openai_humaneval")),
    Benchmark("IFEval", ("ifeval",), "train"),
    Benchmark("LAMBADA", ("lambada",)),
    Benchmark("LogiQA", ("logiqa", "logiqa2")),
    Benchmark("MATH", ("hendrycks_math", "minerva_math", "competition_math", "math_500")),
    Benchmark("MathQA", ("mathqa",)),
    Benchmark("MBPP", ("mbpp",)),
    Benchmark("MedMCQA", ("medmcqa",), "validation"),
    Benchmark("MedQA", ("medqa",)),
    Benchmark("MGSM", ("mgsm",)),
    Benchmark("MMLU", ("mmlu", "hendrycks_test")),
    Benchmark("MMLU-Pro", ("mmlu_pro",)),
    Benchmark("MuSR", ("musr",)),
    Benchmark("Natural Questions", ("nq_open", "natural_questions"), "validation"),
    Benchmark("OpenBookQA", ("openbookqa",)),
    Benchmark("PIQA", ("piqa",), "validation"),
    Benchmark("PubMedQA", ("pubmedqa",)),
    Benchmark("SciQ", ("sciq",)),
    Benchmark("Social IQa", ("social_i_qa", "siqa"), "validation"),
    Benchmark("SQuAD", ("squad", "squadv2"), "validation"),
    Benchmark("SuperGLUE", ("superglue",), "validation"),
    Benchmark("SVAMP", ("svamp",)),
    Benchmark("ToxiGen", ("toxigen",)),
    Benchmark("TriviaQA", ("triviaqa",), "validation"),
    Benchmark("TruthfulQA", ("truthfulqa",), "validation"),
    Benchmark("WikiText", ("wikitext", "wikitext2", "wikitext103")),
    Benchmark("WinoGrande", ("winogrande",), "validation"),
    Benchmark("XNLI", ("xnli",)),
)
# Words of every day are a benchmark's only as the whole name of a dataset of the hub.
DATASETS = (
    Benchmark("DROP", ("drop",), "validation"),
    Benchmark("GLUE", ("glue",), "validation"),
    Benchmark("MATH", ("math",)),
    Benchmark("RACE", ("race",)),
    Benchmark("SWAG", ("swag",), "validation"),
)
_KINDS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)


def contamination_warning(objectives: Iterable[Objective], tasks: Mapping[str, Any]) -> str | None:
    """What to tell of the public test sets that a search would look at; None if there are none.

    tasks: by name; one that knows of public data has a property `benchmark`, see `benchmark_of`.
    """
    used = {task for objective in objectives for task in objective.weights}
    found = {getattr(tasks[name], "benchmark", None) for name in tasks if name in used}
    titles = sorted(title for title in found if title)
    if not titles:
        return None
    shown = titles[:SHOWN]
    if len(titles) > SHOWN:
        shown.append(f"{len(titles) - SHOWN} more")
    names = " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
    return (
        f"public test items are a search objective: scores on {names} are no longer comparable "
        "with published ones after the search, which has seen items of the test. Search on a "
        "training or validation split, or report on another test set"
    )


def benchmark_of(config: Mapping[str, Any], *, is_registered: bool) -> str | None:
    """The public benchmark whose published scores are on the items of a task of lm-eval.

    None for other data, and for a training or validation split where a test split is published.

    Args:
        config: the task's configuration, its includes resolved.
        is_registered: whether the task is lm-eval's own; such a task is always public.
    """
    task = str(config.get("task") or "")
    if is_registered:
        known = _recognise([task])
        return known.title if known else task
    dataset = str(config.get("dataset_path") or "")
    split = config.get("test_split") or config.get("validation_split") or ""
    files = _files(config, str(split)) if dataset in FILE_FORMATS else None
    places = [dataset] if files is None else files
    # BoolQ is a part of super_glue, and the data say more than a task's name.
    known = _recognise([str(config.get("dataset_name") or ""), *map(_end, places), task])
    if known is None and files is None and not PurePath(dataset).is_absolute():
        name = dataset.rpartition("/")[2].lower()
        known = next((b for b in DATASETS if name in b.names), None)
    if known is None:
        return None
    # A file may be loaded under any split's name; its own name tells more.
    evaluated = _kind([str(split)] if files is None else [PurePath(f).stem for f in files])
    return known.title if evaluated in ("test", known.split) else None


def _recognise(texts: Sequence[str]) -> Benchmark | None:
    """The benchmark with the longest name in the first text that names any."""
    for text in texts:
        runs = set(_runs(_words(text)))
        found = [
            (len(joined), benchmark)
            for benchmark in BENCHMARKS
            for name in benchmark.names
            if (joined := name.replace("_", "")) in runs
        ]
        if found:
            return max(found, key=lambda pair: pair[0])[1]
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _runs(words: Sequence[str], longest: int = 4) -> Iterable[str]:
    """Neighbouring words as one: `truthful_qa` is `truthfulqa`."""
    for start in range(len(words)):
        for stop in range(start + 1, min(start + longest, len(words)) + 1):
            yield "".join(words[start:stop])


def _files(config: Mapping[str, Any], split: str) -> list[str]:
    """The data files that the items of a split are from."""
    kwargs = config.get("dataset_kwargs") or {}
    files = kwargs.get("data_files") or kwargs.get("data_dir") or []
    if isinstance(files, Mapping):
        files = files.get(split.partition("[")[0], [])
    return [str(file) for file in ([files] if isinstance(files, str) else files)]


def _end(path: str) -> str:
    """A file with its folder, a dataset with its owner: what is further up tells nothing."""
    return "/".join(PurePath(path).parts[-2:])


def _kind(names: Sequence[str]) -> str:
    """What the split of these names is for: train, validation, or else test."""
    kinds = {
        next((_KINDS[word] for word in _words(name) if word in _KINDS), "test") for name in names
    }
    return kinds.pop() if len(kinds) == 1 else "test"
