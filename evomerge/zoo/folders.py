"""Folders of trained families: who works on one, what is in it, and the models it holds."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import ConfigurationError, Problem
from evomerge.files import disk_errors, fsync, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LABEL = "zoo.json"  # written last; says what the folder is


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its process, so nothing stale can remain.

    Raises:
        ConfigurationError: the folder cannot be written.
        DiskFull: the models did not fit on the disk.
    """
    try:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.with_name(f".{target.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
    except OSError as error:
        hint = "choose another folder, or set $EVOMERGE_CACHE"
        raise ConfigurationError(
            Problem(str(error.filename or target), f"cannot be written: {error.strerror}", hint)
        ) from error


def read_label(folder: Path) -> Any:
    """The label of a complete zoo; None where there is none."""
    try:
        return json.loads((folder / LABEL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_label(folder: Path, label: dict[str, Any]) -> None:
    """Say that the folder is complete, and what it is."""
    write_text(folder / LABEL, json.dumps(label, indent=2) + "\n")


def refuse_other_content(target: Path) -> None:
    """Refuse a folder of somebody else's.

    Raises:
        ConfigurationError: there is something that is not an empty folder.
    """
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        found = read_label(target)
        what = f"the zoo {found}" if found else "something that is no zoo"
        raise ConfigurationError(
            Problem(str(target), f"the folder holds {what}", "remove it or choose another")
        )


def made_whole(
    target: Path, label: dict[str, Any], write: Callable[[Path], None], *, in_cache: bool
) -> Path:
    """The folder with this label, made now unless it is there already.

    Args:
        target: takes its name as the last step; until then everything is in a neighbour.
        label: what the folder is.
        write: writes the models into an empty folder. Of several processes that ask at once, one
            writes and the others wait.
        in_cache: whether the place is ours, so that what another recipe made there is replaced.

    Raises:
        ConfigurationError: the folder holds something else, or cannot be written.
        DiskFull: the models did not fit on the disk.
    """
    if read_label(target) == label:
        return target
    with claimed(target):
        if read_label(target) == label:  # another process was faster
            return target
        if not in_cache:
            refuse_other_content(target)
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # what an interrupted training left
        part.mkdir()
        try:
            write(part)
            write_label(part, label)
            if target.exists():  # empty, or in the cache by an older recipe
                shutil.rmtree(target)
            part.rename(target)
            fsync(target.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def write_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, card: str
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    folder.mkdir(parents=True)
    config = model.config
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]  # the embedding once more
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    _name_tokenizer_for_all_versions(folder / "tokenizer_config.json")
    write_text(folder / "README.md", card)
    for path in (*folder.iterdir(), folder):
        fsync(path)


def _name_tokenizer_for_all_versions(path: Path) -> None:
    """Give the class the name that both know: what transformers 5 writes, 4 does not know."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
