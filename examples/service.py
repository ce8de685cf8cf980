"""A clip of a video service, with its progress, and an extension of it that needs no upload.

Run `kinema serve`, then: python examples/service.py [address] [folder]. By default http://127.0.0.1:8000 and ./clips.
"""

from __future__ import annotations

import sys
from pathlib import Path

import kinema
from kinema.events import Event, Step


def show(event: Event) -> None:
    if isinstance(event, Step):
        sys.stderr.write(f"step {event.index} of {event.total}\n")


def main(address: str = "http://127.0.0.1:8000", folder: str = "clips") -> list[Path]:
    out = Path(folder)
    out.mkdir(exist_ok=True)
    service = kinema.connect(address)
    ball = service.generate("a red ball rolls right", steps=4, seed=1, on_event=show)
    first = service.jobs(1)[0]["id"]  # what the service calls the clip
    longer = service.extend(first, prompt="a red ball rolls right", keep=4, steps=4, seed=1)
    return [ball.save(out / "ball.mp4")[0], longer.save(out / "longer.mp4")[0]]


if __name__ == "__main__":
    for path in main(*sys.argv[1:]):
        sys.stdout.write(f"{path}\n")
