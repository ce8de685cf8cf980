"""Everything a run needs before its first step: system, recipe, network, clips, and where it stands."""

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
from kinema.bounds import printable, quoted
from kinema.checkpoints import files
from kinema.checkpoints.files import RUN_OPTIONS
from kinema.checkpoints.source import read_json
from kinema.data.playroom import Playroom
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest, Note, OnEvent, Phase, ignore
from kinema.system import Batch, System, TrainingSettings, family_of, open_system
from kinema.system.blocks import check_compiler, checkpoint_blocks, compile_blocks
from kinema.training import checkpoint, learning, optim
from kinema.training.checkpoint import State
from kinema.training.ema import EMA
from kinema.training.options import TrainOptions
from kinema.training.sheets import Log
from kinema.training.sources import Source, open_source
from kinema.training.stream import Stream

_VALIDATION_BATCHES = 4
_VALIDATION_SEED = 7


@dataclass(frozen=True)
class Run:
    """A run that is ready to go."""

    options: TrainOptions
    folder: Path
    system: System
    recipe: TrainingSettings
    model: nn.Module
    ema: EMA
    optimisers: list[Optimizer]
    state: State
    source: Source
    stream: Stream
    validation: list[Batch]
    note: str
    log: Log


def prepare(options: TrainOptions, on_event: OnEvent = ignore) -> tuple[System, TrainingSettings]:
    """The system to train and its recipe with the options' figures in place."""
    path = Path(options.model)
    if path.suffix == ".safetensors" and path.is_file() and "kinema-training" in files.metadata(path):
        raise BadRequest(
            f"{path} is a checkpoint of a training run: go on with that run by its folder as out, or start from "
            "the model.safetensors or best.safetensors beside it"
        )
    if options.compile:
        check_compiler(processor.device_of(options.device))
    opened = open_system(
        options.model,
        variant=options.variant,
        device=options.device,
        add=additions(options.add),
        on_event=on_event,
    )
    system = learning.with_options(opened, options)
    recipe = system.family.training.recipe(system.config)
    if options.lora is not None:
        recipe = replace(recipe, **recipe.lora)
    told = _given(options, "steps", "batch", "learning_rate", "frameskip")
    if shown := _given(options, "grammar", "style", "camera"):
        told["playroom"] = replace(recipe.playroom or Playroom(), **shown)
    recipe = replace(recipe, **told)
    if recipe.batch % options.accumulate:
        raise BadRequest(
            f"accumulate is {options.accumulate}; expected a number of equal parts of a step's {recipe.batch} clips"
        )
    return system, recipe


