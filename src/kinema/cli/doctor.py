"""``kinema doctor``: whether this machine has what kinema needs, each line with what to do about it."""

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
from kinema.cli.options import Option, parse, with_defaults

OPTIONS = [Option("json", bool, False, "as JSON")]
LEAST_MEMORY = 2 * 2**30
LEAST_DISK = 2**30
EXTRAS = {"text": ("transformers",), "train": ("tensorboard", "matplotlib"), "eval": ("cv2", "matplotlib")}
SMOKE_STEPS = 2


@dataclass(frozen=True)
class Finding:
    """``bad`` means that clips cannot be made here; ``warn`` that something else is missing or slow."""

    name: str
    verdict: Literal["ok", "warn", "bad"]
    told: str


def doctor(words: Sequence[str]) -> int:
    """Exit code 0 when clips can be made here, 1 when not."""
    own = with_defaults(OPTIONS, parse(OPTIONS, words, "kinema doctor", "Whether this machine has what kinema needs."))
    found = [_checked(name, check) for name, check in checks().items()]
    if own["json"]:
        sys.stdout.write(as_json([asdict(f) for f in found], indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{f.verdict:<5} {f.name:<10} {f.told}\n" for f in found)
    return 1 if any(f.verdict == "bad" for f in found) else 0


def _checked(name: str, check: Callable[[], tuple[str, str]]) -> Finding:
    """A check that cannot even run is a bad finding, not a crash: this command is for broken machines."""
    try:
        verdict, told = check()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return Finding(name, "bad", f"{type(error).__name__}: {first}")
    return Finding(name, "ok" if verdict == "ok" else "warn" if verdict == "warn" else "bad", told)


def _kinema() -> tuple[str, str]:
    return "ok", f"{__version__} with Python {platform.python_version()} on {platform.system()} {platform.machine()}"


def _torch() -> tuple[str, str]:
    told = machine.facts()
    return "ok", f"{told['torch']}, {told['threads']}, vector units {told['cpu']}"


def _device(name: str) -> tuple[str, str]:
    told, whole = machine.about_device(name)
    return "ok" if whole else "warn", told


def _bf16() -> tuple[str, str]:
    ratio = machine.bf16_speed()
    if ratio >= 1:
        return "ok", f"matrix products are {ratio:.1f}× as fast in bf16 as in fp32 on this CPU"
    return "warn", f"bf16 is {1 / ratio:.1f}× slower than fp32 on this CPU; stay with --dtype fp32"


def _codecs() -> tuple[str, str]:
    found = machine.codecs()
    missing = [name for name, has in found.items() if not has]
    if not found["libx264 (write)"]:
        return "bad", "this PyAV cannot write h264; install the wheel: pip install --force-reinstall av"
    if missing:
        return "warn", f"missing: {', '.join(missing)}"
    return "ok", ", ".join(found)


def _memory() -> tuple[str, str]:
    free = machine.free_memory("cpu")
    told = f"{free / 2**30:.1f} GiB free"
    return ("ok", told) if free >= LEAST_MEMORY else ("warn", f"{told}; the embedded model wants 2")


def _disk() -> tuple[str, str]:
    free = machine.free_disk(Path.cwd())
    told = f"{free / 2**30:.1f} GiB free in {Path.cwd()}"
    return ("ok", told) if free >= LEAST_DISK else ("warn", f"{told}; a full disk refuses clips and checkpoints")


def _extras() -> tuple[str, str]:
    missing = [extra for extra, names in EXTRAS.items() if not all(util.find_spec(name) for name in names)]
    if not missing:
        return "ok", ", ".join(EXTRAS)
    return "ok", f"not installed: {', '.join(missing)} (pip install 'kinema[{','.join(missing)}]' where wanted)"


def _weights() -> tuple[str, str]:
    from kinema.checkpoints.files import weight_hash

    told = []
    shipped = {name: file for name, (_, file) in registry.EMBEDDED.items()}
    for name, file in (shipped | {name: f"{name}.safetensors" for name in registry.PARTS}).items():
        path = registry.weights(file)
        if not path.is_file():
            return "bad", f"{name}: {file} is not in the package; install kinema again"
        told.append(f"{name} {path.stat().st_size / 2**20:.1f} MiB, {weight_hash(path).rpartition(':')[2][:12]}")
    return "ok", "; ".join(told)


def _smoke() -> tuple[str, str]:
    from kinema.api import load
    from kinema.schema import Request

    began = time.perf_counter()
    clip = load(next(iter(registry.EMBEDDED))).run(Request(prompt="a red ball rolls right", steps=SMOKE_STEPS, seed=0))
    took = time.perf_counter() - began
    if not bool(clip.video.isfinite().all()):
        return "bad", "the embedded model's clip is not finite on this machine"
    return "ok", f"{SMOKE_STEPS} steps of a clip in {took:.1f} s, opening the model included"


def checks() -> dict[str, Callable[[], tuple[str, str]]]:
    """`CHECKS`, and after torch's one for each device."""
    made: dict[str, Callable[[], tuple[str, str]]] = {}
    for name, check in CHECKS.items():
        made[name] = check
        if name == "torch":
            made |= {device: partial(_device, device) for device in machine.devices()}
    return made


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
