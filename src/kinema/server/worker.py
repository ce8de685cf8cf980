"""The worker of one device: keeps models loaded, and generates one clip at a time for the server.

    python -m kinema.server.worker

Messages to it (JSON lines): ``setup`` first, then ``run`` and ``cancel``. Messages from it have a ``kind``: "ready",
"refused", the events of `kinema.server.jobs.Progress`, "done" (outcome: completed, cancelled or failed) and "models".
"""

from __future__ import annotations

import base64
import io
import math
import queue
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import kinema
from kinema import processor
from kinema.api import Model
from kinema.cancel import Cancel
from kinema.events import Event, Memory, Note, Phase, Preview, Step
from kinema.forecast import memory_plans, planned
from kinema.memory.free import free_bytes, total_bytes
from kinema.memory.plan import SHARE, TooLarge
from kinema.previews import Previews
from kinema.schema import BadRequest, Cancelled, Clip, Request
from kinema.server import clip_files
from kinema.server.channel import Channel, Message, be_child, sentence
from kinema.server.model_cache import ModelCache, release
from kinema.server.names import add_on_paths
from kinema.system.precision import dtype_of

ACKNOWLEDGED = 1.0
"""Seconds to wait until the server can read that a job begins: one that has not begun is queued again."""
OUT_OF_MEMORY = "out_of_memory"
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")
"""What PyTorch's messages say where it raises a plain RuntimeError."""
_BROKEN = ("CUDA error", "CUBLAS_STATUS", "device-side assert", "HIP error", "an illegal memory access")
"""What they say of a device that this process cannot use any more."""


def main() -> int:
    be_child()
    channel = Channel()
    setup = next(channel.messages())
    try:
        worker = Worker(channel, setup)
    except BadRequest as error:
        channel.send("refused", {"kind": "refused", "message": str(error)})
        channel.flush()
        return 2
    channel.listen(worker.hear)
    worker.ready()
    while worker.run_next():
        pass
    channel.flush()
    return 1


class Worker:
    """Runs the jobs that `hear` receives."""

    def __init__(self, channel: Channel, setup: Mapping[str, Any]) -> None:
        """Raises BadRequest if the device does not exist or cannot compute as asked."""
        self.channel, self.setup = channel, setup
        self.device = processor.device_of(setup["device"])
        if setup["threads"] is not None:
            torch.set_num_threads(setup["threads"])
        limit = setup["memory"] or int(SHARE * free_bytes(str(self.device)))
        self.models = ModelCache(self._opened, limit)
        self.sign = _signing(setup)
        self._jobs: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._tokens: dict[str, Cancel] = {}
        self._lock = threading.Lock()

    def _opened(self, source: Mapping[str, Any]) -> Model:
        return kinema.load(
            source["source"],
            add=add_on_paths(source),
            dtype=dtype_of(self.setup["dtype"]),
            device=self.device,
            offline=True,
            offload=self.setup["offload"],
            memory=self.setup["memory"],
            compile=self.setup["compile"],
        )

    def ready(self) -> None:
        others = [name for name in processor.accelerators() if name.startswith("cuda")]
        message = {
            "kind": "ready", "device": str(self.device), "name": processor.device_name(self.device),
            "free": free_bytes(str(self.device)), "total": total_bytes(str(self.device)),
            "memory_limit": self.models.limit, "devices": others if self.device.type == "cuda" else [],
        }  # fmt: skip
        self.channel.send("ready", message)

    def hear(self, message: Message) -> None:
        """Called in the reader's thread: a cancel acts at once."""
        if message["do"] == "run":
            with self._lock:
                self._tokens[message["job"]] = Cancel()
            self._jobs.put(message)
        elif message["do"] == "cancel":
            with self._lock:
                token = self._tokens.get(message["job"])
            if token is not None:
                token.keep_partial |= message["keep"]
                token.cancel()

    def run_next(self) -> bool:
        """Run the next job and report its end; whether the worker can run another."""
        message = self._jobs.get()
        job, names, keep = message["job"], message["names"], True
        self.channel.send("begun", {"kind": "begun", "job": job})
        self.channel.flush(ACKNOWLEDGED)
        try:
            done = Run(self, message, self._tokens[job]).outcome()
        except BadRequest as error:
            done = _failed("invalid_request", sentence(error, names))
        except clip_files.DiskFull:
            done = _failed("disk_full", "the disk of the server filled up while the clip was written")
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            done, keep = self._after(error, names)
        with self._lock:
            del self._tokens[job]
        if keep:
            self.models.settle()
        done |= {"kind": "done", "job": job}
        self.channel.send("models", {"kind": "models", "loaded": self.models.loaded() if keep else []})
        self.channel.send("done", done)
        return keep

    def _after(self, error: BaseException, names: Mapping[str, str]) -> tuple[Message, bool]:
        """Return the end of a job that failed with an exception, and whether this process is still sound."""
        text = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(each in text for each in _NO_MEMORY):
            error.__traceback__ = None  # which holds the tensors of the job
            self.models.clear()
            return _failed(OUT_OF_MEMORY, _no_memory(self.device)), self._sound()
        why = f"{type(error).__name__}: {sentence(error, names)}"
        sound = isinstance(error, Exception) and not any(each in text for each in _BROKEN) and self._sound()
        return _failed("internal_error", f"the job failed ({why})"), sound

    def _sound(self) -> bool:
        """Whether the device still computes."""
        try:
            release()
            return bool((torch.ones(8, device=self.device) + 1).sum().item() == 16)
        except (RuntimeError, MemoryError):
            return False


