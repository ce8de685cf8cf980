"""The worker in this process: what jobs report, which models stay loaded, and failures that it survives."""

from __future__ import annotations

import base64
import errno
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kinema import registry
from kinema.cancel import Cancel
from kinema.events import Preview, Step
from kinema.memory.plan import weight_bytes
from kinema.schema import BadRequest, Request
from kinema.server import worker as workers
from kinema.server.worker import Run, Worker

SETUP = {
    "device": "cpu", "dtype": None, "threads": None, "memory": None, "offload": "auto", "compile": False,
    "preview_rate": 0.0, "c2pa_certificate": None, "c2pa_key": None,
}  # fmt: skip
REQUEST = {"prompt": "a ball", "seed": 1, "frames": 4, "steps": 2}


class Sent:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.messages: list[dict] = []
        self.on_send = lambda message: None

    def send(self, kind, message):
        message = message() if callable(message) else message
        self.messages.append(json.loads(json.dumps(message)))
        self.on_send(message)

    def flush(self, _seconds):
        assert self.messages[-1]["kind"] == "begun"

    def of(self, kind):
        return [each["data"] for each in self.messages if each["kind"] == kind]

    @property
    def done(self):
        return [each for each in self.messages if each["kind"] == "done"][-1]


@pytest.fixture
def sent():
    return Sent()


@pytest.fixture
def worker(sent):
    return Worker(sent, SETUP)


def job(folder: Path, number: int = 1, model: str = "vdm/tiny", **changes) -> dict:
    video_id = f"video_{number:024}"
    return {
        "do": "run", "job": video_id, "model": model, "source": {"source": model}, "request": {**REQUEST, **changes},
        "names": {}, "folder": str(folder / f"{video_id}.1.part"), "stages": ["base"],
    }  # fmt: skip


def run(worker: Worker, message: dict) -> bool:
    worker.hear(message)
    return worker.run_next()


def test_a_job_reports_its_phases_steps_and_result_and_writes_its_folder(worker, sent, tmp_path):
    worker.setup = {**SETUP, "preview_rate": 1000.0}
    assert run(worker, job(tmp_path))
    assert [each["name"] for each in sent.of("phase")] == ["load", "condition", "sample", "decode", "write"]
    assert [(each["index"], each["total"], each["stage"], each["share"]) for each in sent.of("step")] == [
        (1, 2, "base", 0.5), (2, 2, "base", 1.0),
    ]  # fmt: skip
    assert (sent.done["outcome"], sent.done["result"]["frames"]) == ("completed", 4)
    assert {"message": "vdm/tiny has no trained weights: the clip is noise"} in sent.of("note")
    assert sent.of("memory")[0]["peak_bytes"] > 0
    assert [entry.name for entry in tmp_path.iterdir()] == [f"video_{1:024}"]
    assert len(sent.of("preview")) == 2


def test_a_preview_is_a_png_of_its_frames_side_by_side(worker, tmp_path):
    frames_THWC = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 3, 4, 3)
    found = Run(worker, job(tmp_path), Cancel())._preview(Preview(1, 2, frames_THWC))["data"]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["data"]))))
    assert np.array_equal(image, np.concatenate(list(frames_THWC.numpy()), 1))
    assert (found["frames"], found["mime"]) == (2, "image/png")


def test_the_first_step_does_not_count_for_the_expected_time(worker, tmp_path, monkeypatch):
    now = iter([0.0, 100.0, 102.0, 104.0])
    monkeypatch.setattr(workers.time, "monotonic", lambda: next(now))
    own = Run(worker, job(tmp_path), Cancel())
    etas = [own._step(Step(index, 10, float("inf"), share=index / 10))["eta"] for index in (1, 2, 3)]
    assert etas[0] is None
    assert etas[1:] == pytest.approx([16.0, 14.0])


