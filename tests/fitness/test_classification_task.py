"""Classifiers of texts and images, merged, beside transformers called by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from test_lm_eval_task import Resident, character_tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from evomerge.errors import ConfigurationError
from evomerge.experiment.score import score_model
from evomerge.fitness import make_task
from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import Job, Responses

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.5,
}
CLASSES = ["low", "middle", "high"]
TEXTS = ["abc", "z", "hello world", "one two three", "x" * 40, "9876"]
WEIGHTS = {"left": 0.25, "right": 0.75}


def random_model(kind: str, seed: int) -> Any:
    labels = {
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {c: i for i, c in enumerate(CLASSES)},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "vit":
            config = ViTConfig(**SIZES, image_size=8, patch_size=4, num_channels=2, **labels)
            return ViTForImageClassification(config).eval()
        size = len(character_tokenizer())
        config = BertConfig(**SIZES, vocab_size=size, max_position_embeddings=24, **labels)
        return BertForSequenceClassification(config).eval()


def family(kind: str, folder: Path) -> dict[str, str]:
    paths = {}
    for seed, name in enumerate(("base", "left", "right")):
        random_model(kind, seed).save_pretrained(folder / name)
        if kind == "bert":
            tokenizer = character_tokenizer()
            tokenizer.model_max_length = 24
            tokenizer.save_pretrained(folder / name)
        paths[name] = str(folder / name)
    return paths


def merged_by_hand(kind: str) -> Any:
    """A weighted mean of the state dicts of the two experts."""
    models = {name: random_model(kind, seed) for seed, name in enumerate(("base", "left", "right"))}
    states = {name: models[name].state_dict() for name in WEIGHTS}
    base = models["base"]
    base.load_state_dict(
        {
            key: sum(w * states[n][key].double() for n, w in WEIGHTS.items())
            for key in states["left"]
        }
    )
    return base


def measured(paths: dict[str, str], entry: dict[str, Any], items: tuple[int, ...]) -> Responses:
    """What a worker finds for the merged model."""
    merge = Merge(operator="linear", sources=tuple(WEIGHTS), parameters={"weight": WEIGHTS})
    sources = {name: ModelSource(path=path) for name, path in paths.items()}
    spec = WorkerSpec(paths, "base", {"t": {"kind": "classification", **entry}})
    outcome = Worker(spec, "driver").run(
        Job(0, 0, Recipe(base="base", models=sources, default=merge), {"t": items})
    )
    assert outcome.failure is None
    return outcome.responses[0]


def check(found: Responses, logits: torch.Tensor, gold: list[int]) -> None:
    """Every column from the logits alone."""
    values = logits.double().numpy()
    assert found.columns["choice"].tolist() == values.argmax(1).tolist()
    assert found.columns["score"].tolist() == (values.argmax(1) == gold).astype(float).tolist()
    assert 0 < found.columns["score"].sum() < len(gold)
    rows = zip(values, gold, strict=True)
    margins = [row[g] - max(np.delete(row, g)) for row, g in rows]
    np.testing.assert_allclose(found.columns["margin"], margins, atol=1e-4)
    sure = logits.double().softmax(-1).numpy()
    np.testing.assert_allclose(found.columns["entropy"], entropy(sure, axis=1), atol=1e-4)


@pytest.mark.parametrize("batch_size", [2, 32])
def test_texts(tmp_path, batch_size):
    model, tokenizer = merged_by_hand("bert"), character_tokenizer()
    with torch.no_grad():
        logits = torch.cat(
            [model(torch.tensor([tokenizer.encode(text)[:24]])).logits for text in TEXTS]
        )
    gold = logits.argmax(-1).tolist()
    gold[1] = (gold[1] + 1) % 3
    file = tmp_path / "texts.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"body": text, "class": CLASSES[g]})
            for text, g in zip(TEXTS, gold, strict=True)
        )
    )
    entry = {"path": str(file), "text": "body", "label": "class", "batch_size": batch_size}
    items = (3, 1, 4, 0, 5)
    found = measured(family("bert", tmp_path), entry, items)
    check(found, logits[list(items)], [gold[item] for item in items])


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_images(tmp_path, dtype):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (9, 2, 8, 8)).astype(np.uint8)
    pixels = images.astype(np.float32) / 255
    model = merged_by_hand("vit")
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels)).logits
    gold = logits.argmax(-1).numpy()
    gold[[0, 4]] = (gold[[0, 4]] + 2) % 3
    file = tmp_path / "images.npz"
    np.savez(file, x=images if dtype == "uint8" else pixels, y=gold)
    entry = {"path": str(file), "images": "x", "labels": "y", "batch_size": 4}
    items = (8, 0, 2, 4, 1)
    found = measured(family("vit", tmp_path), entry, items)
    check(found, logits[list(items)], gold[list(items)].tolist())


def test_pairs_of_texts_are_given_as_pairs(tmp_path):
    rows = [{"a": "abc", "b": "xyz", "y": 0}, {"a": "q", "b": "longer text", "y": 2}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model, tokenizer = random_model("bert", 3), character_tokenizer()
    task = make_task(
        "t",
        {
            "kind": "classification",
            "path": str(tmp_path / "t.jsonl"),
            "text": ["a", "b"],
            "label": "y",
        },
    )
    found = task.respond(Resident(model, tokenizer), [0, 1])
    for place, row in enumerate(rows):
        with torch.no_grad():
            logits = model(**tokenizer(row["a"], row["b"], return_tensors="pt")).logits[0]
        assert found.columns["choice"][place] == int(logits.argmax())


def test_a_broken_item_costs_itself(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\nabc,0\nzz,1\nabd,2\n")
    model, tokenizer = random_model("bert", 3), character_tokenizer()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[tokenizer.encode("z")[0]] = float("nan")
    task = make_task("t", {"kind": "classification", "path": str(tmp_path / "t.csv")})
    found = task.respond(Resident(model, tokenizer), [0, 1, 2])
    assert found.failures == {1: "a logit is not finite"}
    assert found.columns["score"][1] == 0
    assert np.isnan(found.columns["margin"]).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "t.csv", "text": "txet"}, r"record 1: no text 'txet' \(did you mean 'text'"),
        ({"path": "t.csv", "label": "labl"}, r"no label 'labl' \(did you mean 'label'"),
        ({"path": "t.npz"}, r"no array 'images' in .* \(did you mean 'image'"),
        ({"path": "t.npz", "images": "image", "labels": "y"}, r"expected \(items, channels"),
        ({"path": "t.npz", "images": "objects"}, "pickle"),
        ({"path": "no.npz"}, "No such file"),
        ({"path": "cut.npz"}, "cut.npz: .*zip"),
        ({"path": "empty.npz"}, "empty.npz: .*"),
        ({"path": "single.npz"}, "single.npz: is no .npz, which holds named arrays"),
        ({"path": "t.npz", "images": "pixels", "labels": "shares"}, "types uint8 and float64"),
        ({"path": "t.npz", "images": "words", "labels": "y"}, "types <U1 and int64"),
        ({"path": "wide.csv"}, r"record 1: no label 'label' \(did you mean 'label'"),
    ],
)
def test_what_is_wrong_is_said(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("text,label\nabc,0\n")
    objects = np.array([{}, {}], dtype=object)
    pixels = np.zeros((2, 1, 8, 8), np.uint8)
    shares, words = np.array([0.5, 1.0]), np.full((2, 1, 1, 1), "a")
    more = {"pixels": pixels, "shares": shares, "words": words}
    np.savez("t.npz", image=np.zeros((2, 2, 8)), y=np.zeros(2, int), objects=objects, **more)
    Path("cut.npz").write_bytes(Path("t.npz").read_bytes()[:200])
    Path("empty.npz").write_bytes(b"")
    np.save("single.npy", pixels)
    Path("single.npy").rename("single.npz")
    Path("wide.csv").write_text("text,label\nabc,,2\n")
    with pytest.raises(ConfigurationError, match=message):
        make_task("t", {"kind": "classification", **options})


def test_the_classes_of_a_config_are_read_once_for_all_items(tmp_path):
    class Counted(dict):
        calls = 0

        def items(self):
            Counted.calls += 1
            return super().items()

    (tmp_path / "t.csv").write_text("text,label\n" + "abc,middle\n" * 8)
    task = make_task("t", {"kind": "classification", "path": str(tmp_path / "t.csv")})
    module = random_model("bert", 3)
    object.__setattr__(module.config, "label2id", Counted(module.config.label2id))
    task.respond(Resident(module, character_tokenizer()), range(8))
    assert Counted.calls == 1


def test_labels_have_to_be_the_models(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\nabc,middle\nabc,hihg\nabc,3\n")
    task = make_task("t", {"kind": "classification", "path": str(tmp_path / "t.csv")})
    model = Resident(random_model("bert", 3), character_tokenizer())
    told = [problem.where for problem in task.problems_with(model.module.config.to_dict())]
    assert told == ["task t item 1", "task t item 2"]
    assert task.problems_with({}) == []
    assert task.respond(model, [0]).items.tolist() == [0]
    with pytest.raises(ConfigurationError, match=r"item 1: label 'hihg' .*did you mean 'high'"):
        task.respond(model, [1])
    with pytest.raises(ConfigurationError, match="none of the model's 3 classes"):
        task.respond(model, [2])


def test_other_labels_are_refused_before_a_model_is_asked(tmp_path):
    rows = "".join(f"abc,{label}\n" for label in ("low", "hihg") * 4)
    (tmp_path / "t.csv").write_text(f"text,label\n{rows}")
    fitness = {
        "tasks": {"t": {"kind": "classification", "path": "t.csv"}},
        "objectives": {"t": "t"},
        "split": {"search": 4, "fresh": 2},
    }
    (tmp_path / "fitness.yaml").write_text(json.dumps(fitness))
    model = family("bert", tmp_path)["base"]
    with pytest.raises(ConfigurationError, match="item 1: label 'hihg'") as caught:
        score_model(model, str(tmp_path / "fitness.yaml"))
    assert len(caught.value.problems) == 1
    (tmp_path / "t.csv").write_text(f"text,label\n{rows.replace('hihg', 'high')}")
    assert score_model(model, str(tmp_path / "fitness.yaml")).keys() >= {"search", "holdout"}
