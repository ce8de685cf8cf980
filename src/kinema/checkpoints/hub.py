"""Downloads from the Hugging Face hub, with its cache (``HF_HOME``) and its offline mode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from kinema.bounds import first_names, quoted
from kinema.cancel import checkpoint, job_checkpoint
from kinema.checkpoints.files import WEIGHTS
from kinema.checkpoints.pickles import SUFFIXES
from kinema.checkpoints.source import INDEX
from kinema.schema import BadRequest

EXTRAS = ("*/*.json", "*/*.txt", "*/*.model")
"""Files of a pipeline's components other than weights: configs and vocabularies."""
VARIANTS = ("*/*.fp16*", "*/*.bf16*", "*/*.non_ema*", "*/*.onnx*", "*/*.msgpack")
"""Other variants and formats of the same weights, skipped by default."""
CONFIG = "config.json"


def fetch_model(name: str, offline: bool | None = None, variant: str | None = None) -> Path:
    """Return the local folder or file of a model on the hub, ``owner/name`` or ``owner/name/file``.

    For a pipeline or a network with its config, downloads only what loading reads, configs and the weights of one
    ``variant``: repositories often have every precision and single-file copies. For a repository of single files,
    downloads its only weight file. Raises `BadRequest` as `fetch` does, and if there are several weight files.
    """
    if variant and not re.fullmatch(r"\w[\w-]*", variant):  # used in file patterns; may be untrusted
        raise BadRequest(f"variant is {quoted(variant)}; expected a name such as fp16")
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if file:
        return fetch(f"{owner}/{repository}", offline, [file]) / file
    folder = _snapshot(name, offline, [INDEX, CONFIG])
    if (folder / INDEX).is_file():
        below, others = "*/", [INDEX, *EXTRAS]
    elif (folder / CONFIG).is_file():
        below, others = "", ["*.json", "*.txt"]
    else:
        return _only_file(name, folder, offline)
    weights = f"{below}*.{variant}*" if variant else f"{below}*.safetensors"
    unwanted = [kind.removeprefix("*/") if not below else kind for kind in VARIANTS]
    folder = _snapshot(name, offline, [*others, weights], None if variant else unwanted)
    if variant is None and not any(folder.glob(weights)):
        folder = _snapshot(name, offline, [*others, weights])
    if not below and not any(folder.glob(weights)):  # older repositories only have PyTorch files
        folder = _snapshot(name, offline, [*others, *(f"*{kind}" for kind in SUFFIXES)], None if variant else unwanted)
    return folder


def _only_file(name: str, folder: Path, offline: bool | None) -> Path:
    """Download the only weight file of a repository. Raises BadRequest if there is none or more than one."""
    names = sorted(file for file in _names(name, folder, offline) if file.endswith(WEIGHTS))
    if len(names) == 1:
        return fetch(name, offline, names) / names[0]
    if not names:
        raise BadRequest(f"the hub repository {name} has neither a pipeline nor a weight file")
    raise BadRequest(
        f"the hub repository {name} has {len(names)} weight files ({first_names(names)}); name one, such as "
        f"{name}/{names[0]}"
    )


def _names(name: str, folder: Path, offline: bool | None) -> list[str]:
    """List the files of a repository: all on the hub, or those in the cache if the hub cannot be reached."""
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError

    if not offline:
        try:
            return list(list_repo_files(name))
        except (HfHubHTTPError, OSError):
            pass
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def fetch(repo_id: str, offline: bool | None = None, patterns: Sequence[str] | None = None) -> Path:
    """Return the local folder of a hub repository, downloading it unless it is in the cache.

    ``patterns`` limits the files (``["unet/*.safetensors"]``). ``offline=True`` never uses the network;
    None leaves that to ``HF_HUB_OFFLINE``. Raises `BadRequest` if the name is invalid, or if the repository
    does not exist, is gated, cannot be reached, or is not in the cache when offline.
    """
    folder = _snapshot(repo_id, offline, patterns)
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    if patterns and not any(fnmatch(file, pattern) for file in files for pattern in patterns):
        raise BadRequest(f"{repo_id} has no {' or '.join(patterns)}; {len(files)} of its files are in the cache")
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

    checkpoint()
    wanted, unwanted = list(patterns) if patterns else None, list(ignored) if ignored else None
    try:
        return Path(
            snapshot_download(
                repo_id,
                allow_patterns=wanted,
                ignore_patterns=unwanted,
                local_files_only=bool(offline),
                tqdm_class=_cancellable_bar(),
            )
        )
    except HFValidationError as error:
        raise BadRequest(f"{repo_id!r} is not a hub repository; expected owner/name") from error
    except GatedRepoError as error:
        raise BadRequest(f"{repo_id} is gated: accept its terms on the hub and log in with `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise BadRequest(f"there is no repository {repo_id} on the hub, or it is private") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = "and offline mode is on" if offline else "and the hub cannot be reached"
        raise BadRequest(f"{repo_id} is not in the local cache {reason}; download it once while online") from error
    except (HfHubHTTPError, OSError) as error:
        raise BadRequest(f"{repo_id} cannot be downloaded from the hub: {type(error).__name__}") from error


def _cancellable_bar() -> type[Any]:
    """The hub's progress bar, which also checks for cancellation: after each file, and after each part of one.

    Downloads run in threads, so their exception ends them only when it reaches this bar; what was downloaded of a file
    stays in the cache, and the next download continues it.
    """
    from huggingface_hub.utils import tqdm

    check = job_checkpoint()

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            check()
            return super().update(n)

    return Bar
