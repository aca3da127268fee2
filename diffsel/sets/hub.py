"""Uploading an exported folder to the Hugging Face hub, for whoever is logged in there."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..settings.errors import ConfigError


def check_login(hub_id: str) -> str:
    """Who is logged in to the hub, asked before anything is written.

    Raises ConfigError for an id that cannot be one, or where nobody is logged in or the hub does not answer.
    """
    try:
        validate_repo_id(hub_id)
        return str(HfApi().whoami()["name"])
    except HFValidationError as error:
        raise ConfigError(f"--push {hub_id!r}: not a hub id such as NAME/SET ({error})") from None
    except LocalTokenNotFoundError:
        raise ConfigError(f"--push {hub_id}: nobody is logged in to the hub; run `hf auth login` or set HF_TOKEN") from None
    except Exception as error:  # without a network, errors come from the client library below, whichever that is
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--push {hub_id}: the hub did not accept the login, or did not answer: {reason}") from None


def push(folder: Path, hub_id: str, private: bool = True) -> str:
    """Upload an exported folder as a data set repository, made where it is missing; its address.

    Raises ConfigError where the hub refuses; started again, only what is missing there is uploaded.
    """
    try:
        api = HfApi()
        repo = api.create_repo(hub_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder, repo_id=repo.repo_id, repo_type="dataset", commit_message="Upload a distilled set (diffsel)"
        )
        return str(repo)
    except Exception as error:
        raise ConfigError(f"--push {hub_id}: {str(error).splitlines()[0]} (the export itself is whole: {folder})") from None
