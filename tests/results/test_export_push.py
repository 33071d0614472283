"""Uploading, to a hub that is made up: nothing here reaches a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

import evomerge
from evomerge.errors import ConfigurationError
from evomerge.results.hub import Push, check_push, push_folder

RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://hub"))


class Hub:
    """What of HfApi is called; remembers what it was told."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.uploads: list[tuple[str, set[str]]] = []
        self.error: Exception | None = None

    def repo_info(self, repo: str, *, repo_type: str) -> Any:
        assert repo_type == "model"
        if repo not in self.private:
            raise RepositoryNotFoundError("no such repository", response=RESPONSE)
        return SimpleNamespace(private=self.private[repo])

    def create_repo(self, repo: str, *, private: bool, repo_type: str, exist_ok: bool) -> None:
        assert (repo_type, exist_ok) == ("model", True)
        self.private[repo] = private

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: str, commit_message: str
    ) -> Any:
        assert repo_type == "model"
        assert "evomerge" in commit_message
        if self.error is not None:
            raise self.error
        self.uploads.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))
        return SimpleNamespace(repo_url=f"https://hub/{repo_id}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> evomerge.Run:
    """A search over two numbers."""

    def fitness(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        one, two = state["w"].tolist()
        return {"one": [one] * 8, "two": [two] * 8}

    states = {n: {"w": torch.tensor(v)} for n, v in {"a": [1.0, 0.0], "b": [0.0, 1.0]}.items()}
    return evomerge.search(
        models=states,
        base={"w": torch.zeros(2)},
        space="per_expert",
        fitness=fitness,
        searcher={"kind": "nsga2", "population": 4},
        budget=8,
        out=tmp_path_factory.mktemp("pushed") / "run",
    )


def test_it_is_private_unless_somebody_says_otherwise(
    hub: Hub, run: evomerge.Run, tmp_path: Path
) -> None:
    run.export(folder=tmp_path / "model")
    assert (hub.uploads, hub.private) == ([], {})  # nothing is uploaded unasked
    run.export(folder=tmp_path / "model", push="me/merged")
    run.export(folder=tmp_path / "model", push="me/open", public=True)
    assert hub.private == {"me/merged": True, "me/open": False}
    files = {"README.md", "evomerge_recipe.yaml", "evomerge_export.json", "model.safetensors"}
    assert [(repo, files <= names) for repo, names in hub.uploads] == [
        ("me/merged", True),
        ("me/open", True),
    ]
    assert "memory:" not in (tmp_path / "model" / "README.md").read_text().split("---\n")[1]


def test_a_front_has_a_repository_for_each_model(
    hub: Hub, run: evomerge.Run, tmp_path: Path
) -> None:
    done = run.export_front(tmp_path / "models", push="me/merged")
    assert len(done) > 1
    assert [repo for repo, _ in hub.uploads] == [f"me/merged-candidate-{d.candidate}" for d in done]
    assert [d.url for d in done] == [f"https://hub/{repo}" for repo, _ in hub.uploads]
    assert set(hub.private.values()) == {True}


def test_what_is_public_already_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    hub.private["me/merged"] = False
    with pytest.raises(ConfigurationError, match=r"me/merged: is there already, and public"):
        push_folder(tmp_path, "me/merged")
    assert hub.uploads == []
    assert push_folder(tmp_path, "me/merged", public=True) == "https://hub/me/merged"


@pytest.mark.parametrize(
    "error",
    [
        HfHubHTTPError("403 Forbidden: no rights\nmore", response=RESPONSE),
        httpx.ConnectError("no route to host"),
        ConnectionError("offline"),
        ValueError("a file is too large"),
    ],
)
def test_a_hub_that_refuses_is_told_in_a_line(
    error: Exception, hub: Hub, run: evomerge.Run, tmp_path: Path
) -> None:
    hub.error = error
    with pytest.raises(ConfigurationError) as caught:
        run.export(folder=tmp_path / "model", push="me/merged")
    (problem,) = caught.value.problems
    assert problem.where == "--push me/merged"
    assert str(error).splitlines()[0] in problem.what
    assert "\n" not in problem.what
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_without_a_token_nothing_is_begun(
    hub: Hub, run: evomerge.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigurationError, match="there is no token of the hub"):
        run.export(folder=tmp_path / "model", push="me/merged")
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="unset HF_HUB_OFFLINE"):
        check_push(Push("me/merged"))


@pytest.mark.parametrize("repo", ["merged", "me/", "me/a/b", "me/..", "me/x y", ""])
def test_names_that_are_none_are_refused(repo: str, hub: Hub) -> None:
    with pytest.raises(ConfigurationError, match="expected ORG/NAME"):
        check_push(Push(repo))


@pytest.mark.parametrize(("offline", "said"), [("0", "no token of the hub"), ("1", "stay offline")])
def test_a_process_that_has_imported_nothing_of_the_hub(
    offline: str, said: str, tmp_path: Path
) -> None:
    code = "from evomerge.results.hub import *; check_push(Push('me/merge'))"
    unset = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"}
    kept = {key: value for key, value in os.environ.items() if key not in unset}
    environment = {**kept, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigurationError" in last
    assert said in last
