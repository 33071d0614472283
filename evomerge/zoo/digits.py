"""The family `digits`: two networks of one hidden layer, each trained on half of the ten digits.

They are the pair with which M2N2 was shown (Abrantes et al. 2025, arXiv:2508.16204): 64 inputs, 256
hidden units (ReLU), 10 outputs, 19,210 parameters; first weights N(0, .01^2); ten full-batch steps
of Adam at 3e-3 on raw pixels (0 to 16) of scikit-learn's 8x8 digits, `low` on 0 to 4 and `high` on
5 to 9. `base` is what `low` began as. Departure: the paper trains on the first 1,437 images, and
searches on the same ones; here the networks see the first 797 alone, so that a search has others.

A model is a folder with tensors and no config: `hidden.weight` (256, 64), `hidden.bias`,
`output.weight` (10, 256), `output.bias`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from evomerge.files import cache_folder, fsync
from evomerge.protocols import Progress
from evomerge.zoo.folders import claimed, read_label, refuse_other_content, write_label
from evomerge.zoo.tiny_training import named_generator, one_thread

MODELS = ("base", "low", "high")
NUM_SEEN = 797  # of 1,797 images, in scikit-learn's order; no search should ask these
STEPS, LEARNING_RATE = 10, 3e-3
PIXELS, HIDDEN, CLASSES = 64, 256, 10
STD = 0.01  # of the first weights
REVISION = 1  # to be raised when the same code comes to train other weights

Network = dict[str, Tensor]


def digits(folder: Path | None = None, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """The folder with `base`, `low` and `high`, trained now unless it is there already.

    The same seed gives the same bytes on the same machine, within two seconds.

    Args:
        folder: Where to train into; by default a place of its own in the user's cache folder.
        seed: What the first weights are drawn from.
        progress: Called as (model, steps done, steps of this model).

    Raises:
        ConfigurationError: the folder holds something else, or cannot be written.
        DiskFull: the models did not fit on the disk.
    """
    target = (folder or cache_folder() / "zoo" / f"digits-seed{seed}").expanduser().absolute()
    label = {"zoo": "digits", "seed": seed, "models": list(MODELS), "revision": REVISION}
    if read_label(target) == label:
        return target
    with claimed(target):
        if read_label(target) == label:  # another process was faster
            return target
        if folder is not None:
            refuse_other_content(target)
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # what an interrupted training left
        try:
            for name, network in train(seed, progress).items():
                _write(part / name, network)
            write_label(part, label)
            shutil.rmtree(target, ignore_errors=True)  # empty, or in the cache by an older recipe
            part.rename(target)
            fsync(target.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def train(seed: int, progress: Progress | None = None) -> dict[str, Network]:
    """The networks of a seed, by name."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images[:NUM_SEEN], dtype=torch.float32)
    wanted = torch.tensor(labels[:NUM_SEEN])
    networks = {"base": first_weights(seed, "low")}
    for name, seen in (("low", wanted < 5), ("high", wanted >= 5)):
        with one_thread():
            networks[name] = _trained(
                first_weights(seed, name), inputs[seen], wanted[seen], name, progress
            )
    return networks


def first_weights(seed: int, name: str) -> Network:
    """An untrained network."""
    generator = named_generator(seed, f"digits {name}")
    shapes = {
        "hidden.weight": (HIDDEN, PIXELS),
        "hidden.bias": (HIDDEN,),
        "output.weight": (CLASSES, HIDDEN),
        "output.bias": (CLASSES,),
    }
    return {name: STD * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def logits(network: Network, images: Tensor) -> Tensor:
    """What a network says of images, (images, 64) -> (images, 10)."""
    hidden = torch.relu(images @ network["hidden.weight"].T + network["hidden.bias"])
    return hidden @ network["output.weight"].T + network["output.bias"]


def _trained(
    network: Network, images: Tensor, labels: Tensor, name: str, progress: Progress | None
) -> Network:
    network = {key: tensor.clone().requires_grad_() for key, tensor in network.items()}
    optimiser = torch.optim.Adam(network.values(), lr=LEARNING_RATE)
    for step in range(STEPS):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(network, images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if progress is not None:
            progress(name, step + 1, STEPS)
    return {key: tensor.detach() for key, tensor in network.items()}


def _write(folder: Path, network: Network) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(network, folder / "model.safetensors", metadata={"format": "pt"})
    for path in (folder / "model.safetensors", folder):
        fsync(path)
