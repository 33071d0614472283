"""The task files of `fitness/tasks/tiny`, run by lm-eval itself without a network."""

import pytest

from evomerge.files import catalogue_folder
from evomerge.zoo.tiny_items import ITEMS_PER_TASK, REWRITINGS, answer

lm_eval = pytest.importorskip("lm_eval")
datasets = pytest.importorskip("datasets")

from lm_eval.api.model import LM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

TASKS = catalogue_folder("fitness") / "tasks" / "tiny"
METRICS = {
    "evomerge_tiny_sort": "exact_match,none",
    "evomerge_tiny_back": "exact_match,none",
    "evomerge_tiny_rot": "exact_match,none",
    "evomerge_tiny_sort_choice": "acc,none",
}


class Oracle(LM):
    """Answers right where `knows(letters)`, and gives the reverse of that elsewhere."""

    def __init__(self, knows):
        super().__init__()
        self.knows = knows
        self.arguments = set()

    def answer(self, text):
        tag, letters, ending = text[0], text[1:6], text[6:]
        assert ending == "="
        (name,) = (name for name, r in REWRITINGS.items() if r.tag == tag)
        right = answer(name, letters)
        return right if self.knows(letters) else right[::-1]

    def generate_until(self, requests, disable_tqdm=False):
        self.arguments |= {repr(request.args[1]) for request in requests}
        return [self.answer(request.args[0]) for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        pairs = [request.args for request in requests]
        return [(0.0 if self.answer(text) == choice else -9.0, False) for text, choice in pairs]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


@pytest.fixture
def scores(monkeypatch, tmp_path):
    monkeypatch.chdir(TASKS)  # lm-eval resolves the data's paths against it
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)

    def run(model):
        manager = TaskManager(include_path=str(TASKS), include_defaults=False)
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=list(METRICS),
            task_manager=manager,
            limit=200,
            bootstrap_iters=0,
            log_samples=False,
        )
        assert {n["original"] for n in results["n-samples"].values()} == {ITEMS_PER_TASK}
        return {task: results["results"][task][metric] for task, metric in METRICS.items()}

    return run


def test_right_answers_score_one_and_wrong_ones_nothing(scores):
    model = Oracle(lambda letters: True)
    assert scores(model) == dict.fromkeys(METRICS, 1.0)
    assert model.arguments == {"{'do_sample': False, 'max_gen_toks': 8, 'until': ['</s>']}"}


def test_half_known_is_half_right(scores):
    found = scores(Oracle(lambda letters: letters[0] < "n"))
    # A quarter of blind guesses at four choices is right; a palindrome is right backwards.
    assert all(0.38 < value < 0.62 for task, value in found.items() if "choice" not in task)
    assert 0.38 < found["evomerge_tiny_sort_choice"] < 0.78
