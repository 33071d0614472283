"""Uploading exported folders to a hub, when the user asks for it and never else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, Problem

NOTHING_LOST = "what was written stays; the same command goes on"


@dataclass(frozen=True)
class Push:
    """Where to: `ORG/NAME`. Repositories are private unless `public` says otherwise."""

    repo: str
    public: bool = False

    def repo_of(self, folder: Path, *, is_set: bool) -> str:
        """A folder's repository: a set has one for each model, `ORG/NAME-candidate-17`."""
        return f"{self.repo}-{folder.name.replace('_', '-')}" if is_set else self.repo


def check_push(push: Push) -> None:
    """Find out before anything is merged that nothing can be uploaded.

    Raises:
        ConfigurationError: the name is none, the hub is switched off, or there is no token.
    """
    import huggingface_hub
    from huggingface_hub import constants  # the package itself has not imported it
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    where = f"--push {push.repo}"
    try:
        validate_repo_id(push.repo)
    except HFValidationError as error:
        raise ConfigurationError(Problem(where, _line(error), "expected ORG/NAME")) from None
    if "/" not in push.repo:
        raise ConfigurationError(Problem(where, "names no owner", "expected ORG/NAME"))
    if constants.is_offline_mode():
        what = "the environment says to stay offline"
        raise ConfigurationError(Problem(where, what, "unset HF_HUB_OFFLINE"))
    if not huggingface_hub.get_token():
        what = "there is no token of the hub"
        raise ConfigurationError(Problem(where, what, "set HF_TOKEN, or call `hf auth login`"))


def push_folder(folder: Path, repo: str, *, public: bool = False) -> str:
    """Upload a folder as one commit; its URL.

    Raises:
        ConfigurationError: the hub cannot be reached, or refuses; or the repository is public
            already, and nobody said that this may be.
    """
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    api: Any = huggingface_hub.HfApi()
    try:
        try:
            is_private = bool(api.repo_info(repo, repo_type="model").private)
        except RepositoryNotFoundError:
            api.create_repo(repo, private=not public, repo_type="model", exist_ok=True)
            is_private = not public
        if not is_private and not public:
            what = "is there already, and public"
            raise ConfigurationError(Problem(f"--push {repo}", what, "add --public if it may be"))
        made = api.upload_folder(
            repo_id=repo,
            repo_type="model",
            folder_path=str(folder),
            commit_message="Upload a merge made with evomerge",
        )
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError, ValueError) as error:
        what = f"{type(error).__name__}: {_line(error)}"
        raise ConfigurationError(Problem(f"--push {repo}", what, NOTHING_LOST)) from None
    return str(getattr(made, "repo_url", None) or f"https://huggingface.co/{repo}")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
