"""The planner: settles orders before they are queued, and describes models. It loads no weights.

    python -m kinema.server.planner

Messages to it (JSON lines): ``setup`` first, then ``plan`` and ``describe``; each is answered by a message with its
``id`` and either ``answer`` or ``error``, one sentence.
"""

from __future__ import annotations

import sys
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, cast

import kinema
from kinema import processor, registry
from kinema.api import Model
from kinema.forecast import Forecast, PlannedJob, forecast_of, planned
from kinema.media.write import check_output
from kinema.schema import TASK_FIELDS, BadRequest, Request
from kinema.server.channel import Channel, Message, be_child, sentence
from kinema.server.names import add_on_paths
from kinema.system.precision import dtype_of
from kinema.values import quoted

MOST_OPEN = 16
MEASURED = ("seconds", "seconds_a_step", "network_calls", "peak_bytes")


def main() -> None:
    be_child()
    channel = Channel()
    messages = channel.messages()
    planner = Planner(next(messages))
    presets = {name: [*registry.family(name).presets] for name in registry.FAMILIES}
    channel.send("ready", {"kind": "ready", "presets": presets})
    for message in messages:
        answer: Message
        try:
            answer = {"answer": planner.answer(message)}
        except BadRequest as error:
            answer = {"error": sentence(error, message.get("names"))}
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            answer = {"error": f"the request cannot be planned ({type(error).__name__})"}
        channel.send("answer", {"kind": "answer", "id": message["id"], **answer})


class Planner:
    """Opens models, of which it keeps the last `MOST_OPEN`, without their weights."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self.setup = setup
        self._open: OrderedDict[tuple[str, str | None, int | None], tuple[Mapping[str, Any], Model]] = OrderedDict()

    def answer(self, message: Message) -> Message:
        if message["do"] == "describe":
            return described(message["model"], self.model(message["model"], message["source"], self.setup["device"]))
        return self.plan(message)

    def model(self, name: str, source: Mapping[str, Any], device: str | None, memory: int | None = None) -> Model:
        """Return an opened model. ``memory`` is what its worker may use: this process cannot see that from outside."""
        key = (name, device, memory)
        found = self._open.get(key)
        if found is None or found[0] != source:
            model = kinema.load(
                source["source"],
                add=add_on_paths(source),
                dtype=dtype_of(self.setup["dtype"]),
                device=processor.device_of(device),
                offline=True,
                offload=self.setup["offload"],
                memory=memory,
                compile=self.setup["compile"],
            )
            found = self._open[key] = (source, model)
        self._open.move_to_end(key)
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        return found[1]

    def plan(self, message: Message) -> Message:
        """Return a `kinema.server.jobs.Settled` as a table, without an estimate of the time."""
        request, limits = Request.from_table(message["request"]), message["limits"]
        model = self.model(message["model"], message["source"], message["device"], message["memory"])
        check_files(model, request, {*message["names"]})
        check_size(request, limits)

        def check(settled: Request) -> None:
            check_size(settled, limits)
            changes.extend(check_output(Path("clip.mp4"), settled.shape, cast(float, settled.fps)))

        changes: list[str] = []
        with model.system.runtime.running():
            job = planned(model.system, request, check)
            for run in job.runs:
                check_size(run.stage.whole, limits)
            result = forecast_of(model, request, job, measure=False)
        if not result.fits or result.missing:
            raise BadRequest(result.missing[0] if result.missing else _refusal(result))
        return settled_of(result, job, [*dict.fromkeys([*job.notes, *changes, *_reasons(result, job)])], message)


def settled_of(result: Forecast, job: PlannedJob, notes: list[str], message: Message) -> Message:
    last = job.runs[-1].stage.request
    clips, _, frames, height, width = last.shape.bcthw
    steps = sum((run.stage.request.steps or 0) - run.canvas.skipped for run in job.runs)
    forecast = {name: value for name, value in asdict(result).items() if name not in MEASURED}
    sizes = [list(run.stage.request.shape.bcthw) for run in job.runs]
    each = [(run.stage.request.steps or 0) - run.canvas.skipped for run in job.runs]
    stages = [{**stage, "size": size, "steps": n} for stage, size, n in zip(result.stages, sizes, each, strict=True)]
    names = message["names"]
    return {
        "frames": frames, "fps": last.fps, "height": height, "width": width, "clips": clips, "steps": steps,
        "seed": last.seed, "task": last.task, "forecast": {**forecast, "stages": stages},
        "notes": [sentence(BadRequest(note), names) for note in notes],
    }  # fmt: skip


def _reasons(result: Forecast, job: PlannedJob) -> list[str]:
    """The forecast's reasons that are choices, other than the notes of planning."""
    return [each for each in result.reasons if each not in job.notes and not each.startswith(("weights:", "time:"))]


