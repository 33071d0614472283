"""The studies: which experiments are run, on which seeds, and what their papers claim."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge.documents import Document
from evomerge.experiment.config import ExperimentConfig, parse_experiment, read_experiment
from evomerge.files import catalogue_folder

TINY, SMOLLM2 = "tiny", "smollm2"
RUNS_CODE = ("m2n2_digits",)  # of the catalogue itself
# Of a study: a search that may take half of it, its twin, and what the holdout asks of both.
CAP_MINUTES = {TINY: 15.0, SMOLLM2: 60.0}
TINY_SEEDS = (0, 1, 2)
ONE_BY_ONE = {"cohort": 1, "in_flight": 1}  # else the twin of a short search asks much more


@dataclass(frozen=True, eq=False)
class Study:
    """One experiment and how it is judged.

    name: of the file in experiments/.
    claim: what the paper says, or what is asked, in a line.
    scale: `tiny`: on families and search seeds 0 to 2; `smollm2`: once.
    twin: what random search at the same cost changes beside the searcher; None: there is none.
    judge: a fitness whose holdout judges, where the experiment's own cannot (it has no labels).
    after: a study whose best is one of this one's models.
    chosen_seeds: others than those of its scale.
    """

    name: str
    claim: str
    scale: str = TINY
    twin: Mapping[str, Any] | None = field(default_factory=dict)
    judge: str = ""
    after: str = ""
    chosen_seeds: tuple[int, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the family and of the search."""
        if self.chosen_seeds:
            return self.chosen_seeds
        return TINY_SEEDS if self.scale == TINY else (0,)


STUDIES: tuple[Study, ...] = (
    Study("quickstart", "a coefficient for each expert beats every expert and one for all"),
    Study("task_arithmetic_per_layer", "with a coefficient for each layer, still more"),
    Study("ties", "TIES beats task arithmetic"),
    Study("evolutionary_ps", "searched DARE-TIES beats every expert by far"),
    Study("evolutionary_dfs", "stacks of layers beat the experts a little"),
    Study(
        "evolutionary_ps_then_dfs",
        "a stack of the merge's layers gains over the merge",
        after="evolutionary_ps",
    ),
    Study("quickstart_pareto", "a front beyond what single coefficients reach"),
    Study(
        "map_pareto",
        "the front of a grid, at a tenth of its evaluations",
    ),
    Study("m2n2", "attraction and split points beat random lineages"),
    Study("m2n2_digits", "lineages beat a genetic algorithm and the two networks"),
    Study("merge3", "item response theory keeps quality at a fiftieth of the items"),
    Study("reinforced_merging", "an agent's walk beats the merges that it can take layers from"),
    Study("gptailor_1_of_6", "layers can go at little loss"),
    Study("gptailor", "a quarter of the layers can go: 97 % is kept"),
    Study("recycle", "an average of checkpoints of one run beats each of them"),
    Study("model_glue", "a greedy soup beats the best expert", twin=ONE_BY_ONE),
    Study("kinship", "exploration by kinship beats the best expert", twin=ONE_BY_ONE),
    Study(
        "quickstart_label_free",
        "without labels, most of what labels give",
        judge="tiny_mean",
    ),
    Study("cycle_qd", "quality diversity finds a better front"),
    Study("lora_experts", "clusters of rank-one units beat other merges of adapters"),
    Study("lora_concat", "all rank-one units, with a weight for each expert"),
    Study("smollm2_two_of_five", "who takes part matters more than how much", SMOLLM2),
    Study("smollm2_two_of_five_cma", "who takes part matters more than how much", SMOLLM2),
    Study(
        "smollm2_two_of_five_random",
        "what random search found once, it finds again",
        SMOLLM2,
        twin=None,
        chosen_seeds=(1,),
    ),
    Study("smollm2_two_of_five_front", "a front beyond what single coefficients reach", SMOLLM2),
    Study(
        "smollm2_two_of_five_front_random",
        "what random search found once, it finds again",
        SMOLLM2,
        twin=None,
        chosen_seeds=(1,),
    ),
    Study("smollm2_two_of_five_map", "a surface finds it where races do not", SMOLLM2),
    Study("smollm2_conflict", "a front beyond what single coefficients reach", SMOLLM2),
    Study(
        "smollm2_conflict_map",
        "the front of a grid, at a tenth of its evaluations",
        SMOLLM2,
    ),
    Study("smollm2_per_expert", "so it does on a real model", SMOLLM2),
    Study("smollm2_per_layer", "and with a coefficient for each layer, still more", SMOLLM2),
    Study("smollm2_ties", "TIES beats task arithmetic", SMOLLM2),
    Study("smollm2_evolutionary_ps", "searched DARE-TIES beats every expert by far", SMOLLM2),
    Study("smollm2_evolutionary_dfs", "stacks of layers beat the experts a little", SMOLLM2),
    Study(
        "smollm2_ps_then_dfs",
        "a stack of the merge's layers gains over the merge",
        SMOLLM2,
        after="smollm2_evolutionary_ps",
    ),
    Study("smollm2_three_skills", "a front beyond what single coefficients reach", SMOLLM2),
    Study(
        "smollm2_three_skills_map",
        "the front of a grid, at a tenth of its evaluations",
        SMOLLM2,
    ),
    Study(
        "smollm2_m2n2",
        "lineages beat random ones and the experts",
        SMOLLM2,
    ),
    Study(
        "smollm2_merge3",
        "item response theory keeps quality at a fiftieth of the items",
        SMOLLM2,
    ),
    Study(
        "smollm2_layer_swapping",
        "bottom and top of a language expert around a task expert's middle beat both",
        SMOLLM2,
    ),
    Study("smollm2_gptailor_10", "layers can go at little loss", SMOLLM2),
    Study("smollm2_gptailor_20", "layers can go at little loss", SMOLLM2),
    Study("smollm2_gptailor_30", "layers can go at little loss", SMOLLM2),
)
BY_NAME = {study.name: study for study in STUDIES}


