"""Execute the notebooks of this folder anew, and keep their outputs: `make notebook`.

Nothing is fetched: the kernel is this Python, with this evomerge, in a folder that is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import evomerge

FOLDER = Path(__file__).parent
TIMEOUT_S = 120  # of a cell


class ThisPython(KernelSpecManager):  # type: ignore[misc]
    """Whatever kernels are installed, the one that runs this."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002
        """The kernel of this Python, by any name."""
        return KernelSpec(resource_dir="", **get_kernel_dict())


def executed(path: Path) -> Any:
    """A notebook with the outputs that its cells give now.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    package = Path(evomerge.__file__).parents[1]  # of this evomerge, wherever it is found
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "IPYTHONDIR": folder,  # no history, no profile of the user's
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, of a bar that nobody draws
        }
        (Path(folder) / "work").mkdir()
        manager = AsyncKernelManager(
            kernel_spec_manager=ThisPython(), transport="ipc", ip=str(Path(folder) / "kernel")
        )
        where = {"metadata": {"path": str(Path(folder) / "work")}}
        client = NotebookClient(
            notebook, km=manager, timeout=TIMEOUT_S, resources=where, record_timing=False
        )
        client.execute(env=environment)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "evomerge": {"executed": code_hash(notebook)},
    }
    return notebook


def code_hash(notebook: Any) -> str:
    """sha256 of the cells of code: outputs belong to the code that they came from."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def main() -> None:
    """Execute those that are named, or all."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