def test_a_cancel_stops_after_the_step_and_leaves_no_files(worker, sent, tmp_path):
    message = job(tmp_path, steps=50)
    sent.on_send = lambda each: (
        worker.hear({"do": "cancel", "job": message["job"], "keep": False}) if each["kind"] == "step" else None
    )
    assert run(worker, message)
    assert (sent.done["outcome"], sent.done["result"], len(sent.of("step"))) == ("cancelled", None, 1)
    assert not list(tmp_path.iterdir())


def test_a_partial_clip_is_kept_on_request(worker, sent, tmp_path):
    message = job(tmp_path, steps=50)
    sent.on_send = lambda each: (
        worker.hear({"do": "cancel", "job": message["job"], "keep": True}) if each["kind"] == "step" else None
    )
    run(worker, message)
    assert (sent.done["outcome"], sent.done["result"]["partial"]) == ("cancelled", True)
    recipe = json.loads((tmp_path / message["job"] / "recipe.json").read_text())
    assert recipe["partial"]["step"] == 1


def test_a_job_that_is_cancelled_before_it_starts_computes_nothing(worker, sent, tmp_path):
    message = job(tmp_path)
    worker.hear(message)
    worker.hear({"do": "cancel", "job": message["job"], "keep": False})
    worker.run_next()
    assert (sent.done["outcome"], sent.of("step")) == ("cancelled", [])


def test_a_clip_that_is_finished_beats_a_late_cancel(worker, sent, tmp_path):
    message = job(tmp_path)

    def cancel(each: dict) -> None:
        if each["kind"] == "phase" and each["data"]["name"] == "write":
            worker.hear({"do": "cancel", "job": message["job"], "keep": False})

    sent.on_send = cancel
    run(worker, message)
    assert sent.done["outcome"] == "completed"


