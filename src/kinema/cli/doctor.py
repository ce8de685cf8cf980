"""``kinema doctor``: check that this machine can run kinema; each problem comes with its remedy."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import Literal

from kinema import __version__, registry
from kinema.bounds import as_json
from kinema.cli import machine
from kinema.cli.options import parse, with_defaults
from kinema.options import Option

ABOUT = "Check that this machine can run kinema. Exit code 0 if clips can be generated here, 1 if not."
OPTIONS = [Option("json", bool, False, "print the report as JSON")]
MIN_MEMORY = 2 * 2**30
MIN_DISK = 2**30
EXTRAS = {"text": ("transformers",), "train": ("tensorboard", "matplotlib"), "eval": ("cv2", "matplotlib")}
SMOKE_STEPS = 2


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``bad``: no clip can be generated; ``warn``: something else is missing or slow."""

    name: str
    verdict: Literal["ok", "warn", "bad"]
    told: str


def doctor(argv: Sequence[str]) -> int:
    """Print the report. Exit code 0 if clips can be generated here, 1 if not."""
    settings = with_defaults(OPTIONS, parse(OPTIONS, argv, "kinema doctor", ABOUT))
    found = [_run_check(name, check) for name, check in checks().items()]
    if settings["json"]:
        sys.stdout.write(as_json([asdict(f) for f in found], indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{f.verdict:<5} {f.name:<10} {f.told}\n" for f in found)
    return 1 if any(f.verdict == "bad" for f in found) else 0


def _run_check(name: str, check: Callable[[], tuple[str, str]]) -> Finding:
    """Run a check; if it raises, the finding is bad: this command must work on broken machines."""
    try:
        verdict, text = check()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return Finding(name, "bad", f"{type(error).__name__}: {first}")
    return Finding(name, "ok" if verdict == "ok" else "warn" if verdict == "warn" else "bad", text)


def _kinema() -> tuple[str, str]:
    return "ok", f"{__version__} with Python {platform.python_version()} on {platform.system()} {platform.machine()}"


def _torch() -> tuple[str, str]:
    facts = machine.facts()
    return "ok", f"{facts['torch']}, {facts['threads']}, vector instructions: {facts['cpu']}"


def _device(name: str) -> tuple[str, str]:
    text, complete = machine.about_device(name)
    return "ok" if complete else "warn", text


def _bf16() -> tuple[str, str]:
    ratio = machine.bf16_speed()
    if ratio >= 1:
        return "ok", f"matrix products run {ratio:.1f}× as fast in bf16 as in fp32 on this CPU"
    return "warn", f"bf16 is {1 / ratio:.1f}× slower than fp32 on this CPU; use --dtype fp32"


def _codecs() -> tuple[str, str]:
    found = machine.codecs()
    missing = [name for name, has in found.items() if not has]
    if not found["libx264 (write)"]:
        return "bad", "this PyAV cannot write H.264; reinstall the wheel: pip install --force-reinstall av"
    if missing:
        return "warn", f"missing: {', '.join(missing)}"
    return "ok", ", ".join(found)


def _memory() -> tuple[str, str]:
    free = machine.free_memory("cpu")
    text = f"{free / 2**30:.1f} GiB free"
    return ("ok", text) if free >= MIN_MEMORY else ("warn", f"{text}; the embedded model needs 2 GiB")


def _disk() -> tuple[str, str]:
    free = machine.free_disk(Path.cwd())
    text = f"{free / 2**30:.1f} GiB free in {Path.cwd()}"
    return ("ok", text) if free >= MIN_DISK else ("warn", f"{text}; clips and checkpoints may not fit")


def _extras() -> tuple[str, str]:
    missing = [extra for extra, names in EXTRAS.items() if not all(util.find_spec(name) for name in names)]
    if not missing:
        return "ok", ", ".join(EXTRAS)
    return "ok", f"not installed: {', '.join(missing)} (optional: pip install 'kinema[{','.join(missing)}]')"


def _weights() -> tuple[str, str]:
    from kinema.checkpoints.files import weight_hash

    files = []
    shipped = {name: file for name, (_, file) in registry.EMBEDDED.items()}
    for name, file in (shipped | {name: f"{name}.safetensors" for name in registry.ADD_ONS}).items():
        path = registry.weight_file(file)
        if not path.is_file():
            return "bad", f"{name}: {file} is missing from the package; reinstall kinema"
        files.append(f"{name} {path.stat().st_size / 2**20:.1f} MiB, {weight_hash(path).rpartition(':')[2][:12]}")
    return "ok", "; ".join(files)


def _smoke() -> tuple[str, str]:
    from kinema.api import load
    from kinema.schema import Request

    began = time.perf_counter()
    clip = load(next(iter(registry.EMBEDDED))).run(Request(prompt="a red ball rolls right", steps=SMOKE_STEPS, seed=0))
    seconds = time.perf_counter() - began
    if not bool(clip.video.isfinite().all()):
        return "bad", "the embedded model generates non-finite values on this machine"
    return "ok", f"{SMOKE_STEPS} sampling steps in {seconds:.1f} s, including loading the model"


def checks() -> dict[str, Callable[[], tuple[str, str]]]:
    """`CHECKS`, with one check per device after torch's."""
    every: dict[str, Callable[[], tuple[str, str]]] = {}
    for name, check in CHECKS.items():
        every[name] = check
        if name == "torch":
            every |= {device: partial(_device, device) for device in machine.devices()}
    return every


CHECKS: dict[str, Callable[[], tuple[str, str]]] = {
    "kinema": _kinema,
    "torch": _torch,
    "bf16": _bf16,
    "codecs": _codecs,
    "memory": _memory,
    "disk": _disk,
    "extras": _extras,
    "weights": _weights,
    "sample": _smoke,
}