class Run:
    """One job: generates the clip, reports events and writes the files."""

    def __init__(self, worker: Worker, message: Mapping[str, Any], token: Cancel) -> None:
        self.worker, self.message, self.token = worker, message, token
        self.job, self.names = message["job"], message["names"]
        self.folder = Path(message["folder"])
        self.stages: Sequence[str] = message["stages"]
        self.at, self.began, self.first = -1, time.monotonic(), (0.0, 0.0)

    def outcome(self) -> Message:
        """Run the job and return how it ended. Raises whatever the run raises, other than `Cancelled`."""
        request = Request.from_table(self.message["request"])
        try:
            clip = self._generate(self._model(request), request)
        except Cancelled as cancelled:
            return self._cancelled(cancelled)
        finally:
            self._idle()
        self.heard(Phase("write"))
        result = self._save(clip)
        return {"outcome": "completed", "result": result, "seconds": time.monotonic() - self.began}

    def _model(self, request: Request) -> Model:
        """Return the job's model; others that are loaded leave, if this job would be offloaded because of them."""
        models, name = self.worker.models, self.message["model"]
        model = models.get(name, self.message["source"])
        while len(models.loaded()) > 1:
            with model.system.runtime.running():
                job = planned(model.system, request)
                try:
                    crowded = any(plan.offload != "none" or plan.tokens for plan in memory_plans(job))
                except TooLarge:
                    crowded = True
            if not crowded or not models.drop_oldest(but=name):
                break
        return model

    def _generate(self, model: Model, request: Request) -> Clip:
        previews = Previews(rate=self.worker.setup["preview_rate"]) if self.worker.setup["preview_rate"] > 0 else False
        clip = model.run(request, on_event=self.heard, preview=previews, cancel=self.token)
        if model.system.weights.untrained:
            self.heard(Note(f"{model.system.name} has no trained weights: the clip is noise"))
        return clip

    def _cancelled(self, cancelled: Cancelled) -> Message:
        clip = cancelled.clip if cancelled.clip is not None else cancelled.small
        message, result = sentence(cancelled), None
        if clip is not None and self.token.keep_partial:
            self.heard(Phase("write"))
            try:
                result = self._save(clip, partial=True)
            except clip_files.DiskFull:
                message = "cancelled; the partial clip could not be kept, since the disk of the server is full"
        return {"outcome": "cancelled", "message": message, "result": result}

    def _save(self, clip: Clip, *, partial: bool = False) -> Message:
        return clip_files.save(clip, self.folder, self.job, sign=self.worker.sign, partial=partial)

    def _idle(self) -> None:
        """Wait until the device has finished what was submitted to it."""
        device = self.worker.device
        if device.type in ("cuda", "xpu"):
            getattr(torch, device.type).synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    # -------------------------------------------------------------------------------------- events

    def heard(self, event: Event) -> None:
        """Send an event to the server."""
        match event:
            case Phase():
                self.at += event.name == "load"
                self._send("phase", name=event.name, detail=sentence_of(event.detail, self.names), stage=self.stage)
            case Step():
                self._send("step", **self._step(event))
            case Preview():
                self.worker.channel.send("preview", lambda: self._preview(event))
            case Note():
                self._send("note", message=sentence_of(event.message, self.names))
            case Memory():
                self._send("memory", peak_bytes=event.peak_bytes)

    @property
    def stage(self) -> str:
        return self.stages[min(max(self.at, 0), len(self.stages) - 1)] if self.stages else "base"

    def _step(self, event: Step) -> Message:
        now, share = time.monotonic(), event.share
        if share is not None and not self.first[0]:
            self.first = now, share  # the first step compiles and warms up, so it does not count
        eta = None
        if share is not None and share > self.first[1]:
            eta = (now - self.first[0]) / (share - self.first[1]) * (1 - share)
        return {
            "index": event.index, "total": event.total, "stage": self.stage, "share": share, "eta": eta,
            "log_snr": event.log_snr if math.isfinite(event.log_snr) else None,
        }  # fmt: skip

    def _preview(self, event: Preview) -> Message:
        """Encode a preview, in the writer's thread: its frames next to each other in a png."""
        from PIL import Image

        frames_THWC = event.picture.numpy()
        count, height, width, _ = frames_THWC.shape
        strip = frames_THWC.transpose(1, 0, 2, 3).reshape(height, count * width, 3)
        data = io.BytesIO()
        Image.fromarray(strip).save(data, "png", compress_level=1)
        text = base64.b64encode(data.getvalue()).decode()
        own = {"index": event.index, "total": event.total, "stage": event.stage, "frames": count}
        return {"kind": "preview", "job": self.job, "data": {**own, "mime": "image/png", "data": text}}

    def _send(self, kind: str, **data: Any) -> None:
        self.worker.channel.send(kind, {"kind": kind, "job": self.job, "data": data})


def sentence_of(text: str, names: Mapping[str, str]) -> str:
    return sentence(Exception(text), names) if text else ""


def _failed(code: str, message: str) -> Message:
    return {"outcome": "failed", "code": code, "message": message, "result": None}


def _no_memory(device: torch.device) -> str:
    return f"the job ran out of memory on {device}; ask for fewer frames, a smaller size or fewer clips"


def _signing(setup: Mapping[str, Any]) -> Any:
    """Return the function that signs an mp4 in place; None without a certificate and key."""
    if not setup["c2pa_certificate"] or not setup["c2pa_key"]:
        return None
    from kinema.server.signing import Signer

    return Signer(Path(setup["c2pa_certificate"]), Path(setup["c2pa_key"])).sign


if __name__ == "__main__":
    sys.exit(main())
