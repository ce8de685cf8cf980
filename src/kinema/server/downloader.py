"""Downloads a published model into the hub's cache, and reports how many bytes are here.

python -m kinema.server.downloader
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinema.checkpoints import hub
from kinema.schema import BadRequest
from kinema.server.channel import Channel, be_child, sentence

INTERVAL = 0.5
"""Seconds between reports."""


def main() -> None:
    be_child()
    channel = Channel()
    message = next(channel.messages())
    progress = Progress(channel, [*dict.fromkeys(message["folders"])])
    channel.listen(lambda _message: None)  # ends when the server does
    try:
        with progress:
            for name in message["names"]:
                hub.fetch_model(name, offline=False)
        end: dict[str, Any] = {"state": "done"}
    except BadRequest as error:
        end = {"state": "failed", "error": sentence(error)}
    except Exception as error:
        traceback.print_exc()
        end = {"state": "failed", "error": f"the download failed ({type(error).__name__})"}
    progress.report()
    channel.send("end", {"kind": "end", **end})
    channel.flush()


class Progress:
    """Reports bytes while it is entered. The total is what the hub says of the files that are asked for."""

    def __init__(self, channel: Channel, folders: Sequence[str]) -> None:
        self.channel, self.folders = channel, [Path(folder) for folder in folders]
        self.total: int | None = None
        self._seen: dict[str, int] = {}
        self._ended = threading.Event()

    def __enter__(self) -> None:
        import huggingface_hub

        snapshot = huggingface_hub.snapshot_download

        def counted(*args: Any, **options: Any) -> Any:
            with contextlib.suppress(Exception):  # a hub that does not say: the total stays unknown
                files = snapshot(*args, **options, dry_run=True)
                self._seen |= {f"{args}{file.filename}": file.file_size for file in files}
                self.total = sum(self._seen.values())
            return snapshot(*args, **options)

        huggingface_hub.snapshot_download = counted
        threading.Thread(target=self._run, daemon=True).start()

    def __exit__(self, *_error: object) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.report()

    def report(self) -> None:
        size = sum(_size(folder / "blobs") for folder in self.folders)
        total = None if self.total is None else max(self.total, size)
        self.channel.send("bytes", {"kind": "bytes", "bytes": size, "total": total})


def _size(folder: Path) -> int:
    size = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                size += entry.stat().st_size
    return size


if __name__ == "__main__":
    main()
