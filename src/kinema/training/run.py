"""The training loop: one function that reads top to bottom, with its faults handled where they occur."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from kinema.checkpoints import files
from kinema.schema import BadRequest, Note, OnEvent, Phase, TrainStep, ignore
from kinema.system import Batch, Recipe, System, open_system
from kinema.training import checkpoint, optim, sheets, sources
from kinema.training.checkpoint import State
from kinema.training.ema import EMA
from kinema.training.options import TrainOptions
from kinema.training.stream import Stream

_VALIDATION_BATCHES = 4


@dataclass(frozen=True)
class TrainResult:
    """``folder`` of the run, ``weights`` (averaged, loadable), steps done, and whether a signal stopped it."""

    folder: Path
    weights: Path
    step: int
    loss: float
    interrupted: bool


def train(options: TrainOptions, on_event: OnEvent = ignore) -> TrainResult:
    """Train, or resume the run that stands in ``options.out``.

    Resuming is exact: batches, noise and canvases are functions of (seed, step), and the checkpoint holds
    weights, average, optimiser state and generator, so the losses go on as if nothing had happened.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    system, recipe = prepare(options)
    on_event(Phase("load", system.name))
    model = _trainable(system, options.seed)
    ema = EMA(model, recipe.ema)
    blocks = system.family.blocks(model)
    optimisers = optim.build(recipe.optimiser, model, blocks, recipe.learning_rate, recipe.weight_decay)
    state = State(seed=options.seed, precision=_precision(options.precision, system.device))
    found = checkpoint.newest(folder)
    if found:
        state = checkpoint.load(found, model, ema, optimisers)
        on_event(Note(f"going on from step {state.step} of {found}"))
    network = torch.compile(model) if options.compile else model
    train_clips, held_out = sources.clips(options, system, recipe)
    stream = Stream(train_clips, recipe, recipe.batch, options.seed)
    validation = [Stream(held_out, replace(recipe, text_drop=0.0), recipe.batch, 7).at(i) for i in range(_VALIDATION_BATCHES)]
    note = json.dumps({"family": system.family.name, "config": system.family.to_json(system.config)})
    keep = {"note": note, "keep": options.keep}
    log = sheets.Log(folder, options, recipe)
    loss, bad_in_row = math.nan, 0
    on_event(Phase("train", f"{recipe.steps} steps of {recipe.batch} clips, {state.precision}"))

    with _signals() as stop, ThreadPoolExecutor(1) as ahead:
        pending = ahead.submit(stream.at, state.step)
        while state.step < recipe.steps and not stop:
            began = time.perf_counter()
            batch = pending.result()
            pending = ahead.submit(stream.at, state.step + 1)
            rate = optim.rate(state.step, recipe.steps, recipe.warmup, recipe.cooldown)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = recipe.learning_rate * rate
            loss, norm = step(network, system, batch, state, recipe)
            if math.isfinite(loss) and math.isfinite(norm):
                for optimiser in optimisers:
                    optimiser.step()
                ema.update(model)
                bad_in_row = 0
            else:
                state.bad_steps, bad_in_row = state.bad_steps + 1, bad_in_row + 1
                on_event(Note(f"step {state.step + 1} skipped: loss {loss}, gradient norm {norm}"))
                if bad_in_row >= options.max_bad_steps:
                    raise RuntimeError(f"{bad_in_row} steps in a row were not finite; the last checkpoint is kept")
            model.zero_grad(set_to_none=True)
            state.step += 1
            due = _due(state.step, recipe.steps)
            took = time.perf_counter() - began
            state.seconds += took
            validated = None
            if due(options.validate_every):
                validated = validate(model, ema, system, validation, state)
            event = TrainStep(state.step, recipe.steps, loss, recipe.learning_rate * rate, norm, recipe.batch / took, validated)
            log.step(event, state)
            on_event(event)
            if validated is not None and (state.best is None or validated < state.best):
                state.best = validated
                _export(folder / "best.safetensors", ema, note)
            if due(options.save_every) or stop:
                checkpoint.save(folder, state, model, ema, optimisers, **keep)
            if due(options.sample_every):
                log.sheet(system, model, ema, state.step)
        pending.cancel()
    if checkpoint.newest(folder) != folder / f"step-{state.step:08d}.safetensors":
        checkpoint.save(folder, state, model, ema, optimisers, **keep)
    weights = _export(folder / "model.safetensors", ema, note)
    log.close()
    return TrainResult(folder, weights, state.step, loss, interrupted=bool(stop))


def prepare(options: TrainOptions) -> tuple[System, Recipe]:
    """The system to train and its recipe with the options' figures in place; refuses nonsense by name."""
    for name in ("steps", "batch", "learning_rate"):
        value = getattr(options, name)
        if value is not None and not 0 < value < 1e9:
            raise BadRequest(f"{name} is {value}; expected a number above 0")
    system = open_system(options.model, device=options.device)
    recipe = system.family.recipe(system.config)
    told = {k: getattr(options, k) for k in ("steps", "batch", "learning_rate", "grammar", "frameskip")}
    return system, replace(recipe, **{k: v for k, v in told.items() if v is not None})


def step(network: nn.Module, system: System, batch: Batch, state: State, recipe: Recipe) -> tuple[float, float]:
    """Forward, backward and clipped gradients of one batch: (loss, gradient norm before clipping)."""
    losses = _losses(network, system, batch, seed=state.seed * 1_000_003 + state.step, precision=state.precision)
    loss = losses.mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
    return float(loss.detach()), float(norm)


@torch.no_grad()
def validate(model: nn.Module, ema: EMA, system: System, batches: list[Batch], state: State) -> float:
    """Mean loss of the averaged weights on fixed held-out clips with fixed noise."""
    ema.swap(model)
    model.eval()
    total = sum(float(_losses(model, system, b, seed=i, precision=state.precision).mean()) for i, b in enumerate(batches))
    model.train()
    ema.swap(model)
    return total / len(batches)


def _losses(network: nn.Module, system: System, batch: Batch, *, seed: int, precision: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout draws from the global generator
    device = system.device
    moved = replace(
        batch,
        video=batch.video.to(device),
        mask=batch.mask.to(device),
        images=None if batch.images is None else batch.images.to(device),
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return system.family.loss(network, system.config, moved, generator)


def _trainable(system: System, seed: int) -> nn.Module:
    """The network with gradients: pretrained weights where the source had some, else seeded fresh ones."""
    if system.weights.path is None:
        torch.manual_seed(seed)
        model = system.family.build(system.config).to(system.device)
    else:
        model = system.model
    return model.train().requires_grad_(True)


def _precision(wanted: str, device: torch.device) -> str:
    """bf16 only where matrix products are faster in it: on a CPU without bf16 units they are 3–4× slower."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than torch 2.10
    return "bf16" if told.get("avx512_bf16") or told.get("amx_bf16") or told.get("amx_tile") else "fp32"


def _due(at: int, steps: int) -> Any:
    return lambda every: bool(every) and (at % every == 0 or at == steps)


def _export(path: Path, ema: EMA, note: str) -> Path:
    """The averaged weights as a model file that `kinema.load` opens; fp16, which halves it at no visible loss."""
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in ema.shadow.items()}
    return files.write_tensors(path, tensors, {"kinema": note}) or path


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C finish the running step and save; a second one stops at once."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals belong to somebody else
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(options: TrainOptions) -> dict[str, Any]:
    """The options as plain values, for the log and the model card."""
    return asdict(options)
