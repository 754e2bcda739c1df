"""Push an edited model, an edit or a gate to the Hugging Face hub, and pull it with its checksums verified."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lightning_neuralgate.errors import HubError
from lightning_neuralgate.hub.card import model_card
from lightning_neuralgate.hub.origin import Origin, origin_of
from lightning_neuralgate.hub.shared import (
    CARD_NAME,
    RECORD_NAME,
    SHARED_FILES,
    SharedFolder,
    check_sums,
    file_sums,
    read_record,
    write_record,
)
from lightning_neuralgate.runtime.files import atomic_write
from lightning_neuralgate.runtime.parsing import read_json_object
from lightning_neuralgate.runtime.secrets import without_secrets
from lightning_neuralgate.runtime.versions import library_versions

_LIBRARY = "lightning-neuralgate"


class Pushed(NamedTuple):
    """Where something was uploaded: address of the repository, and its commit."""

    url: str
    commit: str


def write_upload(
    source: Path, repo: str, folder: Path, results: Path | None = None, base_model: str = ""
) -> SharedFolder:
    """Write all that is uploaded to a folder: the shared files, the model card and `reproduce.json`.

    Args:
        source: folder of an edited model or of a gate, or an edit file.
        repo: id of the hub repository, `owner/name`.
        folder: where to write; created.
        results: `results.json` of the run of `neuralgate demo` that made it.
        base_model: name or hub id of the base model; by default that of the results or of the gate.

    Raises:
        HubError: the source or the id cannot be used.
        DataFormatError: the results cannot be read.
    """
    check_repository(repo)
    content = None if results is None else read_json_object(results, own=True, hint="give the results.json of a run")
    shared = SharedFolder.read(source)
    origin = origin_of(content, base_model or ("" if content else shared.model))
    card = model_card(repo, shared, origin, content)
    folder.mkdir(parents=True)
    for name, file in shared.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
    write_record(folder, _record(shared, origin, {name: folder / name for name in shared.files}))
    return shared


def _record(shared: SharedFolder, origin: Origin, files: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "kind": shared.kind,
        "base_model": origin.base,
        "command": origin.command,
        "seeds": origin.seeds,
        "settings": origin.settings,
        "versions": origin.versions,
        "made": dict(shared.made),
        "pushed_with": library_versions(),
        "checksums": dict(shared.checksums),
        "files": file_sums(files),
    }


def upload(folder: Path, repo: str, private: bool = True) -> Pushed:
    """Upload a folder that `write_upload` has written, in place of what an earlier push has left in the repository.

    The token is that of huggingface_hub: `HF_TOKEN`, or that of `hf auth login`.

    Args:
        folder: the folder.
        repo: id of the hub repository; created if it does not exist.
        private: whether a new repository is private. One that exists stays as it is.

    Raises:
        HubError: the hub cannot be reached, refuses, or the repository holds files that no push has written.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name=_LIBRARY, library_version=version(_LIBRARY))
    with _hub_errors(f"uploading to '{repo}'"):
        url = api.create_repo(repo, private=private, exist_ok=True)
        present = set(api.list_repo_files(repo)) - {".gitattributes"}
        if present and RECORD_NAME not in present:
            raise HubError(
                f"the hub repository '{repo}' holds files that no `neuralgate push` has written, such as {min(present)}; "
                "give another name"
            )
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[*SHARED_FILES, CARD_NAME, RECORD_NAME],
            delete_patterns=list(SHARED_FILES),
            commit_message=f"Push with neuralgate {version(_LIBRARY)}",
        )
    return Pushed(str(url), str(commit.oid))


def pull(repo: str, out: Path, revision: str | None = None) -> tuple[dict[str, Any], str]:
    """Download what was pushed, verify its checksums, and write it to a new folder.

    Args:
        repo: id of the hub repository, `owner/name`.
        out: the new folder.
        revision: commit, branch or tag; the newest commit by default.

    Returns:
        The content of its `reproduce.json`, and the commit.

    Raises:
        HubError: the hub cannot be reached, `out` exists, the repository was not pushed by this package, or a file is missing
            or has another checksum.
    """
    from huggingface_hub import snapshot_download

    check_repository(repo)
    check_new(out)
    with _hub_errors(f"downloading '{repo}'"):
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[*SHARED_FILES, CARD_NAME, RECORD_NAME],
                library_name=_LIBRARY,
                library_version=version(_LIBRARY),
            )
        )
    record = read_record(folder, repo)
    check_sums(folder, record, repo)
    with atomic_write(out) as draft:
        draft.mkdir()
        for name in (*record["files"], CARD_NAME, RECORD_NAME):
            if (folder / name).is_file():
                (draft / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(folder / name, draft / name)
        shared = SharedFolder.read(draft)
        if (shared.kind, dict(shared.checksums)) != (record.get("kind"), record["checksums"]):
            raise HubError(f"the content of '{repo}' is not the one that its {RECORD_NAME} describes; push it again")
    return record, folder.name


def check_repository(repo: str) -> None:
    """Check that a name is the id of a hub repository with its owner.

    Raises:
        HubError: it is not.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(f"'{repo}' is no name of a hub repository: {error}; give it as USER/NAME") from error
    if repo.count("/") != 1:
        raise HubError(f"'{repo}' has no owner; give the hub repository as USER/NAME")


def check_new(out: Path) -> None:
    """Check that a folder does not exist.

    Raises:
        HubError: it does.
    """
    if out.exists():
        raise HubError(f"{out} exists; give a new folder, so that nothing is overwritten")


@contextmanager
def folder_to_upload(out: Path | None, source: Path) -> Iterator[Path]:
    """Yield the path of a new folder: it becomes `out` at the end of the block, or is removed if there is no `out`.

    A temporary folder is made next to the source, on a disk that has held it.
    """
    if out is not None:
        with atomic_write(out) as draft:
            yield draft
        return
    with TemporaryDirectory(dir=source.absolute().parent, prefix=f".{source.name}.push-") as scratch:
        yield Path(scratch) / "upload"


@contextmanager
def _hub_errors(doing: str) -> Iterator[None]:
    """Turn the errors of hub, network and huggingface_hub into one line without the token."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # those of huggingface_hub and of its HTTP library, which depends on the release
        from huggingface_hub import get_token

        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None and isinstance(error, OSError) and error.errno is not None:
            raise  # such as a full disk
        way_out = {
            401: "log in with `hf auth login`, or set HF_TOKEN to a token",
            403: "use a token that may write to that repository, in HF_TOKEN or with `hf auth login`",
            404: "check the name, and log in with `hf auth login` if the repository is private",
        }.get(status or 0, "check the network and the name, and try again")
        reason = " ".join(without_secrets(str(error) or repr(error), get_token() or "").split())
        raise HubError(f"{doing} failed: {reason}; {way_out}") from error
