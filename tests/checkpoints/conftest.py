from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checksums are cached in the test's own folder."""
    folder = tmp_path / "evomerge-cache"
    monkeypatch.setenv("EVOMERGE_CACHE", str(folder))
    torch.set_num_threads(1)
    return folder