def _given(options: TrainOptions, *names: str) -> dict[str, Any]:
    """The options of these names that say something."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def additions(told: str | None) -> dict[str, str]:
    """``motion=FILE,vae=FILE`` as slots and files."""
    pairs = [word.partition("=") for word in told.split(",")] if told else []
    if not all(slot and file for slot, _, file in pairs):
        raise BadRequest(f"add is {quoted(told)}; expected SLOT=FILE, such as motion=mm_sd_v15_v2.ckpt")
    return {slot: file for slot, _, file in pairs}


def begin(options: TrainOptions, folder: Path, on_event: OnEvent) -> Run:
    """Build the run, or take up the one that stands in the folder."""
    system, recipe = prepare(options, on_event)
    on_event(Phase("load", system.name))
    for note in system.notes:
        on_event(Note(note))
    model = trainable(system, options.seed)
    whole = set(model.state_dict())
    learnt = learning.limit(system, model, options)
    ema = EMA(model, recipe.ema, learnt)
    blocks = system.family.blocks(model)
    optimisers = optim.build(recipe.optimiser, model, blocks, recipe.learning_rate, recipe.weight_decay)
    source = open_source(options, system, recipe, model)
    state = State(
        seed=options.seed,
        precision=precision(options.precision, system.device),
        batch=recipe.batch,
        data=dict(source.identity),
        trains=" ".join(filter(None, (options.only, options.lora and f"lora {options.lora}"))) or "all",
        base=system.weights.hash if whole - set(learnt) else None,
    )
    found = checkpoint.newest(folder, on_event)
    if found:
        agree(found, options, system, state, on_event)
        before = checkpoint.load(found, model, ema, optimisers)
        state = replace(before, batch=state.batch, data=state.data, trains=state.trains, base=state.base)
        on_event(Note(f"going on from step {state.step} of {found}"))
        for changed in changes(folder, recipe):
            on_event(Note(f"{changed} from step {state.step}"))
        if state.step >= recipe.steps:
            on_event(Note(f"it has the {recipe.steps} steps asked for already; more steps would go on"))
    stream = Stream(source.train, recipe, recipe.batch, options.seed)
    fixed = Stream(source.held_out, replace(recipe, text_drop=0.0), recipe.batch, _VALIDATION_SEED)
    validation = [fixed.at(i) for i in range(_VALIDATION_BATCHES)] if options.validate_every else []
    note = json.dumps({"family": system.family.name, "config": system.family.to_json(system.config)})
    if options.compile:
        compile_blocks(blocks)
    if options.checkpoint_activations:
        checkpoint_blocks(blocks)
    log = Log(folder, options, recipe, state.step)
    return Run(
        options, folder, system, recipe, model, ema, optimisers, state, source, stream, validation, note, log
    )  # fmt: skip


def agree(path: Path, options: TrainOptions, system: System, wanted: State, on_event: OnEvent) -> None:
    """Refuse to take up a run under another model, seed, batch, precision or data: it would be neither run."""
    stored, note = checkpoint.peek(path)
    hint = "leave it as it was, or name another folder"
    family, config = family_of(note, str(path))
    if family.name != system.family.name:
        raise BadRequest(f"the run in {path.parent} trains {family.name}, not {system.family.name}; {hint}")
    if config != system.config:
        now, then = system.family.to_json(system.config), system.family.to_json(config)
        field = next((k for k in now if now[k] != then.get(k)), "its configuration")
        raise BadRequest(f"the run in {path.parent} trains another {system.family.name} ({field} differs); {hint}")
    told: dict[str, tuple[Any, Any]] = {"seed": (stored.seed, wanted.seed), "trains": (stored.trains, wanted.trains)}
    if stored.base != wanted.base and stored.trains == wanted.trains:
        raise BadRequest(f"the run in {path.parent} stands on other frozen weights than {options.model} has; {hint}")
    if stored.batch is not None:
        told["batch"] = (stored.batch, wanted.batch)
    if options.precision != "auto":
        told["precision"] = (stored.precision, wanted.precision)
    if stored.data:
        told["data"] = (stored.data["source"], wanted.data["source"])
        told |= {
            name: (then, wanted.data.get(name)) for name, then in stored.data.items() if name not in ("source", "clips")
        }
        if stored.data.get("clips") != wanted.data.get("clips") and stored.data["source"] == wanted.data["source"]:
            on_event(Note(f"{options.data} holds other clips than when this run began; it goes on with these"))
    for name, (then, now) in told.items():
        if then != now:
            raise BadRequest(
                f"the run in {path.parent} has {name} {printable(str(then), 80)}, not {printable(str(now), 80)}; {hint}"
            )


def changes(folder: Path, recipe: TrainingSettings) -> list[str]:
    """What a run that is taken up is now to do otherwise, in words: its learning rate, and the steps in all."""
    try:
        before = read_json(folder / RUN_OPTIONS)["recipe"]
        told = [(name, float(before[name]), getattr(recipe, name)) for name in ("learning_rate", "steps")]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return []
    return [f"{name.replace('_', ' ')} {then:g} becomes {now:g}" for name, then, now in told if then != now]


def trainable(system: System, seed: int) -> nn.Module:
    """The network with gradients: pretrained weights where the source had some, else seeded fresh ones.

    What the family builds without gradients (an autoencoder, an image encoder) stays so.
    """
    if learning.untrained(system):
        torch.manual_seed(seed)
        return system.family.build(system.config).to(system.device).train()
    model = copy.deepcopy(system.model)  # off the file's memory map
    with on_meta():
        built = system.family.build(system.config)
    for own, fresh in zip(model.parameters(), built.parameters(), strict=True):
        own.requires_grad_(fresh.requires_grad)
    return model.train()


def precision(wanted: str, device: torch.device) -> str:
    """bf16 only where matrix products are faster in it: on a CPU without bf16 units they are 3–4× slower."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    arm = processor.told().get("bf16")  # its units were never measured here, and PyTorch does not use Apple's
    return "bf16" if processor.is_native(torch.bfloat16) and not arm else "fp32"
