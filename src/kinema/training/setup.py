"""Setup of a run: system, training settings, network, clips and state."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from kinema import processor
from kinema.bounds import printable
from kinema.checkpoints import files
from kinema.checkpoints.files import RUN_OPTIONS
from kinema.checkpoints.source import read_json
from kinema.data.playroom import Playroom
from kinema.events import Note, OnEvent, Phase, ignore
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.system import System, TrainingSettings, open_system, parse_metadata
from kinema.system.blocks import check_compiler, checkpoint_blocks, compile_blocks
from kinema.training import bucket_sources, checkpoint, optim, trainable
from kinema.training.checkpoint import State
from kinema.training.ema import EMA
from kinema.training.options import TrainOptions, parse_addons
from kinema.training.outputs import Log
from kinema.training.sources import Prepared, Source, open_source
from kinema.training.stream import Stream

VALIDATION_BATCHES = 4
_VALIDATION_SEED = 7


@dataclass(frozen=True)
class Run:
    """A run that is ready to train."""

    options: TrainOptions
    folder: Path
    system: System
    settings: TrainingSettings
    model: nn.Module
    ema: EMA
    optimisers: list[Optimizer]
    state: State
    source: Source
    stream: Stream
    held_out: Stream
    """Batches of the validation loss, the first `VALIDATION_BATCHES`."""
    description: str
    """JSON of the family and config, for the metadata of weight files."""
    log: Log


def prepare(options: TrainOptions, on_event: OnEvent = ignore) -> Prepared:
    """What the options say of a run, without its weights and clips. Raises BadRequest for options that do not fit."""
    path = Path(options.model)
    if path.suffix == ".safetensors" and path.is_file() and "kinema-training" in files.metadata(path):
        raise BadRequest(
            f"{path} is a checkpoint of a training run: resume that run with its folder as out, or start from "
            "the model.safetensors or best.safetensors next to it"
        )
    if options.compile:
        check_compiler(processor.device_of(options.device))
    opened = open_system(
        options.model,
        variant=options.variant,
        device=options.device,
        add=parse_addons(options.add),
        on_event=on_event,
    )
    system = trainable.with_options(opened, options)
    settings = system.family.training.settings(system.config)
    if options.lora is not None:
        settings = replace(settings, **settings.lora)
    changes = _given(options, "steps", "batch", "learning_rate", "frameskip")
    if rendering := _given(options, "grammar", "style", "camera", "split"):
        changes["playroom"] = replace(settings.playroom or Playroom(), **rendering)
    settings = replace(settings, **changes)
    if options.buckets is None and settings.batch % options.accumulate:
        raise BadRequest(
            f"accumulate is {options.accumulate}; expected a divisor of the batch of {settings.batch} clips"
        )
    return Prepared(system, settings, bucket_sources.read(options, system))


def _given(options: TrainOptions, *names: str) -> dict[str, Any]:
    """Those of the named options that are set."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def begin(options: TrainOptions, folder: Path, on_event: OnEvent) -> Run:
    """Build a run, or resume the one in the folder."""
    prepared = prepare(options, on_event)
    system, settings, _ = prepared
    on_event(Phase("load", system.name))
    for note in (*system.notes, *_stage_note(options, system)):
        on_event(Note(note))
    model = training_network(system, options.seed)
    names = set(model.state_dict())
    trained = trainable.select_trainable(system, model, options)
    ema = EMA(model, settings.ema, trained)
    blocks = system.family.blocks(model)
    optimisers = optim.build(settings.optimiser, model, blocks, settings.learning_rate, settings.weight_decay)
    source = open_source(options, prepared, model, on_event)
    state = State(
        seed=options.seed,
        precision=precision(options.precision, system.device),
        batch=None if options.buckets else settings.batch,
        data=dict(source.identity),
        trains=" ".join(filter(None, (options.only, options.lora and f"lora {options.lora}"))) or "all",
        base=system.weights.hash if names - set(trained) else None,
    )
    path = checkpoint.newest(folder, on_event)
    if path:
        check_resumable(path, options, system, state, on_event)
        before = checkpoint.load(path, model, ema, optimisers)
        state = replace(before, batch=state.batch, data=state.data, trains=state.trains, base=state.base)
        on_event(Note(f"resuming from step {state.step} of {path}"))
        for changed in changes(folder, settings):
            on_event(Note(f"{changed} from step {state.step}"))
        if state.step >= settings.steps:
            on_event(Note(f"all {settings.steps} steps are complete; raise steps to continue"))
    stream = Stream(source.train, settings, settings.batch, options.seed)
    held_out = Stream(source.held_out, replace(settings, text_drop=0.0), settings.batch, _VALIDATION_SEED)
    description = json.dumps({"family": system.family.name, "config": system.family.to_json(system.config)})
    if options.compile:
        compile_blocks(blocks)
    if options.checkpoint_activations:
        checkpoint_blocks(blocks)
    log = Log(folder, options, settings, state.step)
    return Run(
        options, folder, system, settings, model, ema, optimisers, state, source, stream, held_out, description, log
    )  # fmt: skip


