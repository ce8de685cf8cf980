"""Weights from the Hugging Face hub, through its own cache (``HF_HOME``) and its own offline mode."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from kinema.checkpoints.source import INDEX
from kinema.schema import BadRequest

BESIDE = ("*/*.json", "*/*.txt", "*/*.model")
"""What a pipeline's parts have besides weights: configs and vocabularies."""
KINDS = ("*/*.fp16*", "*/*.bf16*", "*/*.non_ema*", "*/*.onnx*", "*/*.msgpack")
"""Weights of other kinds than the plain ones, which lie beside them."""


def fetch_model(name: str, offline: bool | None = None, variant: str | None = None) -> Path:
    """The local folder of a model on the hub, or its file: ``owner/name`` or ``owner/name/file``.

    Of a pipeline only what loading it reads: its configs and the weights of one ``variant``, as repositories often hold
    every precision, and single files besides. Raises `BadRequest` as `fetch` does.
    """
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if file:
        return fetch(f"{owner}/{repository}", offline, [file]) / file
    folder = _snapshot(name, offline, [INDEX])
    if not (folder / INDEX).is_file():
        return fetch(name, offline)
    weights = f"*/*.{variant}*" if variant else "*/*.safetensors"
    folder = _snapshot(name, offline, [INDEX, *BESIDE, weights], None if variant else KINDS)
    if variant is None and not any(folder.glob("*/*.safetensors")):
        folder = _snapshot(name, offline, [INDEX, *BESIDE, "*/*.safetensors"])
    return folder


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
