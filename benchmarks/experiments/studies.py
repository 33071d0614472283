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
GRID, RANDOM = "best of the grid, in hindsight", "random search"  # what claims are about
FRONT, FRONT_OF_RANDOM = "front: references and grid", "front: random search"
WHO = "who takes part matters more than how much"
LITTLE_LOSS = "layers can go at little loss"
BEYOND = "a front beyond what single coefficients reach"
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
    against: what the claim is about: a rival of `judging.gains`, a front, or what another `study`
        has found.
    keeps: the claim is that little is lost, and not that anything is gained.
    """

    name: str
    claim: str
    scale: str = TINY
    twin: Mapping[str, Any] | None = field(default_factory=dict)
    judge: str = ""
    after: str = ""
    chosen_seeds: tuple[int, ...] = ()
    against: str = "best expert"
    keeps: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the family and of the search."""
        if self.chosen_seeds:
            return self.chosen_seeds
        return TINY_SEEDS if self.scale == TINY else (0,)


def asked_again(name: str, against: str) -> Study:
    """A random search that was ahead once, with another seed."""
    claim = "what random search found once, it finds again"
    return Study(name, claim, SMOLLM2, twin=None, chosen_seeds=(1,), against=against)


STUDIES: tuple[Study, ...] = (
    Study("quickstart", "a coefficient for each expert beats one for all", against=GRID),
    Study(
        "task_arithmetic_per_layer",
        "a coefficient for each layer beats one for each expert",
        against="study quickstart",
    ),
    Study("ties", "TIES beats task arithmetic", against="study quickstart"),
    Study("evolutionary_ps", "searched DARE-TIES beats every expert"),
    Study("evolutionary_dfs", "a stack of layers beats the experts a little"),
    Study(
        "evolutionary_ps_then_dfs",
        "a stack of a merge's layers gains over the merge",
        after="evolutionary_ps",
    ),
    Study("quickstart_pareto", "a front beyond what single coefficients reach", against=FRONT),
    Study("map_pareto", "the front of a grid at a tenth of its evaluations", against=FRONT),
    Study("m2n2", "chosen mates beat random lineages", against=RANDOM),
    Study("m2n2_digits", "lineages beat both networks"),
    Study(
        "merge3",
        "item response theory keeps quality on a fraction of the items",
        against="study evolutionary_ps",
        keeps=True,
    ),
    Study("reinforced_merging", "an agent's walk beats the models that it takes layers from"),
    Study("gptailor_1_of_6", LITTLE_LOSS, against=GRID, keeps=True),
    Study("gptailor", LITTLE_LOSS, against=GRID, keeps=True),
    Study("recycle", "an average of checkpoints of one run beats each of them"),
    Study("model_glue", "a greedy soup beats the best expert", twin=ONE_BY_ONE),
    Study("kinship", "exploration by kinship beats the best expert", twin=ONE_BY_ONE),
    Study(
        "quickstart_label_free",
        "without labels, most of what labels give",
        judge="tiny_mean",
        against="study quickstart",
        keeps=True,
    ),
    Study("cycle_qd", "quality diversity finds a better front", against=FRONT_OF_RANDOM),
    Study(
        "lora_experts",
        "clusters of rank-one units beat other merges of adapters",
        against="study lora_concat",
    ),
    Study("lora_concat", "a weight for each adapter beats every adapter"),
    Study("smollm2_two_of_five_cma", WHO, SMOLLM2, against=GRID),
    Study("smollm2_two_of_five", WHO, SMOLLM2, against=GRID),
    asked_again("smollm2_two_of_five_random", GRID),
    Study("smollm2_two_of_five_front", BEYOND, SMOLLM2, against=FRONT),
    Study(
        "smollm2_two_of_five_map", "a surface finds it where races do not", SMOLLM2, against=FRONT
    ),
    asked_again("smollm2_two_of_five_front_random", FRONT),
    Study("smollm2_conflict", BEYOND, SMOLLM2, against=FRONT),
    Study(
        "smollm2_conflict_map",
        "the front of a grid at a tenth of its evaluations",
        SMOLLM2,
        against=FRONT,
    ),
    Study("smollm2_per_expert", "a coefficient for each expert beats one", SMOLLM2, against=GRID),
    Study(
        "smollm2_per_layer",
        "a coefficient for each layer beats one for each expert",
        SMOLLM2,
        against="study smollm2_per_expert",
    ),
    Study(
        "smollm2_ties", "TIES beats task arithmetic", SMOLLM2, against="study smollm2_per_expert"
    ),
    Study("smollm2_evolutionary_ps", "searched DARE-TIES beats every expert", SMOLLM2),
    Study("smollm2_evolutionary_dfs", "a stack of layers beats the experts a little", SMOLLM2),
    Study(
        "smollm2_ps_then_dfs",
        "a stack of a merge's layers gains over the merge",
        SMOLLM2,
        after="smollm2_evolutionary_ps",
    ),
    Study("smollm2_three_skills", BEYOND, SMOLLM2, against=FRONT),
    Study(
        "smollm2_three_skills_map",
        "the front of a grid at a tenth of its evaluations",
        SMOLLM2,
        against=FRONT,
    ),
    Study("smollm2_m2n2", "chosen mates beat random lineages", SMOLLM2, against=RANDOM),
    Study(
        "smollm2_merge3",
        "item response theory keeps quality on a fraction of the items",
        SMOLLM2,
        against="study smollm2_per_expert",
        keeps=True,
    ),
    Study(
        "smollm2_layer_swapping",
        "bottom and top of a language expert around a task expert's middle beat both",
        SMOLLM2,
    ),
    *(
        Study(
            f"smollm2_gptailor_{n}",
            "layers can go at little loss",
            SMOLLM2,
            against=GRID,
            keeps=True,
        )
        for n in (10, 20, 30)
    ),
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