def config_of(study: Study, seed: int, runs: Path) -> ExperimentConfig:
    """The study's experiment on the family and with the search's seed `seed`.

    runs: where the studies' runs are, for what goes on from another one.
    """
    config = read_experiment(catalogue_folder("experiments") / f"{study.name}.yaml")
    changes: dict[str, Any] = {"seed": seed}
    if study.scale == TINY:
        pool = config.pool.model_copy(update={"workers": 0})

        def moved(path: str) -> str:
            if study.after and path.startswith("run:"):
                return f"run:{run_folder(runs, study.after, seed)}"
            return re.sub(r"^zoo:(tiny\w*|digits)/", rf"zoo:\1@{seed}/", path)

        changes |= {"base": moved(config.base), "pool": pool}
        changes["allow_code"] = study.name in RUNS_CODE
        changes["experts"] = {name: moved(path) for name, path in config.experts.items()}
    elif study.after:
        changes["experts"] = {
            n: f"run:{run_folder(runs, study.after, seed)}" if p.startswith("run:") else p
            for n, p in config.experts.items()
        }
    return config.model_copy(update=changes)


def twin_config(
    study: Study, config: ExperimentConfig, item_evaluations: int
) -> ExperimentConfig | None:
    """Random search in the same space, for as many item evaluations."""
    if study.twin is None:
        return None
    data = yaml.safe_load(config.to_yaml())
    data |= {"searcher": {"kind": "random"}, "budget": {"item_evaluations": item_evaluations}}
    return parse_experiment(Document({**data, **study.twin}))


def run_folder(runs: Path, name: str, seed: int) -> Path:
    """Where a study's run is; its twin is beside it, with `-random` behind the name."""
    return runs / f"{name}-{seed}"
