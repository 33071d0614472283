from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from evomerge import files
from evomerge.checkpoints import shards, staging
from evomerge.checkpoints.derived import Derived
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.checkpoints.shards import layout_of
from evomerge.checkpoints.small_files import small_files
from evomerge.checkpoints.write import write_model
from evomerge.errors import ConfigurationError, DiskFull, ModelError

RECIPE_NAME = "evomerge_recipe.yaml"
RECIPE = {"evomerge_recipe.yaml": "evomerge_recipe: 1\n", "README.md": "# A model\n"}


def stored(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    for name in checkpoint.names:
        yield name, checkpoint.tensor(name)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a tokenizer and a chat template."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 4_000, 1])
def test_transformers_reads_what_was_written(
    tmp_path: Path, llama: Path, max_shard_bytes: int
) -> None:
    transformers = pytest.importorskip("transformers")
    like = open_checkpoint(llama, name="base")
    written = write_model(
        tmp_path / "out",
        stored(like),
        like=like,
        extra_files=RECIPE,
        max_shard_bytes=max_shard_bytes,
    )
    again = open_checkpoint(written, name="out")
    assert again.sha256() == like.sha256()
    assert again.config == like.config
    files = {path.name for path in written.iterdir()}
    assert ("model.safetensors.index.json" in files) == (max_shard_bytes < 10_000)
    assert ("model.safetensors" in files) == (max_shard_bytes > 10_000)
    shared = {path.name for path in llama.iterdir()} - {"model.safetensors"}
    assert shared | set(RECIPE) <= files
    assert "chat_template.jinja" in files
    if max_shard_bytes == 4_000:
        assert all(p.stat().st_size < 5_000 for p in written.glob("model-*.safetensors"))
    tokens = torch.tensor([[0, 2, 3, 4, 2]])
    with torch.no_grad():
        one, other = (
            transformers.AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
            for folder in (llama, written)
        )
    assert torch.equal(one, other)
    assert transformers.AutoTokenizer.from_pretrained(written).chat_template == "{{ messages }}"
    assert not list(tmp_path.glob(".*")), "nothing is left beside the model"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_is_written_and_declared(tmp_path: Path, llama: Path, dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers")
    like = open_checkpoint(llama, name="base")
    write_model(tmp_path / "out", stored(like), like=like, layout=layout_of(like, dtype))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == dtype
    for name in like.names:
        assert torch.equal(loaded.state_dict()[name], like.tensor(name).to(dtype))


def test_the_dtype_follows_the_tensors(tmp_path: Path, llama: Path) -> None:
    like = open_checkpoint(llama, name="base")
    layout = layout_of(like, torch.bfloat16)
    write_model(tmp_path / "out", stored(like), like=like, layout=layout)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {config.get("dtype"), config.get("torch_dtype")} == {"bfloat16", None}


def test_the_tokenizer_may_come_from_another_model(tmp_path: Path, llama: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(llama, other)
    (other / "tokenizer_config.json").write_text("{}")
    base = open_checkpoint(llama, name="base")
    files = small_files(open_checkpoint(other, name="other")) | {"chat_templates/a.jinja": "hello"}
    names = {name: name for name in base.names}
    view = Derived(base, names, small_files=files, change="tokenizer")
    write_model(tmp_path / "out", stored(base), like=view)
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == "{}"
    assert (tmp_path / "out" / "chat_templates" / "a.jinja").read_text() == "hello"
    with pytest.raises(ConfigurationError, match="the tokenizer is read from"):
        write_model(other, stored(base), like=view)


MIXED = {
    "b": torch.arange(3, dtype=torch.uint8),
    "a": torch.arange(5, dtype=torch.bfloat16),
    "c": torch.arange(6, dtype=torch.float32).view(2, 3).T,
    "flag": torch.tensor([True]),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "nothing": torch.zeros(0, 4),
    "count": torch.tensor([2**40]),
}


def test_a_plain_state_dict_is_one_file_that_safetensors_reads(tmp_path: Path) -> None:
    like = open_checkpoint(MIXED, name="net")
    out = tmp_path / "out"
    write_model(out, MIXED.items(), like=like, extra_files=RECIPE, max_shard_bytes=1)
    assert {path.name for path in out.iterdir()} == {"model.safetensors", *RECIPE}
    loaded = load_file(out / "model.safetensors")
    assert set(loaded) == set(MIXED)
    for name, tensor in MIXED.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_casting_leaves_whole_numbers(tmp_path: Path) -> None:
    like = open_checkpoint(MIXED, name="net")
    out = write_model(
        tmp_path / "o", MIXED.items(), like=like, layout=layout_of(like, torch.bfloat16)
    )
    loaded = load_file(out / "model.safetensors")
    assert loaded["c"].dtype == loaded["scalar"].dtype == torch.bfloat16
    assert loaded["count"].dtype == torch.int64
    assert loaded["flag"].dtype == torch.bool


@pytest.mark.parametrize("max_shard_bytes", [12_000, 5_000_000_000])
def test_one_tensor_in_memory(tmp_path: Path, llama: Path, max_shard_bytes: int) -> None:
    alive: list[int] = []
    highest = 0

    def counted() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal highest
        for i in range(40):
            tensor = torch.full((1000,), float(i))
            alive.append(i)

            weakref.finalize(tensor, alive.remove, i)
            highest = max(highest, len(alive))
            yield f"t{i}", tensor

    like = open_checkpoint(llama, name="base")
    layout = {f"t{i}": ((1000,), torch.float32) for i in range(40)}
    out = tmp_path / "out"
    write_model(out, counted(), like=like, layout=layout, max_shard_bytes=max_shard_bytes)
    assert highest <= 2  # one being written, one being made
    written = open_checkpoint(out, name="out")
    assert all(written.tensor(f"t{i}").eq(i).all() for i in range(40))


def test_tensors_come_in_any_order(tmp_path: Path, llama: Path) -> None:
    like = open_checkpoint(llama, name="base")
    backwards = reversed(list(stored(like)))
    written = write_model(tmp_path / "out", backwards, like=like, max_shard_bytes=4_000)
    assert open_checkpoint(written, name="out").sha256() == like.sha256()


def test_a_model_of_nothing(tmp_path: Path) -> None:
    like = open_checkpoint({}, name="nothing")
    out = write_model(tmp_path / "out", [], like=like)
    assert load_file(out / "model.safetensors") == {}


# --- what may not be written --------------------------------------------------------------------


def small(value: float = 1.0) -> Checkpoint:
    return open_checkpoint({"w": torch.full((4,), value)}, name="small")


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match="mine"):
        write_model(target, stored(small()), like=small())
    assert (target / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigurationError, match="thesis"):
        write_model(target / "thesis.txt", stored(small()), like=small())


def test_own_folders_are_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_model(target, stored(small(1.0)), like=small(), extra_files=RECIPE | {"old.txt": "x"})
    write_model(target, stored(small(2.0)), like=small(), extra_files=RECIPE)
    assert float(load_file(target / "model.safetensors")["w"][0]) == 2.0
    assert not (target / "old.txt").exists()
    assert not list(tmp_path.glob(".out.*"))


def test_replacing_without_an_atomic_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    test_own_folders_are_replaced_whole(tmp_path)


def test_a_model_is_not_written_onto_itself(tmp_path: Path) -> None:
    target = write_model(tmp_path / "out", stored(small()), like=small(), extra_files=RECIPE)
    opened = open_checkpoint(target, name="x")
    with pytest.raises(ConfigurationError, match="is read from"):
        write_model(target, stored(opened), like=opened, extra_files=RECIPE)
    # Nor onto another model that is read from, nor over a folder with one in it.
    other = open_checkpoint({"w": torch.zeros(4)}, name="other")
    with pytest.raises(ConfigurationError, match="'x' that is read from"):
        write_model(target, stored(other), like=other, reads=[opened])
    (tmp_path / RECIPE_NAME).write_text("a folder that evomerge wrote")
    with pytest.raises(ConfigurationError, match="'x' that is read from"):
        write_model(tmp_path, stored(other), like=other, reads=[opened])
    assert open_checkpoint(target, name="x").sha256() == opened.sha256()


@pytest.mark.parametrize("name", ["../escape", "/escape", "", "a/b"])
def test_extra_files_have_bare_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="bare file name"):
        write_model(tmp_path / "out", stored(small()), like=small(), extra_files={name: "x"})
    assert not (tmp_path / "out").exists()


def test_a_tensor_given_twice_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="given twice"):
        write_model(tmp_path / "out", [*stored(small()), *stored(small())], like=small())
    assert not [p for p in tmp_path.iterdir() if p.name != "evomerge-cache"]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({}, "'w': was never given"),
        ({"w": torch.zeros(4), "v": torch.zeros(4)}, "'v': is not one of those"),
        ({"w": torch.zeros(3)}, r"expected shape \[4\], got \[3\]"),
    ],
)
def test_tensors_are_those_of_the_layout(
    tmp_path: Path, given: dict[str, torch.Tensor], what: str
) -> None:
    with pytest.raises(ModelError, match=what):
        write_model(tmp_path / "out", given.items(), like=small())
    assert not (tmp_path / "out").exists()