def _refusal(result: Forecast) -> str:
    return next(
        (each.removeprefix("memory: ") for each in result.reasons if each.startswith("memory: ")), "it is large"
    )


def check_size(request: Request, limits: Mapping[str, int]) -> None:
    """Raise BadRequest for a request above the service's limits; what is not settled yet does not count."""
    frames, steps = request.frames or 1, request.steps or 1
    if frames > limits["frames"]:
        raise BadRequest(f"the clip has {frames:,} frames; this service generates at most {limits['frames']:,}")
    if steps > limits["steps"]:
        raise BadRequest(f"the request has {steps:,} steps; this service allows at most {limits['steps']:,}")
    pixels = prod((request.clips, frames, request.height or 1, request.width or 1))
    if pixels > limits["pixels"]:
        raise BadRequest(
            f"the request has {pixels:,} pixels over all frames and clips; this service allows at most "
            f"{limits['pixels']:,}"
        )


def check_files(model: Model, request: Request, allowed: set[str]) -> None:
    """Raise BadRequest if an option of the family names a file that the server did not put there."""
    included = {*registry.ADD_ONS, *registry.EMBEDDED}
    named = model.system.family.sampling.files(request)
    foreign = [file for file in map(str, named) if file not in allowed and file not in included]
    if foreign:
        raise BadRequest(f"extra names the file {quoted(foreign[0])}; expected the identifier of an upload or a video")


def described(name: str, model: Model) -> Message:
    """Return what clients may know of a model."""
    system = model.system
    sampling, config = system.family.sampling, system.config
    own = sampling.defaults(config)
    verbs = [task for task in TASK_FIELDS if _offers(task, model)]
    return {
        "family": system.family.name,
        "parameters": _parameters(model),
        "bytes": _bytes(model),
        "notes": list(system.notes),
        "defaults": {
            "frames": own.frames, "fps": own.fps, "height": own.height, "width": own.width, "steps": own.steps,
            "sampler": own.sampler, "guidance": own.guidance, "takes_prompt": own.takes_prompt,
            "longest": system.lattice.max_frames, "side_multiple": system.lattice.side_multiple,
            "sizes": {each: list(size) for each, size in own.sizes.items()}, "verbs": verbs, "extra": dict(own.extra),
            "super_resolution": registry.SECOND_STAGES.get(name), "enlarges": own.enlarges,
            "prompt_syntaxes": [] if own.prompts is None else list(own.prompts.syntaxes),
            "slots": [] if system.family.checkpoints.slots is None else list(system.family.checkpoints.slots.names),
            "add_ons": dict(registry.DEFAULT_ADD_ONS.get(name, {})),
        },
    }  # fmt: skip


_GIVEN = {"animate": "first", "interpolate": "frames", "extend": "prefix", "inpaint": "region"}
"""The kind of given pixels (`kinema.canvas.GivenFrames.kind`) that a verb needs."""


def _offers(task: str, model: Model) -> bool:
    """Whether the model has a way to do this verb."""
    sampling, config = model.system.family.sampling, model.system.config
    own = sampling.defaults(config)
    if task == "upscale":
        return own.enlarges
    if own.enlarges and own.takes_small:
        return False
    if task == "generate":
        return bool(sampling.honours(config, "nothing"))
    return task == "edit" or bool(sampling.honours(config, _GIVEN[task]))


def _parameters(model: Model) -> int | None:
    """Values in the weight files; None for an untrained model, whose network would have to be built."""
    weights = model.system.weights
    sources = [] if weights.path is None else [(weights.source, weights.parts)]
    sources += [(each.source, each.parts) for each in weights.added if not each.outside]
    if not sources:
        return None
    headers = [source.headers(parts) if parts else source.header for source, parts in sources]
    return sum(prod(shape) for header in headers for shape, _ in header.values())


def _bytes(model: Model) -> int:
    weights = model.system.weights
    sources = [] if weights.path is None else [(weights.source, weights.parts)]
    sources += [(each.source, each.parts) for each in weights.added]
    return sum(file.stat().st_size for source, parts in sources for file in source.files(parts))


if __name__ == "__main__":
    main()
