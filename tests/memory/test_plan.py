"""Memory plans: chosen before anything is loaded, explained in sentences, without changing the clip."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from kinema import registry
from kinema.api import load
from kinema.canvas import Block, Piece
from kinema.checkpoints import files
from kinema.checkpoints.source import Source
from kinema.events import Note, Step
from kinema.families.animatediff.config import ControlSize
from kinema.families.svd.config import TINY
from kinema.families.svd.pocket.presets import POCKET as SVD_POCKET
from kinema.generate import generate
from kinema.job import build_job, choose_memory_plan, planning_canvas
from kinema.memory import free
from kinema.memory.placing import branches_of, place
from kinema.memory.plan import SHARE, MemoryPlan, Needs, TooLarge, choose
from kinema.nn.costs import order_of_branches
from kinema.schema import BadRequest, Request
from kinema.system import AddOn, MemoryOptions, System, Weights

ASK = {"prompt": "a red ball rolls right", "seed": 5, "steps": 2}


def saved(family_name, folder, config=None):
    """A file with a tiny model without zero-initialised weights."""
    family = registry.family(family_name)
    config = config or family.presets["tiny"]
    torch.manual_seed(0)
    model = family.build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    path = folder / f"{family_name}.safetensors"
    note = json.dumps({"family": family_name, "config": family.to_json(config)})
    files.write_tensors(path, model.state_dict(), {"kinema": note})
    return path


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    torch.set_num_threads(1)
    return saved("svd", tmp_path_factory.mktemp("svd"), replace(TINY, frames=9, height=32, width=32))


def needs_of(system, **ask):
    (work,) = build_job(system, Request(**{**ASK, **ask}))
    return Needs(system, work.stage.whole, planning_canvas(work))


def within(system, budget, **options):
    return replace(system, memory=MemoryOptions(budget=budget, **options))


def chosen(system, budget, **options):
    system = within(system, budget, **options)
    return choose_memory_plan(*build_job(system, Request(**ASK)))


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
@pytest.mark.parametrize("offload", ["model", "block", "sequential"])
def test_offloading_changes_no_bit_of_any_family(name, offload, tmp_path):
    torch.set_num_threads(1)
    path = saved(name, tmp_path)
    expected = load(path).run(Request(**ASK)).video
    model = load(path, offload=offload)
    if offload not in needs_of(model.system).levels:
        with pytest.raises(BadRequest, match="one network"):
            model.run(Request(**ASK))
        return
    assert torch.equal(model.run(Request(**ASK)).video, expected)
    assert any(p.is_meta for p in model.system.model.parameters())
    assert torch.equal(model.run(Request(**ASK)).video, expected)


POCKET = replace(SVD_POCKET, frames=4, height=32, width=32, channels=(32, 32), heads=(1, 1), vae_channels=(32, 32))


@pytest.mark.parametrize(("name", "config"), [("animatediff", None), ("svd", POCKET)])
def test_buffers_have_the_precision_of_the_weights(name, config, tmp_path):
    """Buffers (AnimateDiff's positions, the pocket model's latent statistics) are not offloaded, but rounded too."""
    path = saved(name, tmp_path, config)
    expected = load(path, dtype=torch.bfloat16).run(Request(**ASK)).video
    offloaded = load(path, dtype=torch.bfloat16, offload="block").run(Request(**ASK)).video
    assert torch.equal(offloaded, expected)
    assert expected.isfinite().all()


def test_the_pocket_model_s_codec_decodes_in_parts_too(tmp_path):
    model = load(saved("svd", tmp_path, POCKET))
    clip = model.run(Request(**ASK, extra={"decode_tile": 8, "decode_chunk": 2})).video
    assert clip.shape == (1, 3, 4, 32, 32)
    assert torch.equal(clip, model.run(Request(**ASK, extra={"decode_chunk": 2})).video)  # four cells: one tile


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_needs_are_measured_for_every_family(name, tmp_path):
    system = load(saved(name, tmp_path)).system
    needs = needs_of(system)
    small, large = (needs_of(system, clips=clips) for clips in (1, 8))
    assert needs.weights == sum(p.numel() * 4 for p in system.model.parameters())
    assert needs.step(None).peak > 0
    assert large.step(None).peak > 6 * small.step(None).peak
    assert needs.bytes(MemoryPlan("sequential")) < needs.bytes(MemoryPlan("none"))
    assert needs.bytes(MemoryPlan("none")) <= needs.upper_bound


def test_guidance_branches_run_at_the_same_time_only_if_both_fit(svd, monkeypatch):
    model = load(svd)
    needs = needs_of(model.system)
    both = needs.upper_bound + needs.step_upper_bound
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    one, two = "one by one", "in parallel"
    for budget, branches in ((both + 1, two), (both, one), (needs.upper_bound, one), (None, two)):
        plan = choose(within(model.system, budget), needs.request, needs.canvas)
        assert plan.branches == branches, budget
        place(model.system, plan)
        assert branches_of(model.system) == branches
    clips = [load(svd, memory=budget).run(Request(**ASK)) for budget in (None, both)]
    assert [clip.recipe["stages"][0]["memory"]["branches"] for clip in clips] == [two, one]
    assert torch.allclose(clips[0].video, clips[1].video, atol=1e-5)


def test_missing_weights_are_reported_before_sampling(svd, tmp_path):
    path = tmp_path / "gone.safetensors"
    shutil.copy(svd, path)
    model = load(path)
    place(model.system, MemoryPlan())
    path.rename(tmp_path / "back.safetensors")
    seen = []
    with pytest.raises(BadRequest, match="gone"):
        model.run(Request(**ASK), on_event=seen.append)
    assert not [event for event in seen if isinstance(event, Step)]
    (tmp_path / "back.safetensors").rename(path)
    assert (
        model.run(Request(**ASK)).recipe["stages"][0]["weights"] == model.system.weights.hash
    )  # the failure is not kept


def test_a_failed_hash_is_computed_again(svd, monkeypatch):
    """A background hash that failed during an interrupted job is not reused by the next."""
    system = load(svd).system
    with monkeypatch.context() as broken:
        broken.setattr(Source, "hash", lambda *_: (_ for _ in ()).throw(OSError("input/output error")))
        system.begin_hash()
        with pytest.raises(OSError, match="input"):
            _ = system.weights_hash
    assert system.weights_hash.startswith("sha256")


def given_a_frame(canvas):
    """The same canvas, whose first frame is given, in black."""
    shape = canvas.shape
    mask = torch.zeros(shape.batch, 1, shape.frames, shape.height, shape.width)
    mask[:, :, 0] = 1
    black = torch.zeros(shape.batch, 3, shape.frames, shape.height, shape.width)
    return replace(canvas, pieces=(Piece(black, mask),))


def test_a_step_with_reconstruction_guidance_needs_more():
    system = load("svd", preset="tiny").system
    plain = needs_of(system)
    held = Needs(system, plain.request, replace(given_a_frame(plain.canvas), block=Block(way="reconstruction")))
    assert held.step(None).peak > 2 * plain.step(None).peak


def test_the_gradient_of_reconstruction_keeps_all_blocks_weights(svd):
    plain = needs_of(load(svd).system)
    held = Needs(plain.system, plain.request, replace(given_a_frame(plain.canvas), block=Block(way="reconstruction")))
    unet = sum(p.numel() * 4 for p in plain.outline.model.unet.parameters())
    assert plain._resident(plain.step(None), "sequential") < 0.5 * unet
    assert held.bytes(MemoryPlan("sequential")) >= unet + held.step(None).peak


def test_with_plentiful_memory_nothing_is_measured(svd):
    plan = chosen(load(svd).system, 2**40)
    assert plan == MemoryPlan(budget=2**40, branches=order_of_branches(0, 4, torch.get_num_threads()))


def test_the_parameters_of_an_untrained_model_are_counted_once(monkeypatch):
    """Building a small network takes as long as a step of it."""
    system, built = load("svd", preset="tiny").system, []
    real = type(system)._on_meta
    monkeypatch.setattr(type(system), "_on_meta", lambda each: built.append(each) or real(each))
    assert needs_of(system).upper_bound == needs_of(system, seed=6).upper_bound
    assert built == [system]
    assert system.parameters == sum(p.numel() for p in system.model.parameters())


def test_loaded_weights_are_not_counted_twice(monkeypatch):
    """The second run finds less memory free, as the first one loaded the weights."""
    system = load("svd", preset="tiny").system
    needs = needs_of(system)
    free_then = int(needs.bytes(MemoryPlan("none")) / SHARE) + 1
    monkeypatch.setattr("kinema.memory.plan.free_bytes", lambda _device: free_then)
    (work,) = build_job(system, Request(**ASK))
    assert choose_memory_plan(work).offload == "none"
    assert system.model is not None
    monkeypatch.setattr("kinema.memory.plan.free_bytes", lambda _device: free_then - needs.weights)
    assert choose_memory_plan(work).offload == "none"


def test_memory_mapped_weights_count_as_free(svd):
    mapped = load(svd).system.filled()
    assert free.held_bytes(mapped.parameters(), "cpu") == 0
    copies = [p.detach().clone() for p in mapped.parameters()]
    assert free.held_bytes(copies, "cpu") == sum(x.nbytes for x in copies) > 10**5
    assert free.held_bytes(copies, "cuda:0") == 0


def test_a_container_s_page_cache_is_free(tmp_path):
    for name, text in (("max", "1000"), ("current", "900"), ("stat", "anon 300\ninactive_file 400\nactive_file 20\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert free._container_free(tmp_path) == 520
    (tmp_path / "memory.max").write_text("max")
    assert free._container_free(tmp_path) == 2**62


def test_attention_windows_run_the_rest_of_the_network_on_all_frames():
    system = load("animatediff", preset="tiny").system
    whole, windows, inside = (
        needs_of(system, frames=16, **options).step(None).peak
        for options in ({}, {"window": 8}, {"window": 8, "window_in": "attention"})
    )
    assert windows < 0.7 * whole
    assert inside > 0.9 * whole


def test_a_controlnet_is_measured_even_if_it_is_active_only_late(tmp_path):
    from PIL import Image

    path = tmp_path / "control.png"
    Image.new("RGB", (16, 16), (200, 10, 10)).save(path)
    config = registry.family("animatediff").presets["tiny"]
    config = replace(config, controls=(ControlSize(depths=(1, None), middle=1),), vae_channels=(32, 32, 32, 32))
    system = replace(load("animatediff", preset="tiny").system, config=config)
    early, late = (
        needs_of(system, extra={"control": str(path), "control_span": span}).step(None) for span in ([0, 0.5], [0.5, 1])
    )
    assert "controls" in early.networks
    assert late == early


def test_add_on_files_count_towards_the_upper_bound(svd, tmp_path):
    system = load(svd).system
    (tmp_path / "more").mkdir()
    for name in ("a", "b"):
        (tmp_path / "more" / name).write_bytes(b"x" * 500)
    more = (AddOn("controlnet", Source(tmp_path / "more")), AddOn("motion", Source(tmp_path / "more" / "a")))
    extended = replace(system, weights=replace(system.weights, added=more))
    assert needs_of(extended).upper_bound - needs_of(system).upper_bound == 2 * 1500


def test_smaller_budgets_give_plans_that_save_more(svd):
    system = load(svd).system
    needs = needs_of(system)
    costs = [needs.bytes(MemoryPlan(level)) for level in ("none", "model", "block", "sequential")]
    assert costs == sorted(costs, reverse=True)
    found = [chosen(system, cost).offload for cost in costs]
    assert found[0] == "none"
    assert found == sorted(found, key=("none", "model", "block", "sequential").index)
    plan = chosen(system, costs[-1])
    assert plan.need <= plan.budget
    assert plan.decoding == {}


def test_decoding_in_parts_comes_last_and_is_recorded_in_the_recipe(svd):
    system = load(svd).system
    needs = needs_of(system)
    least = min(needs.bytes(MemoryPlan("sequential", tokens)) for tokens in (None, 2**14))
    plan = chosen(system, least - 1)
    assert plan.decoding
    assert any("decoded in parts" in reason for reason in plan.reasons)
    clip = generate(within(system, least - 1), Request(**ASK))
    extra = clip.recipe["stages"][0]["request"]["extra"]
    assert extra["decode_chunk"] == plan.decoding["chunk"]
    again = generate(system, Request.from_json(json.dumps(clip.recipe["stages"][0]["request"])))
    assert torch.equal(again.video, clip.video)  # replayed with plentiful memory


def test_requested_decoding_options_are_kept(svd):
    system = load(svd).system
    assert list(needs_of(system).leaner())
    assert not list(needs_of(system, extra={"decode_chunk": 3}).leaner())


def test_a_request_that_cannot_fit_is_rejected_before_loading_with_advice(svd):
    system = within(load(svd).system, 2**20)
    with pytest.raises(TooLarge, match="fewer frames") as error:
        generate(system, Request(**ASK))
    assert "only 1 MiB may be used" in str(error.value)
    assert system.runtime.model is None


def test_a_requested_offload_level_that_does_not_fit_is_rejected_naming_one_that_does(svd):
    system = load(svd).system
    needs = needs_of(system)
    budget = (needs.bytes(MemoryPlan("model")) + needs.bytes(MemoryPlan("none"))) // 2
    with pytest.raises(TooLarge, match="offload model"):
        chosen(system, budget, offload="none")
    assert chosen(system, budget, offload="model").offload == "model"


def test_the_reasons_state_each_choice_and_what_it_saves(svd):
    system = load(svd).system
    events = []
    budget = needs_of(system).bytes(MemoryPlan("block"))
    generate(within(system, budget), Request(**ASK), on_event=events.append)
    notes = " ".join(event.message for event in events if isinstance(event, Note))
    assert "may be used" in notes
    assert "without offloading" in notes
    assert "on disk" in notes


def test_chunk_tokens_is_rejected_for_a_model_without_chunkable_feed_forward_layers():
    with pytest.raises(BadRequest, match="feed-forward"):
        load("zoetrope", preset="tiny", chunk_tokens=64).run(Request(**ASK))


def test_chunked_feed_forward_layers_need_less_memory_and_give_the_same_clip(svd):
    whole, chunked = load(svd), load(svd, chunk_tokens=16)
    assert torch.allclose(chunked.run(Request(**ASK)).video, whole.run(Request(**ASK)).video, atol=1e-5)
    needs = needs_of(whole.system)
    assert needs.step(16).peak < needs.step(None).peak


def test_a_model_may_change_its_plan_between_requests(svd):
    model = load(svd)
    expected = model.run(Request(**ASK)).video
    for offload in ("sequential", "none", "model"):
        system = replace(model.system, memory=MemoryOptions(offload=offload))
        system.runtime.model = model.system.model
        assert torch.equal(generate(system, Request(**ASK)).video, expected)


def test_a_weight_modified_after_loading_keeps_its_value(svd):
    """Modified weights are in no file."""
    model = load(svd)
    with torch.no_grad():
        dict(model.system.model.named_parameters())["unet.conv_in.weight"].mul_(1.5)
    expected = model.run(Request(**ASK)).video
    system = replace(model.system, memory=MemoryOptions(offload="block"))
    system.runtime.model = model.system.model
    assert torch.equal(generate(system, Request(**ASK)).video, expected)
    assert not torch.equal(load(svd).run(Request(**ASK)).video, expected)


def test_an_untrained_model_cannot_be_offloaded_on_a_cpu():
    system = System("svd", registry.family("svd"), TINY, Weights())
    assert needs_of(system).levels == ("none",)
    with pytest.raises(BadRequest, match="no file"):
        choose_memory_plan(*build_job(within(system, None, offload="block"), Request(**ASK)))


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 2**33), ("8G", 2**33), ("512 mb", 2**29), ("1.5g", 3 * 2**29), ("4096", 4096)]
)
def test_memory_sizes_are_parsed(text, size):
    assert free.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-3G", "0", "8 apples"])
def test_invalid_memory_sizes_are_rejected(text):
    with pytest.raises(BadRequest, match="8GiB"):
        free.parse_bytes(text)


def test_this_machine_has_free_memory():
    assert 2**20 < free.free_bytes("cpu") < 2**50


@pytest.mark.parametrize("options", [{"offload": "disk"}, {"chunk_tokens": 0}, {"memory": "none"}, {"memory": -1}])
def test_invalid_options_are_rejected(options):
    with pytest.raises(BadRequest):
        load("svd", preset="tiny", **options)


def test_a_step_is_rehearsed_once_for_requests_that_differ_in_the_seed_alone(svd, monkeypatch):
    system, calls, call = load(svd).system, [], Needs._call
    monkeypatch.setattr(Needs, "_call", lambda *given: (calls.append(given), call(*given)))
    need = {seed: needs_of(system, seed=seed).step(None) for seed in (5, 6)}
    assert need[5] == need[6]
    assert len(calls) == 1
    others = [needs_of(system, frames=5).step(None), needs_of(system).step(8), needs_of(load(svd).system).step(None)]
    assert len(calls) == 4
    assert others[0].peak < need[5].peak
    assert others[2] == need[5]