def test_too_little_space_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like = open_checkpoint({"w": torch.zeros(1_000_000)}, name="x")
    monkeypatch.setattr(files, "free_bytes", lambda _: 4_700_000)
    with pytest.raises(DiskFull, match=r"out: no space .*: needs 4\.8 MB, 4\.7 MB free"):
        write_model(tmp_path / "out", stored(like), like=like)
    assert not (tmp_path / "out").exists()
    write_model(tmp_path / "out", stored(like), like=like, layout=layout_of(like, torch.bfloat16))


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(DiskFull, match="out"):
        write_model(tmp_path / "out", stored(small()), like=small())
    assert not [p for p in tmp_path.iterdir() if p.name != "evomerge-cache"]


# --- killed -------------------------------------------------------------------------------------


def in_child(work: Callable[[], object], *, kill_after_s: float | None = None) -> int:
    """How a forked process ended that did the work: an exit code, or minus a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_two_shards(target: Path, value: float = 1.0) -> None:
    like = open_checkpoint({name: torch.full((4,), value) for name in "ab"}, name="new")
    like.config = {"model_type": "x"}
    write_model(target, stored(like), like=like, extra_files=RECIPE, max_shard_bytes=16)


def run_killed(target: Path, failpoint: str) -> int:
    def work() -> None:
        os.environ["EVOMERGE_FAILPOINT"] = failpoint
        write_two_shards(target)

    return in_child(work)


def test_killed_at_every_failpoint(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for failpoint in ("export.shard", "export.shard:2", "export.before_index"):
        assert run_killed(target, failpoint) == -signal.SIGKILL
        assert not target.exists()
        assert len(list(tmp_path.glob(".out.*"))) == 2  # those of this writer alone: part and lock
    old = write_model(target, stored(small(7.0)), like=small(), extra_files=RECIPE)
    assert not list(tmp_path.glob(".out.*")), "the dead writers' leftovers are cleared"
    digest = open_checkpoint(old, name="old").sha256()
    assert run_killed(target, "export.before_index") == -signal.SIGKILL
    assert open_checkpoint(target, name="old").sha256() == digest
    assert run_killed(target, "") == 0
    assert open_checkpoint(target, name="new").names == ("a", "b")
    assert not list(tmp_path.glob(".out.*"))


def test_killed_at_any_instant(tmp_path: Path) -> None:
    """Random kills of a process that replaces one model by another, over and over."""
    target = tmp_path / "out"
    write_two_shards(target, 0.0)
    valid = {}
    for value in (0.0, 1.0):
        state = {name: torch.full((4,), value) for name in "ab"}
        valid[value] = open_checkpoint(state, name="x").sha256()

    def work() -> None:
        while True:
            for value in valid:
                write_two_shards(target, value)

    generator = random.Random(0)
    for _ in range(25):
        assert in_child(work, kill_after_s=generator.uniform(0.0, 0.06)) == -signal.SIGKILL
        opened = open_checkpoint(target, name="x")
        assert opened.sha256() in valid.values()
        assert {path.name for path in target.iterdir()} >= set(RECIPE)
    write_two_shards(target, 0.0)
    assert not list(tmp_path.glob(".out.*"))


def test_a_living_writer_keeps_its_folder(tmp_path: Path) -> None:
    """Two at once: the later one's model stands, and neither harms the other."""
    target = tmp_path / "out"
    started, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[tuple[str, torch.Tensor]]:
        yield from stored(small(1.0))
        started.set()
        go_on.wait(10)

    def write_slowly() -> None:
        write_model(target, slow(), like=small(), extra_files=RECIPE)

    thread = threading.Thread(target=write_slowly)
    thread.start()
    started.wait(10)
    write_model(target, stored(small(2.0)), like=small(), extra_files=RECIPE)
    assert len(list(tmp_path.glob(".out.*.part"))) == 1
    go_on.set()
    thread.join(10)
    assert float(load_file(target / "model.safetensors")["w"][0]) == 1.0


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    """Without an atomic exchange the old model comes back with the next write's clearing."""
    old = tmp_path / ".out.0123456789abcdef.old"
    old.mkdir()
    (old / "evomerge_recipe.yaml").write_text("old")
    old.with_suffix(".part").mkdir()
    old.with_suffix(".lock").touch()
    staging.clear_leftovers(tmp_path / "out")
    assert (tmp_path / "out" / "evomerge_recipe.yaml").read_text() == "old"
    assert not list(tmp_path.glob(".out.*"))


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    write_model(tmp_path / "out", stored(small()), like=small(), extra_files=RECIPE)
    before = opened()
    for _ in range(5):
        write_model(tmp_path / "out", stored(small()), like=small(), extra_files=RECIPE)
        checkpoint = open_checkpoint(tmp_path / "out", name="x")
        checkpoint.sha256()
        checkpoint.close()
    assert opened() == before
