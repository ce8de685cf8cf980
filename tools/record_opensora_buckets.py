"""Record Open-Sora's own bucket batches, for the parity tests: python tools/record_opensora_buckets.py CLONE

CLONE is a git directory of github.com/hpcaitech/Open-Sora with the commits of `COMMITS`. Its bucket.py, sampler.py and
aspect.py run aside; what they import for clusters and tables is replaced by plain Python. Writes
tests/families/opensora/recorded/buckets.json: for each case the sizes of clips, the configuration, and for two passes
the bucket of each clip and the batches.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

COMMITS = {"1.1": "c37e6d6", "1.2": "bde3c42", "1.3": "2ca632a", "2.0": "7ad6a96"}
HERE = Path(__file__).resolve().parents[1] / "tests" / "families" / "opensora" / "recorded"
PUBLISHED = {
    "1.2": ("opensora/v1.2", "configs/opensora-v1-2/train/stage1.py"),
    "2.0": ("main", "configs/diffusion/train/stage2.py"),
}
SMALL = {
    "1.1": {"144p": {1: (0.5, 2), 16: (1.0, 3), 32: (0.7, 2)}, "256": {1: (0.5, 2), 16: (0.5, 2)}},
    "1.2": {
        "144p": {1: (1.0, 3), 17: (1.0, 4), 34: ((1.0, 0.33), 2)},
        "240p": {1: (0.3, 2), 17: (0.4, 3), 34: ((0.5, 0.5), 2), 51: ((0.7, 0.4), 1)},
        "512": {1: (0.2, 2), 17: (0.6, 2)},
    },
    "1.3": {"360p": {1: (0.5, 2), 17: (0.5, 2), 33: (0.8, 1)}, "240p_16d": {17: (1.0, 3)}},
    "2.0": {
        "256px": {1: (1.0, 4), 5: (1.0, 3), 9: ((1.0, 0.4), 2), 33: ((0.5, 0.3), 2)},
        "768px": {1: (0.5, 2), 5: (0.3, 2), 33: ((0.4, 0.6), 1)},
        "360p": {9: ((0.5, 0.5), 2)},
    },
}
SIDES = ((144, 256), (200, 200), (240, 426), (256, 256), (360, 640), (640, 360), (720, 1280), (1080, 1920))


class Rows(list):
    """Rows of clips, with the parts of a pandas table that the sampler uses."""

    index = property(lambda self: range(len(self)))

    def copy(self, deep: bool) -> Rows:  # noqa: ARG002
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass  # data["id"]: the rows have it

    def parallel_apply(self, function: Any, axis: int, **more: Any) -> Any:  # noqa: ARG002
        found = np.empty(len(self), object)
        for i, row in enumerate(self):
            found[i] = function(row, **more)
        return Ids(found)


class Ids:
    """The buckets of the rows, which `numpy.array` keeps as one object each."""

    def __init__(self, found: np.ndarray) -> None:
        self.found = found

    def __getitem__(self, i: int) -> Any:
        return self.found[i]

    def __array__(self, *_args: Any, **_more: Any) -> np.ndarray:
        return self.found


class Data:
    """The data set that the sampler gets."""

    frame_interval, fps_max, bucket_class = 1, 16, "Bucket"

    def __init__(self, data: Rows) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)


def source(clone: str, at: str, path: str) -> str:
    return subprocess.run(
        ["git", "-C", clone, "show", f"{at}:{path}"], check=True, capture_output=True, text=True
    ).stdout


def upstream(clone: str, version: str) -> tuple[Any, Any]:
    """The modules bucket and sampler of a version."""
    for name in [name for name in sys.modules if name.startswith(("opensora", "pandarallel"))]:
        del sys.modules[name]
    logger = types.SimpleNamespace(info=lambda *_: None)
    parts = {
        "opensora": {},
        "opensora.utils": {},
        "opensora.utils.misc": {"get_logger": lambda: logger, "format_numel_str": str},
        "opensora.utils.logger": {"log_message": lambda *_: None},
        "opensora.datasets": {},
        "opensora.datasets.datasets": {"VariableVideoTextDataset": object, "VideoTextDataset": object},
        "opensora.datasets.parallel": {"pandarallel": types.SimpleNamespace(initialize=lambda **_: None)},
        "pandarallel": {"pandarallel": types.SimpleNamespace(initialize=lambda **_: None)},
        "opensora.datasets.utils": {
            "map_target_fps": lambda fps, _most: (fps, 1),
            "sync_object_across_devices": lambda x: x,
        },
    }
    for name, members in parts.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(members)
        sys.modules[name].__path__ = []
    for name in ("aspect", "bucket", "sampler"):
        module = types.ModuleType(f"opensora.datasets.{name}")
        module.__package__ = "opensora.datasets"
        sys.modules[module.__name__] = module
        exec(compile(source(clone, COMMITS[version], f"opensora/datasets/{name}.py"), name, "exec"), module.__dict__)  # noqa: S102
    return sys.modules["opensora.datasets.bucket"], sys.modules["opensora.datasets.sampler"]


def record(
    clone: str, version: str, config: dict[str, Any], seed: int, count: int, near: tuple[float, float] = (0.97, 1.03)
) -> dict[str, Any]:
    draw = np.random.RandomState(seed)
    sides = [SIDES[i] for i in draw.randint(len(SIDES), size=count)]
    frames = draw.choice([1, 5, 9, 16, 17, 18, 33, 34, 35, 52, 60, 130, 420], size=count)
    clips = [[int(t), int(h * draw.uniform(*near)), int(w)] for t, (h, w) in zip(frames, sides, strict=True)]
    buckets, sampling = upstream(clone, version)
    rows = Rows(
        {"num_frames": t, "height": h, "width": w, "id": i, "fps": 8.0, "path": ""} for i, (t, h, w) in enumerate(clips)
    )
    data = Data(rows)
    sampler = sampling.VariableVideoBatchSampler(data, config, num_replicas=1, rank=0, shuffle=True, seed=seed)
    passes = []
    for epoch in (0, 3):
        sampler.set_epoch(epoch)
        bucket = buckets.Bucket(config)
        each = [
            bucket.get_bucket_id(
                t, h, w, *([8.0] if version == "2.0" else []), seed=seed + epoch + i * bucket.num_bucket
            )
            for i, (t, h, w) in enumerate(clips)
        ]
        batches = [[[int(x) for x in text.split("-")] for text in batch] for batch in sampler]
        passes.append({"epoch": epoch, "buckets": each, "batches": batches})
    rows_of = {name: {str(t): list(row) for t, row in given.items()} for name, given in config.items()}
    return {"version": version, "seed": seed, "config": rows_of, "clips": clips, "passes": passes}


def whole(clone: str, version: str, config: dict[str, Any]) -> dict[str, Any]:
    """A case in which no bucket has less than half a batch: those the original loses."""
    for seed in range(1000):
        case = record(clone, version, config, seed, 100)
        if not any(lost(config, p["buckets"]) for p in case["passes"]):
            return case
    raise RuntimeError(f"no such case for {version}")


def lost(config: dict[str, Any], buckets: list[Any]) -> bool:
    counts = Counter(tuple(bucket) for bucket in buckets if bucket)
    return any(2 * count < config[name][frames][1] for (name, frames, _), count in counts.items())


def published(clone: str, version: str) -> dict[str, Any]:
    at, path = PUBLISHED[version]
    body = ast.parse(source(clone, at, path)).body
    value = next(n.value for n in body if isinstance(n, ast.Assign) and n.targets[0].id == "bucket_config")  # type: ignore[attr-defined]
    return {name: rows for name, rows in ast.literal_eval(value).items() if name != "_delete_"}


def main(clone: str) -> None:
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29555", rank=0, world_size=1)
    cases = [whole(clone, version, config) for version, config in SMALL.items()]
    # Batches of the published configs need more clips than a test should hold: their buckets alone are compared.
    for version in PUBLISHED:
        case = record(clone, version, published(clone, version), 5, 80, (0.85, 1.1))
        cases.append({**case, "passes": [{**p, "batches": None} for p in case["passes"]]})
    path = HERE / "buckets.json"
    path.write_text(json.dumps({"commits": COMMITS, "cases": cases}) + "\n")
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main(sys.argv[1])