def _stage_note(options: TrainOptions, system: System) -> list[str]:
    """A message on the training stage that a weight file names, if it decides what this run trains."""
    tuning = system.family.training.tuning
    if tuning is None or options.stage is not None or trainable.untrained(system):
        return []
    stage = tuning.stage(system.config)
    return [f"training stage {stage}, that of {system.name}; name another with stage"] if stage else []


def check_resumable(path: Path, options: TrainOptions, system: System, new: State, on_event: OnEvent) -> None:
    """Raise BadRequest if model, seed, batch, precision or data differ from those of a stored run."""
    stored, description = checkpoint.peek(path)
    hint = "repeat the original options, or name another folder"
    family, config = parse_metadata(description, str(path))
    if family.name != system.family.name:
        raise BadRequest(f"the run in {path.parent} trains {family.name}, not {system.family.name}; {hint}")
    if config != system.config:
        now, then = system.family.to_json(system.config), system.family.to_json(config)
        field = next((k for k in now if now[k] != then.get(k)), "its configuration")
        raise BadRequest(
            f"the run in {path.parent} trains another {system.family.name} model ({field} differs); {hint}"
        )
    pairs: dict[str, tuple[Any, Any]] = {"seed": (stored.seed, new.seed), "trains": (stored.trains, new.trains)}
    if stored.base != new.base and stored.trains == new.trains:
        raise BadRequest(f"the run in {path.parent} has other frozen weights than {options.model}; {hint}")
    if None not in (stored.batch, new.batch):
        pairs["batch"] = (stored.batch, new.batch)
    if options.precision != "auto":
        pairs["precision"] = (stored.precision, new.precision)
    if stored.data:
        pairs["data"] = (stored.data["source"], new.data["source"])
        # Runs from before the split (docs/decisions/0015) do not name it, and runs without buckets name none.
        before = {"buckets": None} | ({"split": "train-v1"} if stored.data["source"] == "playroom" else {})
        pairs |= {
            name: (value, new.data.get(name))
            for name, value in {**before, **stored.data}.items()
            if name not in ("source", "clips")
        }
        if stored.data.get("clips") != new.data.get("clips") and stored.data["source"] == new.data["source"]:
            on_event(Note(f"the clips in {options.data} changed since this run started; it continues with them"))
    for name, (old, value) in pairs.items():
        if old != value:
            raise BadRequest(
                f"the run in {path.parent} has {name} {printable(str(old), 80)}, "
                f"not {printable(str(value), 80)}; {hint}"
            )


def changes(folder: Path, settings: TrainingSettings) -> list[str]:
    """Messages on the learning rate and total steps of a resumed run if they changed."""
    try:
        before = read_json(folder / RUN_OPTIONS)["recipe"]
        values = [(name, float(before[name]), getattr(settings, name)) for name in ("learning_rate", "steps")]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return []
    return [f"{name.replace('_', ' ')} {then:g} becomes {now:g}" for name, then, now in values if then != now]


def training_network(system: System, seed: int) -> nn.Module:
    """The network in training mode: with the source's weights if it has any, else initialised from the seed.

    What the family builds without gradients (an autoencoder, an image encoder) stays frozen.
    """
    if trainable.untrained(system):
        torch.manual_seed(seed)
        return system.family.build(system.config).to(system.device).train()
    model = copy.deepcopy(system.model)  # copied out of the file's memory map
    with on_meta():
        built = system.family.build(system.config)
    for own, fresh in zip(model.parameters(), built.parameters(), strict=True):
        own.requires_grad_(fresh.requires_grad)
    return model.train()


def precision(wanted: str, device: torch.device) -> str:
    """Resolve ``auto``: bf16 autocast where it is native; on a CPU without it, it is 3–4× slower."""
    if wanted != "auto":
        return wanted
    # Not measured on Arm's CPUs, and PyTorch does not use the bfloat16 units of Apple's.
    arm = device.type == "cpu" and processor.describe().get("bf16")
    return "bf16" if processor.is_native_on(device, torch.bfloat16) and not arm else "fp32"
