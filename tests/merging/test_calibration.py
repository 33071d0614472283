"""What is collected from calibration texts: against hooks and gradients one sample at a time."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from unittest import mock

import adapter_folders
import pytest
import torch
from calibrated import family, ids_of, inputs_of, merger_of, module_in, recipe_of, texts
from scaled_models import write_folder as any_kind

from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import ConfigurationError, DiskFull, ModelError
from evomerge.merging.calibration import Calibration, Collected, read_calibration
from evomerge.merging.calibration.activations import linear_inputs, sum_inputs
from evomerge.merging.calibration.sums import Sums


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


@pytest.mark.parametrize("tied", [False, True])
def test_gram_matrices_and_means_are_those_of_all_inputs_at_once(tmp_path, tied):
    models = family(tmp_path, ["base", "a"], tied=tied)
    read = texts(40)
    collected = Collected(Calibration(texts=read), models, "base")
    seen = inputs_of(module_in(tmp_path / "a"), [ids_of(text) for text in read])
    gram, mean = collected.of("gram", "a"), collected.of("mean", "a")
    expected = {f"{name}.weight" for name in seen} - ({"lm_head.weight"} if tied else set())
    assert gram.keys() == mean.keys() == expected
    assert len(gram) > 7
    for name, x in seen.items():
        if f"{name}.weight" in expected:
            value = gram[f"{name}.weight"].double()
            torch.testing.assert_close(value, x.T @ x / len(x), atol=1e-5, rtol=1e-5)
            value = mean[f"{name}.weight"].double()
            torch.testing.assert_close(value, x.abs().mean(0), atol=1e-5, rtol=1e-5)
    q, k = (gram[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qk")
    assert q.data_ptr() == k.data_ptr()  # the same input is stored once


def brute_fisher(module, all_ids, labels):
    """One backward pass for each text, and for `exact` one for each place and each token."""
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for ids in all_ids:
        log_p = torch.log_softmax(module(input_ids=ids[None]).logits[0, :-1], -1)
        if labels == "data":
            scalars = [(1.0, sum(log_p[i, ids[i + 1]] for i in range(len(ids) - 1)))]
        elif labels == "expected":
            scalars = [(1.0, (log_p.detach().exp().sqrt() * log_p).sum())]
        else:
            scalars = [(float(v.detach().exp()), v) for v in log_p.flatten()]
        for share, scalar in scalars:
            module.zero_grad()
            scalar.backward(retain_graph=True)
            for name, p in module.named_parameters():
                total[name] += share * p.grad**2 / len(all_ids)
    return total


@pytest.mark.parametrize("labels", ["data", "expected"])
@pytest.mark.parametrize("tied", [False, True])
def test_squared_gradients_are_those_of_each_text_by_itself(tmp_path, labels, tied):
    models = family(tmp_path, ["base", "a"], tied=tied)
    read = texts(7)
    collected = Collected(Calibration(texts=read), models, "base")
    found = collected.of(f"fisher_{labels}", "a")
    expected = brute_fisher(module_in(tmp_path / "a"), [ids_of(text) for text in read], labels)
    assert found.keys() == expected.keys() == set(models["a"].names)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, atol=1e-6, rtol=2e-4)
    norm = sum(float(value.norm()) ** 2 for value in expected.values()) ** 0.5
    assert collected.norm(f"fisher_{labels}", "a") == pytest.approx(norm, rel=1e-4)


def test_sampled_labels_give_the_fisher_matrix_in_expectation(tmp_path):
    """Every text draws its own labels: a text that stands there often comes near the exact sum."""
    models = family(tmp_path, ["base", "a"])
    read = texts(2, longest=4)
    collected = Collected(Calibration(texts=read * 150), models, "base")
    found = collected.of("fisher_sampled", "a")
    exact = brute_fisher(module_in(tmp_path / "a"), [ids_of(text) for text in read], "exact")
    for name, value in exact.items():
        assert float(found[name].sum()) == pytest.approx(float(value.sum()), rel=0.2)
    data = Collected(Calibration(texts=read), models, "base").of("fisher_data", "a")
    name = "model.layers.0.mlp.up_proj.weight"
    assert float(data[name].sum()) != pytest.approx(float(exact[name].sum()), rel=0.15)


def test_a_router_sends_each_row_elsewhere_and_rows_are_counted(tmp_path):
    """Kinds whose experts are layers of their own, or tensors that no layer is: none is missed."""
    checkpoint = open_checkpoint(any_kind(tmp_path / "m", "qwen2_moe", 0), name="m")
    module = module_in(tmp_path / "m").float()
    all_ids = [torch.tensor([1, 5, 9, 3]), torch.tensor([4, 2, 8]), torch.tensor([7, 7, 1])]
    seen = inputs_of(module, all_ids)
    with torch.no_grad():
        inputs = linear_inputs(module, checkpoint, all_ids[0][None])
    sums = Sums(tmp_path / "sums.safetensors", {one.names[0]: (one.width,) * 2 for one in inputs})
    sequences = [ids.tolist() for ids in all_ids]
    sum_inputs("gram", module, inputs, sequences, sums, lambda *_: None)
    names = {name: one.names[0] for one in inputs for name in one.names}
    assert names
    for name, first in names.items():
        x = seen[name.removesuffix(".weight")]
        value = sums.tensors[first]
        torch.testing.assert_close(value, x.T @ x / len(x), atol=1e-4, rtol=1e-4)


def test_memory_does_not_grow_with_the_number_of_texts(tmp_path):
    """Of what torch holds while the texts go by, the most with few and with many."""
    models = family(tmp_path, ["base"])

    def largest(count: int, kind: str) -> int:
        held = []
        layer = models["base"].config["architectures"][0]
        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, _: held.append(alive()) if type(module).__name__ == layer else None
        )
        calibration = Calibration(texts=texts(count, longest=6))
        Collected(calibration, models, "base").of(kind, "base")
        hook.remove()
        return max(held)

    def alive():
        import gc

        return sum(o.nbytes for o in gc.get_objects() if type(o) is torch.Tensor)

    with mock.patch("evomerge.merging.calibration.activations.BATCH_TOKENS", 8):
        for kind in ("gram", "fisher_data"):
            few, many = largest(3, kind), largest(12, kind)
            assert many <= few * 1.1


def test_statistics_are_collected_once_and_found_again(tmp_path, own_cache):
    models = family(tmp_path, ["base", "a"])
    told: list[str] = []
    calibration = Calibration(texts=texts(5))

    def collected():
        return Collected(calibration, models, "base", lambda what, *_: told.append(what))

    first = collected()
    value = first.of("gram", "a")
    assert told[-1] == "reading texts for gram of a"
    told.clear()
    again = collected().of("gram", "a")
    assert not told
    assert all(torch.equal(again[name], value[name]) for name in value)
    assert len(list(own_cache.glob("gram-*[0-9a-f]"))) == 1
    other = Collected(Calibration(texts=texts(6)), models, "base")
    assert not other.is_collected("gram", "a")
    assert not first.is_collected("gram", "base")  # another model
    assert not first.is_collected("mean", "a")


def _cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


def _emptied(file: Path) -> None:
    for other in list(file.parent.iterdir()):
        other.unlink()


@pytest.mark.parametrize("damage", [_cut_off, Path.unlink, _emptied])
@pytest.mark.parametrize("name", ["facts.json", "statistics.safetensors"])
def test_what_is_damaged_is_collected_anew(tmp_path, own_cache, name, damage):
    models = family(tmp_path, ["base", "a"])
    calibration = Calibration(texts=texts(5))
    before = Collected(calibration, models, "base").of("gram", "a")
    value = {n: tensor.clone() for n, tensor in before.items()}
    [folder] = own_cache.glob("gram-*[0-9a-f]")
    damage(folder / name)
    again = Collected(calibration, models, "base")
    assert not again.is_collected("gram", "a")
    found = again.of("gram", "a")
    assert again.is_collected("gram", "a")
    assert all(torch.equal(found[n], tensor) for n, tensor in value.items())


def test_two_that_want_the_same_at_once_collect_it_once(tmp_path, own_cache):
    models = family(tmp_path, ["base"])
    calibration = Calibration(texts=texts(5))
    both = [Collected(calibration, models, "base") for _ in range(2)]
    with mock.patch.object(
        Collected, "_collect", autospec=True, side_effect=Collected._collect
    ) as collect:
        threads = [threading.Thread(target=one.of, args=("mean", "base")) for one in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert collect.call_count == 1


def test_a_collection_that_is_broken_off_leaves_nothing(tmp_path, own_cache):
    models = family(tmp_path, ["base"])

    def stop(what: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    calibration = Calibration(texts=texts(5))
    with pytest.raises(KeyboardInterrupt):
        Collected(calibration, models, "base", stop).of("gram", "base")
    assert [path.suffix for path in own_cache.iterdir()] == [".lock"]
    assert Collected(calibration, models, "base").of("gram", "base")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, own_cache, monkeypatch):
    models = family(tmp_path, ["base"])
    calibration = Calibration(texts=texts(5))
    monkeypatch.setattr("evomerge.files.free_bytes", lambda _: 100)
    with pytest.raises(DiskFull, match=r"statistics.*no space left"):
        Collected(calibration, models, "base").of("gram", "base")
    assert [path.suffix for path in own_cache.iterdir()] == [".lock"]


def test_a_models_own_texts_are_read_by_it_alone(tmp_path):
    models = family(tmp_path, ["base", "a", "b"])
    own, others = texts(4, seed=1), texts(4, seed=2)
    both = Calibration(texts=others, of={"a": own})
    alone, shared = Calibration(texts=own), Calibration(texts=others)

    def mean(calibration, model):
        return Collected(calibration, models, "base").of("mean", model)["lm_head.weight"]

    assert torch.equal(mean(both, "a"), mean(alone, "a"))
    assert torch.equal(mean(both, "b"), mean(shared, "b"))
    assert not torch.equal(mean(both, "a"), mean(shared, "a"))
    only = Calibration(of={"a": own, "b": others})
    assert only.read_by("base") == own + others


def test_what_cannot_be_read_is_said(tmp_path):
    models = family(tmp_path, ["base", "a"])
    with pytest.raises(ConfigurationError, match=r"of\.aa: no such model.*'a'"):
        Collected(Calibration(of={"aa": ("w2 w3",)}), models, "base")
    with pytest.raises(ConfigurationError, match="none of the 1 texts has two tokens"):
        Collected(Calibration(texts=("w2",)), models, "base").of("gram", "a")
    states = {
        name: open_checkpoint({"x.weight": torch.ones(2, 2)}, name=name) for name in ("base", "a")
    }
    with pytest.raises(ConfigurationError, match="has no tokenizer"):
        Collected(Calibration(texts=("w2 w3",)), states, "base").of("gram", "a")
    given = {**models, "a": states["a"]}
    with pytest.raises(ModelError, match="no transformers folder"):
        Collected(Calibration(texts=("w2 w3",)), given, "base").of("gram", "a")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigurationError, match="no JSON"):
        read_calibration(tmp_path / "broken.json")
    (tmp_path / "none.txt").write_text("\n\n")
    with pytest.raises(ConfigurationError, match="no texts"):
        read_calibration(tmp_path / "none.txt")
    with pytest.raises(ConfigurationError, match=r"no such file.*none\.txt"):
        read_calibration(tmp_path / "non.txt")


def test_gpt2_has_no_linear_layers_to_look_into(tmp_path):
    kind = any_kind(tmp_path / "m", "gpt2", 0)
    checkpoint = open_checkpoint(kind, name="m")
    with torch.no_grad():
        inputs = linear_inputs(module_in(tmp_path / "m"), checkpoint, torch.tensor([[1, 2]]))
    assert inputs == []


def test_files_and_json_say_the_same(tmp_path):
    lines = tmp_path / "texts.txt"
    lines.write_text("w2 w3\n\nw4 w5 w6\n")
    read = read_calibration(lines)
    assert read.texts == ("w2 w3", "w4 w5 w6")
    (tmp_path / "calibration.json").write_text(read.to_json())
    again = read_calibration(tmp_path / "calibration.json")
    assert (again, again.sha256) == (read, read.sha256)
    assert json.loads(read.to_json()) == {"evomerge_calibration": 1, "texts": list(read.texts)}
    assert read.model_copy(update={"length": 64}).sha256 != read.sha256


def test_a_recipe_that_names_other_texts_is_refused(tmp_path):
    models = family(tmp_path, ["base", "a", "b"])
    calibration = Calibration(texts=texts(4))
    merger = merger_of(models, calibration)
    recipe = recipe_of(models, "fisher")
    named = recipe.model_copy(update={"calibration": calibration.sha256})
    plain, by_name = dict(merger.tensors(recipe)), dict(merger.tensors(named))
    assert all(torch.equal(plain[name], by_name[name]) for name in plain)
    assert named.fingerprint != recipe.fingerprint
    other = recipe.model_copy(update={"calibration": "0" * 64})
    with pytest.raises(ConfigurationError, match="another calibration set"):
        merger.plan(other)


@pytest.mark.parametrize("kind", ["gram", "fisher_data"])
def test_an_adapter_is_looked_into_as_the_model_that_it_makes(tmp_path, kind):
    base = family(tmp_path, ["base"])["base"]
    adapter_folders.lora(
        tmp_path / "base", tmp_path / "lora", target_modules=["q_proj", "down_proj"]
    )
    whole = module_in(tmp_path / "base").float()
    whole.load_state_dict(adapter_folders.merged_by_peft(tmp_path / "base", tmp_path / "lora"))
    whole.save_pretrained(tmp_path / "whole")
    sources = {name: str(tmp_path / name) for name in ("base", "lora", "whole")}
    models = open_family(sources, "base").checkpoints
    collected = Collected(Calibration(texts=texts(6)), models, "base")
    found, expected = (collected.of(kind, name) for name in ("lora", "whole"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.allclose(collected.of(kind, "base")[name], expected[name], atol=1e-3)
    assert base.names == models["lora"].names


def test_what_is_computed_does_not_hang_on_the_threads_of_the_process(tmp_path, monkeypatch):
    models = family(tmp_path, ["base"])
    found = []
    for threads in (1, 2):
        monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / f"cache{threads}"))
        torch.set_num_threads(threads)
        try:
            found.append(Collected(Calibration(texts=texts(9)), models, "base").of("gram", "base"))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
