"""Weights from the Hugging Face hub, through its own cache (``HF_HOME``) and its own offline mode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from kinema.bounds import few, quoted
from kinema.checkpoints.files import WEIGHTS
from kinema.checkpoints.pickles import SUFFIXES
from kinema.checkpoints.source import INDEX
from kinema.schema import BadRequest

BESIDE = ("*/*.json", "*/*.txt", "*/*.model")
"""What a pipeline's parts have besides weights: configs and vocabularies."""
KINDS = ("*/*.fp16*", "*/*.bf16*", "*/*.non_ema*", "*/*.onnx*", "*/*.msgpack")
"""Weights of other kinds than the plain ones, which lie beside them."""
CONFIG = "config.json"


def fetch_model(name: str, offline: bool | None = None, variant: str | None = None) -> Path:
    """The local folder of a model on the hub, or its file: ``owner/name`` or ``owner/name/file``.

    Of a pipeline, or of one network with its config, only what loading it reads: configs and the weights of one
    ``variant``, as repositories often hold every precision, and single files besides. Of a repository of single files
    the only one there is. Raises `BadRequest` as `fetch` does, and for one of several files, which has to be named.
    """
    if variant and not re.fullmatch(r"\w[\w-]*", variant):  # it becomes a pattern of names, and a recipe may tell it
        raise BadRequest(f"variant {quoted(variant)} is no name; expected one such as fp16")
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if file:
        return fetch(f"{owner}/{repository}", offline, [file]) / file
    folder = _snapshot(name, offline, [INDEX, CONFIG])
    if (folder / INDEX).is_file():
        below, told = "*/", [INDEX, *BESIDE]
    elif (folder / CONFIG).is_file():
        below, told = "", ["*.json", "*.txt"]
    else:
        return _only_file(name, folder, offline)
    weights = f"{below}*.{variant}*" if variant else f"{below}*.safetensors"
    unwanted = [kind.removeprefix("*/") if not below else kind for kind in KINDS]
    folder = _snapshot(name, offline, [*told, weights], None if variant else unwanted)
    if variant is None and not any(folder.glob(weights)):
        folder = _snapshot(name, offline, [*told, weights])
    if not below and not any(folder.glob(weights)):  # older ones have PyTorch's files alone
        folder = _snapshot(name, offline, [*told, *(f"*{kind}" for kind in SUFFIXES)], None if variant else unwanted)
    return folder


def _only_file(name: str, folder: Path, offline: bool | None) -> Path:
    """The one weight file of a repository; the names of some where there are more."""
    names = sorted(file for file in _names(name, folder, offline) if file.endswith(WEIGHTS))
    if len(names) == 1:
        return fetch(name, offline, names) / names[0]
    if not names:
        raise BadRequest(f"{name} on the hub holds no pipeline and no weight file")
    raise BadRequest(
        f"{name} on the hub holds {len(names)} weight files ({few(names)}); name one, as {name}/{names[0]}"
    )


def _names(name: str, folder: Path, offline: bool | None) -> list[str]:
    """The files of a repository: as the hub tells them, or those in the cache where it cannot be asked."""
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError

    if not offline:
        try:
            return list(list_repo_files(name))
        except (HfHubHTTPError, OSError):
            pass
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def fetch(repo_id: str, offline: bool | None = None, patterns: Sequence[str] | None = None) -> Path:
    """The local folder of a hub repository, downloaded where it is not in the cache.

    ``patterns`` limits the files (``["unet/*.safetensors"]``). ``offline=True`` never asks the network;
    None leaves that to ``HF_HUB_OFFLINE``. Raises `BadRequest` where the name is not one, the
    repository does not exist, is gated, cannot be reached, or is not in the cache when offline.
    """
    folder = _snapshot(repo_id, offline, patterns)
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    if patterns and not any(fnmatch(file, pattern) for file in files for pattern in patterns):
        raise BadRequest(f"{repo_id} holds none of {', '.join(patterns)}; there are {len(files)} files in the cache")
    return folder


def _snapshot(
    repo_id: str, offline: bool | None, patterns: Sequence[str] | None, ignored: Sequence[str] | None = None
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        wanted, unwanted = list(patterns) if patterns else None, list(ignored) if ignored else None
        return Path(
            snapshot_download(repo_id, allow_patterns=wanted, ignore_patterns=unwanted, local_files_only=bool(offline))
        )
    except HFValidationError as error:
        raise BadRequest(f"{repo_id!r} is not a hub name; expected owner/name") from error
    except GatedRepoError as error:
        raise BadRequest(f"{repo_id} is gated: accept its terms on the hub and log in with `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise BadRequest(f"there is no repository {repo_id} on the hub, or it is private") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        how = "and offline mode is on" if offline else "and the hub cannot be reached"
        raise BadRequest(f"{repo_id} is not in the local cache {how}; fetch it once while online") from error
    except (HfHubHTTPError, OSError) as error:
        raise BadRequest(f"{repo_id} cannot be fetched from the hub: {type(error).__name__}") from error
