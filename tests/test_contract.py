"""The contract every family keeps, parametrised over the registry: so new families are tested too."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kinema import registry
from kinema.api import Model, load
from kinema.canvas import Canvas, Piece, Release
from kinema.checkpoints import files
from kinema.checkpoints.lora_formats import Adapter, write_lora
from kinema.data import playroom
from kinema.events import Event, Note, Step
from kinema.generate import generate
from kinema.grid import FrameGrid, LatentGrid, Lattice
from kinema.job import honour
from kinema.schema import BadRequest, Request, Shape
from kinema.settle import with_defaults
from kinema.system import Batch, System, open_system

FAMILIES = sorted(registry.FAMILIES)
KINDS = ("first", "ends", "prefix", "suffix", "frames", "region")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    torch.set_num_threads(1)
    result = load(request.param, preset="tiny")
    with torch.no_grad():  # untrained heads are zero, which would make every claim trivially true
        for p in result.system.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    return result


@pytest.fixture(scope="module")
def plain(model: Model) -> torch.Tensor:
    """The clip of `ask()`, which many claims compare with."""
    return model.run(ask()).video


def ask(**options: object) -> Request:
    return Request(**{"prompt": "a red ball rolls right", "seed": 5, "steps": 2, **options})


def canvas_of(kind: str, shape: Shape) -> Canvas:
    b, _, t, h, w = shape.bcthw
    mask = torch.zeros(b, 1, t, h, w)
    match kind:
        case "first":
            mask[:, :, 0] = 1
        case "ends":
            mask[:, :, [0, -1]] = 1
        case "prefix":
            mask[:, :, : t // 2] = 1
        case "suffix":
            mask[:, :, -(t // 2) :] = 1
        case "frames":
            mask[:, :, ::3] = 1
        case "region":
            mask[..., : w // 2] = 1
    return Canvas.of(torch.rand(b, 3, t, h, w) * 2 - 1, mask)


def test_it_generates_a_clip_in_range_and_of_the_stated_size(model: Model) -> None:
    clip = model.run(ask())
    own = model.system.family.sampling.defaults(model.system.config)
    assert clip.shape == Shape(1, 3, own.frames, own.height, own.width)
    assert clip.fps == own.fps
    assert clip.video.isfinite().all()
    assert clip.video.abs().max() <= 1


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_clip(model: Model) -> None:
    first, again, other = (model.run(ask(seed=s)).video for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_item_i_of_a_batch_is_the_single_run_of_seed_plus_i(model: Model, plain: torch.Tensor) -> None:
    both = model.run(ask(clips=2)).video
    for i, single in enumerate((plain, model.run(ask(seed=6)).video)):
        assert torch.allclose(both[i : i + 1], single, atol=1e-5)


def test_given_noise_replaces_the_seed(model: Model, plain: torch.Tensor) -> None:
    request = with_defaults(model.system, ask())
    noise = model.system.noise(request).normal(model.system.latent_shape(request).bcthw[1:])
    own = model.system.family.sampling.defaults(model.system.config)
    if own.sampler in ("ddim", "euler", "heun", "dpmpp-2m", "unipc"):
        assert torch.equal(generate(model.system, ask(), noise=noise).video, plain)
    with pytest.raises(BadRequest, match="noise has shape"):
        generate(model.system, ask(), noise=noise[:, :, :1])


@pytest.mark.parametrize("kind", KINDS)
def test_each_canvas_is_held_bit_identically_or_refused_by_name(
    model: Model, plain: torch.Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = model.system
    shape = with_defaults(system, ask()).shape
    canvas = canvas_of(kind, shape)
    assert canvas.kind == kind
    ways = system.family.sampling.honours(system.config, kind)
    if not ways:
        with pytest.raises(BadRequest, match=kind):
            honour(system, ask(), canvas.kind)
        return
    from kinema import tasks

    monkeypatch.setitem(tasks.TASKS, "animate", tasks.Task(lambda r: r, lambda _r, _e: canvas))
    for way in ways:
        clip = model.run(ask(task="animate", honour=way))
        free = canvas.mask.expand_as(clip.video) == 0
        # What is given must reach the rest of the clip, not only be pasted over the result.
        assert not torch.allclose(clip.video[free], plain[free], atol=1e-6), way
        held = canvas.mask.expand_as(clip.video) > 0
        assert torch.equal(clip.video[held], canvas.video[held])
        assert clip.video.isfinite().all()


def test_a_way_it_does_not_offer_is_refused(model: Model) -> None:
    system = model.system
    canvas = canvas_of("first", with_defaults(system, ask()).shape)
    offered = system.family.sampling.honours(system.config, "first")
    for way in {"native", "reconstruction", "replacement"} - set(offered):
        with pytest.raises(BadRequest, match=way):
            honour(system, ask(honour=way), canvas.kind)


def test_an_unknown_family_option_is_refused_before_weights_are_read(model: Model) -> None:
    system = replace(model.system)
    with pytest.raises(BadRequest, match="no_such_thing"):
        generate(system, ask(extra={"no_such_thing": 1}))
    assert system.runtime.model is None


def test_sizes_off_the_lattice_are_snapped_with_a_note(model: Model) -> None:
    said: list[str] = []
    settled = with_defaults(model.system, ask(height=37, width=9999 % 701), lambda e: said.append(str(e)))
    lattice = model.system.lattice
    assert settled.height % lattice.side_multiple == 0
    assert any("snapped" in line for line in said)


def test_its_weights_survive_a_file_and_give_the_same_clip(model: Model, plain: torch.Tensor, tmp_path) -> None:  # noqa: ANN001
    system = model.system
    path = tmp_path / "weights.safetensors"
    note = json.dumps({"family": system.family.name, "config": system.family.to_json(system.config)})
    files.write_tensors(path, system.model.state_dict(), {"kinema": note})
    again = load(path)
    assert again.system.config == system.config
    assert torch.equal(again.run(ask()).video, plain)


@pytest.mark.parametrize("harm", ["missing", "extra", "shape"])
def test_a_file_with_a_wrong_key_is_refused_and_the_key_named(model: Model, harm: str, tmp_path) -> None:  # noqa: ANN001
    system = model.system
    tensors = {k: v.clone() for k, v in system.model.state_dict().items()}
    name = sorted(tensors)[0]
    match harm:
        case "missing":
            del tensors[name]
        case "extra":
            name = "not.a.weight"
            tensors[name] = torch.zeros(1)
        case "shape":
            tensors[name] = torch.zeros(*tensors[name].shape, 2)
    path = tmp_path / "bad.safetensors"
    note = json.dumps({"family": system.family.name, "config": system.family.to_json(system.config)})
    save_file(tensors, path, metadata={"kinema": note})
    with pytest.raises(BadRequest, match=name.replace(".", r"\.")):
        load(path).run(ask())


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_lora_is_merged_and_removed_bit_identically(model: Model, layout: str, tmp_path) -> None:  # noqa: ANN001
    fresh = load(model.system.name)
    before = {name: p.clone() for name, p in fresh.system.model.named_parameters()}
    layers = [name.removesuffix(".weight") for name, p in before.items() if name.endswith(".weight") and p.ndim == 2]
    some = layers[:: max(len(layers) // 4, 1)]
    lora = {}
    for layer in some:
        out, into = before[f"{layer}.weight"].shape
        lora[layer] = Adapter(torch.ones(2, into), torch.ones(out, 2), alpha=1.0)
    write_lora(tmp_path / "lora.safetensors", lora, layout)
    fresh.use_loras({tmp_path / "lora.safetensors": 0.5})
    for name, p in fresh.system.model.named_parameters():
        added = 0.5 if name.removesuffix(".weight") in some else 0.0  # 0.5 × alpha / rank × 2 × 1 × 1
        assert torch.allclose(p, before[name] + added), name
    fresh.use_loras({})
    assert all(torch.equal(p, before[name]) for name, p in fresh.system.model.named_parameters())


def test_its_training_loss_is_finite_per_item_and_reaches_every_weight(model: Model) -> None:
    system = model.system
    family, config = system.family, system.config
    torch.manual_seed(0)
    network = family.build(config).train()
    with torch.no_grad():  # zero-initialised layers would hide what lies behind them
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    own = family.sampling.defaults(config)
    settings = family.training.settings(config)
    video = torch.rand(3, 3, own.frames, own.height, own.width) * 2 - 1
    mask = torch.zeros(3, 1, own.frames, own.height, own.width)
    mask[1, :, 0] = 1
    k = settings.images
    images = torch.rand(3, k, 3, own.height, own.width) * 2 - 1 if k else None
    words = [["a blue star"] * k for _ in range(3)]
    scene = playroom.sample(0, frames=own.frames, height=own.height, width=own.width).scene
    batch = Batch(video, ["a red ball rolls right", "", "a blue star"], mask, images, words, scenes=[scene] * 3)
    losses = family.training.loss(network, config, batch, torch.Generator().manual_seed(0))
    assert losses.shape == (3,)
    assert losses.isfinite().all()
    losses.mean().backward()
    # A family freezes what its training leaves alone (SVD: codec, image encoder) when it builds the network.
    learning = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    idle = [n for n, p in learning if p.grad is None or not p.grad.any()]
    assert learning
    assert not idle


def test_its_blocks_are_modules_of_the_network(model: Model) -> None:
    inside = set(model.system.model.modules())
    blocks = model.system.family.blocks(model.system.model)
    assert blocks
    assert all(block in inside for block in blocks)


def test_the_lattice_and_latent_shape_agree_with_the_codec(model: Model) -> None:
    system = model.system
    request = with_defaults(system, ask())
    z = system.encode(torch.zeros(request.shape.bcthw))
    assert tuple(z.shape) == system.latent_shape(request).bcthw
    assert tuple(system.decode(z).shape) == request.shape.bcthw


def test_config_round_trips_through_json(model: Model) -> None:
    family = model.system.family
    for config in family.presets.values():
        assert family.from_json(json.loads(json.dumps(family.to_json(config)))) == config


@pytest.mark.parametrize("name", FAMILIES)
def test_every_preset_builds_on_the_meta_device(name: str, catalogued: dict[str, dict[str, Any]]) -> None:
    for preset in registry.family(name).presets:
        assert catalogued[f"{name}/{preset}"]["parameters"] > 0


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(BadRequest, match="zoetrope"):
        open_system("zoetrop")


@pytest.mark.parametrize(("asked", "result"), [(1, 1), (2, 5), (5, 5), (6, 9), (17, 17)])
def test_a_causal_lattice_makes_frames_to_4k_plus_1(asked: int, result: int) -> None:
    lattice = Lattice(LatentGrid(FrameGrid(4, causal=True), (8, 8), channels=16))
    assert lattice.grid.time.ceil(asked) == result
    assert lattice.latent(Shape(1, 3, result, 64, 64)).frames == (result - 1) // 4 + 1


def test_a_system_is_opened_without_building_its_network() -> None:
    system: System = load("zoetrope", preset="tiny").system
    assert system.runtime.model is None


@pytest.mark.parametrize("strength", [0.35, 0.75, 0.05])  # 1.75, 3.75 and 0.25 steps of five
def test_an_edit_takes_the_whole_steps_of_its_strength(
    model: Model, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kinema import tasks

    system = model.system
    shape = with_defaults(system, ask()).shape
    source = torch.rand(1, 3, *shape.bcthw[2:], generator=torch.Generator().manual_seed(1)) * 2 - 1
    edited = Piece(source, torch.ones_like(source[:, :1]), Release("strength", strength))
    canvas = Canvas(Shape.of(source), (edited,))
    monkeypatch.setitem(tasks.TASKS, "edit", tasks.Task(lambda r: r, lambda _r, _e: canvas))
    events: list[Event] = []
    request = ask(task="edit", steps=5, strength=strength, guidance=1.0, guidance_end=None)
    clip = model.run(request, on_event=events.append, output="latents").video
    taken = [event.total for event in events if isinstance(event, Step)]
    count = int(5 * strength)
    assert taken == [count] * count
    with torch.no_grad():
        untouched = torch.equal(clip, system.encode(source))
    assert untouched == (count == 0)
    said = [event.message for event in events if isinstance(event, Note)]
    assert any("is less than one step, so the clip is not changed" in note for note in said) == (count == 0)


# ------------------------------------------------------------------------------------------ length


def test_the_noise_of_a_clip_in_windows_may_be_that_of_the_first_shuffled(model: Model) -> None:
    own = model.system.family.sampling.defaults(model.system.config)
    ask_windows = {"frames": 2 * own.frames, "window": own.frames, "steps": 1}
    plain, shuffled, again = (
        model.run(ask(**ask_windows, noise_type=kind)).video for kind in (None, "shuffle-context", "shuffle-context")
    )
    assert torch.equal(shuffled, again)
    assert not torch.equal(shuffled, plain)


def test_free_init_samples_again_or_says_that_nothing_is_left_to_begin_with(model: Model, plain: torch.Tensor) -> None:
    end = model.system.process(with_defaults(model.system, ask())).schedule.level(torch.ones(1))
    if float(end.alpha / end.sigma) < 1e-3:
        with pytest.raises(BadRequest, match="free_init has no effect"):
            model.run(ask(free_init=2))
        return
    twice, once = (model.run(ask(free_init=rounds)).video for rounds in (2, 1))
    assert twice.shape == once.shape
    assert not torch.equal(twice, once)
    assert torch.equal(once, plain)
