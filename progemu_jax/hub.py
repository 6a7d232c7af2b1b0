"""The Hugging Face Hub: `hf:owner/name[@revision]` as a folder, and a folder as a commit there; the extra [hub].

Downloads lie in the Hub's own cache (`HF_HOME`). `HF_TOKEN` or `hf auth login` opens private repositories, and
`HF_ENDPOINT` names another server.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from tqdm import tqdm

from progemu_jax.errors import UserError, disk_trouble

PREFIX = "hf:"
# What readers of weights open. Pickles and code are not even fetched.
WANTED = ("*.json", "*.safetensors", "*.tiktoken", "*.txt", "*.npz")
_REPO, _REVISION = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII), re.compile(r"[\w][\w./-]*", re.ASCII)


def is_address(path: object) -> TypeGuard[str]:
    """Whether this text, not a `Path`, means a repository of the Hub."""
    return isinstance(path, str) and path.startswith(PREFIX)


def parse(address: str) -> tuple[str, str | None]:
    """("owner/name", revision or None) of "hf:owner/name[@revision]". Raises UserError for anything else."""
    repo, at, revision = address.removeprefix(PREFIX).partition("@")
    if not _REPO.fullmatch(repo) or (at and not _REVISION.fullmatch(revision)):
        raise UserError(f"{address[:100]!r}: expected hf:owner/name or hf:owner/name@revision (branch, tag or commit)")
    return repo, revision or None


def fetch(address: str) -> tuple[Path, str]:
    """(folder, "hf:owner/name@COMMIT") of a repository, fetched where it is not in the cache yet.

    A connection that is cut is taken up where it was; after a kill, files that were complete are not fetched again. A
    commit that is in the cache needs no network. Every file is compared with the hash that the Hub keeps of it, at each
    call.

    Raises:
      UserError: no such address, repository or revision; no network; a file that has another hash; the extra missing.
    """
    repo, revision = parse(address)
    with _one_line(address) as hub:
        folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=list(WANTED)))
    pinned = f"{PREFIX}{repo}@{folder.name}"
    _check(folder, pinned)
    return folder, pinned


def publish(folder: Path, repo: str, private: bool, message: str) -> str:
    """Sends a folder as one commit, which leaves nothing of an earlier one; returns "hf:owner/name@COMMIT".

    The repository is made where it is not there. Files that the Hub has already, as after a cut, are not sent again.

    Raises:
      UserError: no token, no right to write, no network; the extra missing.
    """
    address = f"{PREFIX}{repo}"
    with _one_line(address) as hub:
        api = hub.HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        made = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, delete_patterns="*")
    return f"{address}@{made.oid}"


@contextlib.contextmanager
def _one_line(address: str) -> Iterator[Any]:
    """The library; what goes wrong with it within is a UserError."""
    try:
        import httpx2
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(f'{address}: needs {error.name}: pip install -e ".[hub]"') from None
    try:
        yield huggingface_hub
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError, errors.XetDownloadError) as error:
        why: BaseException = error
        if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
            why = error.__cause__
        if isinstance(why, errors.GatedRepoError):
            text = "its owner gives access on request: ask on its page, then hf auth login"
        elif isinstance(why, errors.RepositoryNotFoundError):
            text = "no such repository, or a private one: check the name, or say who asks (hf auth login)"
        elif isinstance(why, errors.RevisionNotFoundError):
            text = "no such revision; give a branch, tag or whole commit of that repository"
        elif isinstance(why, errors.HfHubHTTPError):
            remedy = "say who asks (hf auth login)" if why.response.status_code in (401, 403) else "try again later"
            text = f"the Hub refuses, {why.response.status_code} ({_line(why.server_message or why)}); {remedy}"
        elif trouble := disk_trouble(error):
            text = f"cannot be stored ({trouble}); mend that, then the same call goes on"
        elif isinstance(why, ValueError):  # names and cards that the library or the Hub does not take
            text = f"not taken: {_line(why)}"
        else:
            text = f"the Hub is not reached ({_line(why)}), and the cache has no whole copy; the same call goes on"
        raise UserError(f"{address}: {text}") from None


def _line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def _check(folder: Path, pinned: str) -> None:
    """Compares the files of a snapshot with the Hub's hashes. They are the names of what its links lead to."""
    links = [path for path in sorted(folder.rglob("*")) if path.is_symlink()]
    for path in tqdm(links, desc="hashes", unit="file", disable=None, leave=False):
        wanted = Path(os.readlink(path)).name
        if _hash(path, len(wanted)) not in (wanted, None):
            raise UserError(
                f"{pinned}: {path.relative_to(folder)} does not have the hash that the Hub gives; delete "
                f"{folder.parent.parent} and load again"
            )


def _hash(path: Path, digits: int) -> str | None:
    """The hash of a file that has so many digits, as the Hub makes it; None for what is no hash of its."""
    if digits == 64:
        found = hashlib.sha256()
    elif digits == 40:  # a file that lies in git itself
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return None
    with open(path, "rb") as file:
        hashlib.file_digest(file, lambda: found)
    return found.hexdigest()