def test_a_bad_request_fails_with_its_sentence_and_without_the_server_s_paths(worker, sent, tmp_path):
    path = str(tmp_path / "gone.png")
    message = job(tmp_path, task="animate", image=path) | {"names": {path: "asset-1"}}
    assert run(worker, message)
    assert (sent.done["outcome"], sent.done["code"]) == ("failed", "invalid_request")
    assert "asset-1" in sent.done["message"]
    assert str(tmp_path) not in sent.done["message"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_fails_the_job_drops_the_models_and_keeps_the_worker(
    worker, sent, tmp_path, monkeypatch, error
):
    run(worker, job(tmp_path))

    def fail(*_args: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_generate", fail)
        assert run(worker, job(tmp_path, 2))
    assert (sent.done["outcome"], sent.done["code"]) == ("failed", "out_of_memory")
    assert "ran out of memory on cpu" in sent.done["message"]
    assert worker.models.loaded() == []
    assert run(worker, job(tmp_path, 3))
    assert sent.done["outcome"] == "completed"


def test_an_unexpected_error_fails_the_job_with_a_sentence_and_keeps_a_sound_worker(
    worker, sent, tmp_path, monkeypatch, capsys
):
    def fail(*_args: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(Run, "_generate", fail)
    assert run(worker, job(tmp_path))
    assert sent.done["message"] == "the job failed (KeyError: 'oops')"
    assert "Traceback" in capsys.readouterr().err


def test_a_broken_device_ends_the_worker(worker, sent, tmp_path, monkeypatch):
    def fail(*_args: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Run, "_generate", fail)
    assert not run(worker, job(tmp_path))
    assert sent.done["code"] == "internal_error"


def test_a_full_disk_fails_the_job_with_a_sentence(worker, sent, tmp_path, monkeypatch):
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kinema.server.clip_files.sync", full)
    assert run(worker, job(tmp_path))
    assert (sent.done["code"], list(tmp_path.iterdir())) == ("disk_full", [])


def test_a_cancel_whose_partial_clip_does_not_fit_on_the_disk_ends_cancelled(worker, sent, tmp_path, monkeypatch):
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kinema.server.clip_files.sync", full)
    message = job(tmp_path, frames=4, steps=3)
    sent.on_send = lambda each: (
        worker.hear({"do": "cancel", "job": message["job"], "keep": True}) if each["kind"] == "step" else None
    )
    assert run(worker, message)
    assert (sent.done["outcome"], sent.done["result"], list(tmp_path.iterdir())) == ("cancelled", None, [])
    assert "the disk of the server is full" in sent.done["message"]


def test_an_unknown_device_is_refused(sent):
    with pytest.raises(BadRequest, match="this machine has no device 'cuda:7'"):
        Worker(sent, {**SETUP, "device": "cuda:7"})


# ------------------------------------------------------------------------------------ loaded models


def loaded(worker: Worker) -> list[str]:
    return [each["id"] for each in worker.models.loaded()]


def test_the_least_recently_used_model_goes_first_and_a_used_one_is_not_loaded_again(sent, tmp_path):
    names = ["vdm/tiny", "svd/tiny", "zoetrope/tiny"]
    sizes = {name: weight_bytes(Worker(sent, SETUP)._opened({"source": name}).system) for name in names}
    worker = Worker(sent, SETUP)
    worker.models.limit = sizes["vdm/tiny"] + max(sizes["svd/tiny"], sizes["zoetrope/tiny"])
    run(worker, job(tmp_path, 1))
    first = worker.models.get("vdm/tiny", {"source": "vdm/tiny"}).system.model
    run(worker, job(tmp_path, 2, "zoetrope/tiny"))
    run(worker, job(tmp_path, 3))
    assert worker.models.get("vdm/tiny", {"source": "vdm/tiny"}).system.model is first
    assert loaded(worker) == ["zoetrope/tiny", "vdm/tiny"]
    worker.models.get("svd/tiny", {"source": "svd/tiny"}).system.model  # noqa: B018 (loads the weights)
    worker.models.settle()
    assert loaded(worker) == ["vdm/tiny", "svd/tiny"]


def test_a_model_over_the_limit_runs_and_leaves_afterwards(sent, tmp_path):
    worker = Worker(sent, SETUP)
    worker.models.limit = 1
    run(worker, job(tmp_path))
    assert (sent.done["outcome"], loaded(worker)) == ("completed", [])


def test_a_model_whose_file_changed_is_opened_again(worker):
    first = worker.models.get("vdm/tiny", {"source": "vdm/tiny", "stamp": "1"})
    assert worker.models.get("vdm/tiny", {"source": "vdm/tiny", "stamp": "1"}) is first
    assert worker.models.get("vdm/tiny", {"source": "vdm/tiny", "stamp": "2"}) is not first


def test_models_that_leave_no_room_for_a_job_are_dropped_before_it_is_offloaded(worker, tmp_path, monkeypatch):
    for name in ("svd/tiny", "vdm/tiny"):
        worker.models.get(name, {"source": name}).system.model  # noqa: B018
    monkeypatch.setattr(workers, "memory_plans", lambda _job: [type("Plan", (), {"offload": "block", "tokens": None})])
    Run(worker, job(tmp_path), Cancel())._model(Request.from_table(REQUEST))
    assert loaded(worker) == ["vdm/tiny"]


def test_loras_and_sizes_change_without_loading_the_model_again(worker, sent, tmp_path):
    lora = str(registry.weight_file("animatediff-pocket-pans-left.safetensors"))
    model, size = "animatediff-pocket", {"frames": 4, "height": 32, "width": 32, "steps": 1}
    run(worker, job(tmp_path, 1, model, **size))
    network = worker.models.get(model, {"source": model}).system.runtime.model
    run(worker, job(tmp_path, 2, model, **size, loras={lora: 1.0}))
    run(worker, job(tmp_path, 3, model, **{**size, "frames": 6}))
    run(worker, job(tmp_path, 4, model, **size))
    assert worker.models.get(model, {"source": model}).system.runtime.model is network
    frames = [np.load(tmp_path / f"video_{n:024}" / "frames.npz")["frames"] for n in (1, 2, 3, 4)]
    assert np.array_equal(frames[0], frames[3])
    assert not np.array_equal(frames[0], frames[1])
    assert frames[2].shape[1] == 6
