"""Prompts with signs through a whole run: conditioning over the steps, notes, recipes, embeddings and LoRAs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from kinema.api import load
from kinema.canvas import Canvas
from kinema.checkpoints import files
from kinema.cli.main import main
from kinema.evaluation.sampling import Sampling
from kinema.events import Note
from kinema.families.animatediff.config import PRESETS, to_json
from kinema.families.animatediff.model import AnimateDiff
from kinema.job import build_job
from kinema.schema import BadRequest, Request, Shape
from kinema.settle import settle
from kinema.system import OverSteps

CONFIG = replace(PRESETS["tiny"], text=(replace(PRESETS["tiny"].text[0], vocabulary=64),), words=())
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with a vocabulary of letters next to its file; other signs are the end token."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("model")
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(1)
    network = AnimateDiff(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    metadata = json.dumps({"family": "animatediff", "config": to_json(CONFIG)})
    files.write_tensors(folder / "model.safetensors", network.state_dict(), {"kinema": metadata})
    return load(folder / "model.safetensors")


def ask(prompt="a b", **fields):
    return Request(**({"prompt": prompt, "seed": 1, "steps": 4, "frames": 2, "height": 16, "width": 16} | fields))


def notes_of(model, request):
    found = []
    build_job(model.system, request, found.append)
    return [event.message for event in found if isinstance(event, Note)]


def conditions_of(model, request):
    system = model.system
    request = settle(system, request)
    canvas = Canvas(Shape(1, 3, request.frames, 16, 16))
    return system.condition(system.encode_prompt(request), request, canvas)


# ------------------------------------------------------------------------------------------- steps


def test_a_schedule_changes_the_conditioning_at_its_step(model):
    """AUTOMATIC1111 counts steps from 0 and ends from 1: [a:b:0.5] of 4 steps is a at steps 0, 1 and 2."""
    over = conditions_of(model, ask("[a:b:0.5]")).branches["positive"]
    assert isinstance(over, OverSteps)
    assert list(over.starts) == [0, 3]
    a, b = (conditions_of(model, ask(text)).branches["positive"].context_BKLC for text in "ab")
    assert torch.equal(over.conditions[0].context_BKLC, a)
    assert torch.equal(over.conditions[1].context_BKLC, b)
    assert not isinstance(conditions_of(model, ask("[a:b:0.5]")).branches["negative"], OverSteps)


def test_alternatives_take_turns_and_are_encoded_once(model):
    over = conditions_of(model, ask("[a|b]", negative_prompt="[c|d]", steps=5)).branches
    for branch in over.values():
        assert list(branch.starts) == [0, 2, 3, 4]
        assert branch.conditions[0] is branch.conditions[2]
        assert branch.conditions[1] is branch.conditions[3]


def test_the_denoiser_uses_the_condition_of_its_noise_level(model):
    system, request = model.system, settle(model.system, ask("[a:b:0.5]", steps=4))
    levels, branch = system.levels(request), conditions_of(model, ask("[a:b:0.5]", steps=4)).branches["positive"]
    z = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    over = system.denoiser(branch)
    for step, number in enumerate((0, 0, 0, 1)):
        wanted = system.denoiser(branch.conditions[number])(z, levels[step])
        other = system.denoiser(branch.conditions[1 - number])(z, levels[step])
        assert torch.equal(over(z, levels[step]), wanted)
        assert not torch.equal(wanted, other)


def test_prompts_of_frames_have_schedules_of_their_own(model):
    request = ask("[a:b:1]", prompt_spans={"1": "[c:d:2]"})
    over = conditions_of(model, request).branches["positive"]
    assert list(over.starts) == [0, 2, 3]
    each = {text: conditions_of(model, ask(text)).branches["positive"].context_BKLC[0] for text in "abcd"}
    for condition, frames in zip(over.conditions, ("ac", "bc", "bd"), strict=True):
        assert torch.equal(condition.context_BKLC[0], torch.cat([each[text] for text in frames]))


def test_schedules_work_in_windows_batches_and_passes_of_fewer_steps(model):
    options = {"frames": 6, "window": 4, "overlap": 2, "steps": 4}
    one = model.run(ask("[a|b]", **options)).video
    assert not torch.equal(one, model.run(ask("a", **options)).video)
    assert model.run(ask("[a:b:0.5]", free_init=2, free_init_fast=True)).video.isfinite().all()
    two = model.run(ask("[a:b:0.5]", clips=2)).video
    assert torch.allclose(two[:1], model.run(ask("[a:b:0.5]")).video, atol=1e-5)


def test_clips_of_several_prompts_may_change_over_the_steps(model):
    sampling = Sampling(model.system, settle(model.system, ask()))
    both = sampling.clips(["[a:b:1]", "c"], 1)
    assert torch.allclose(both[:1], sampling.clips(["[a:b:1]"], 1), atol=1e-5)
    assert torch.allclose(both[1:], sampling.clips(["c"], 2), atol=1e-5)
    assert not torch.allclose(both[:1], sampling.clips(["a"], 1), atol=1e-4)


# ------------------------------------------------------------------------------ syntaxes and notes


def test_the_syntax_is_recorded_and_changes_the_clip(model):
    clips = {syntax: model.run(ask("a (b:1.4)", prompt_syntax=syntax)) for syntax in (None, "a1111", "comfy", "plain")}
    assert torch.equal(clips[None].video, clips["a1111"].video)
    videos = [clips[syntax].video for syntax in ("a1111", "comfy", "plain")]
    assert not any(torch.equal(videos[at], videos[at - 1]) for at in range(3))
    assert clips[None].recipe["stages"][0]["request"]["prompt_syntax"] == "a1111"
    assert clips["plain"].recipe["stages"][0]["request"]["prompt_syntax"] == "plain"


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"prompt": "a (b:1.3) c"}, None),
        ({"prompt": "[a|b] BREAK [a:b:0.5]"}, None),
        ({"prompt": "{a|b}"}, r"--prompt-syntax a1111 reads {a|b} as words"),
        ({"prompt": "[a:b:0.5] | c"}, "--prompt-syntax a1111 reads […:…:…] or […|…], since it has | or \\ outside"),
        ({"prompt": "[a|b] BREAK", "prompt_syntax": "comfy"}, "--prompt-syntax comfy reads [a|b], BREAK as words"),
        ({"negative_prompt": "(a)", "prompt_syntax": "plain"}, "--prompt-syntax plain reads (a) as words"),
        ({"prompt": "a " * 30, "prompt_syntax": "plain"}, None),
    ],
)
def test_signs_that_a_syntax_takes_for_words_are_noted(model, fields, note):
    found = [each for each in notes_of(model, ask(**fields)) if "as words" in each]
    assert len(found) == (note is not None)
    assert all(each.startswith(note) for each in found)


def test_a_plain_prompt_that_is_cut_is_noted(model):
    found = []
    model.run(ask("a " * 30, prompt_syntax="plain", steps=1), on_event=found.append)
    assert 'the plain prompt "a a' in "".join(e.message for e in found if isinstance(e, Note))
    assert "has 30 tokens, of which the first 18 are used" in "".join(e.message for e in found if isinstance(e, Note))


def test_models_of_plain_prompts_say_so_once():
    zoetrope = load("zoetrope", preset="tiny")
    request = Request(prompt="a (red:1.3) [ball|box]", steps=1, seed=1, super_resolution=None)
    assert notes_of(zoetrope, request) == [
        f"{zoetrope.system.name} takes plain prompts and reads (red:1.3), [ball|box] as words"
    ]
    assert notes_of(zoetrope, request.with_(prompt="a red ball")) == []
    with pytest.raises(
        BadRequest, match="takes only plain prompts, without weights or steps: leave --prompt-syntax out"
    ):
        build_job(zoetrope.system, request.with_(prompt_syntax="a1111"))
    build_job(zoetrope.system, request.with_(prompt_syntax="plain"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a AND b"}, "AND in the prompt combines prompts"),
        ({"prompt": "(a:1.2.3)"}, "has the weight 1.2.3"),
        ({"prompt": "a", "negative_prompt": "(a:nan)", "prompt_syntax": "comfy"}, "has the weight nan"),
        ({"prompt": "a", "prompt_spans": {1: "(b:999)"}}, "a weight of 999"),
        ({"prompt": "a" * 100_001}, "100,001 characters; expected at most 100,000"),
        ({"prompt": "[a:b:0.5", "prompt_syntax": "webui"}, "prompt_syntax is 'webui'"),
        ({"prompt": "a embedding:x"}, "embedding:x; give the folder that has it with --embeddings FOLDER"),
        ({"prompt": "a <lora:x:0.8>"}, "--lora x.safetensors:0.8"),
        ({"prompt": "a", "negative_prompt": "<lora:x:0.8>"}, "the negative prompt names a LoRA"),
        ({"prompt": "a", "extra": {"embeddings": 3}}, "embeddings is 3; expected a folder"),
    ],
)
def test_prompts_that_cannot_be_read_raise_before_weights_are_loaded(model, fields, message, monkeypatch):
    monkeypatch.setattr(type(model.system), "model", property(lambda _self: pytest.fail("weights were loaded")))
    with pytest.raises(BadRequest, match=message):
        build_job(model.system, ask(**fields))


# ------------------------------------------------------------------------------ embeddings and LoRAs


def test_embeddings_change_the_clip_and_are_recorded_by_name_and_hash(model, tmp_path):
    width = model.system.config.text[0].width
    table = torch.randn(2, width, generator=torch.Generator().manual_seed(2))
    torch.save({"string_to_param": {"*": table}}, tmp_path / "zed.pt")
    torch.save({"string_to_param": {"*": torch.zeros(1, 3)}}, tmp_path / "other.pt")  # unused, so never read
    clips = [
        model.run(ask(prompt, prompt_syntax=syntax, extra={"embeddings": str(tmp_path)}))
        for prompt, syntax in (("a zed", "a1111"), ("a embedding:zed", "a1111"), ("a embedding:zed", "comfy"))
    ]
    plain = model.run(ask("a zed"))
    assert torch.equal(clips[0].video, clips[1].video)
    assert torch.equal(clips[0].video, clips[2].video)
    assert not torch.equal(clips[0].video, plain.video)
    assert clips[0].recipe["stages"][0]["request"]["extra"] == {"embeddings": {"zed": "zed.pt"}}
    assert list(clips[0].recipe["extra_inputs"]) == ["zed.pt"]
    assert str(tmp_path) not in json.dumps(clips[0].recipe)


def test_an_embeddings_folder_that_is_not_used_is_noted_or_refused(model, tmp_path):
    request = ask("a", extra={"embeddings": str(tmp_path)})
    assert any("--embeddings is not used" in note for note in notes_of(model, request))
    with pytest.raises(BadRequest, match="plain prompts cannot name embeddings"):
        build_job(model.system, request.with_(prompt_syntax="plain"))
    torch.save({"string_to_param": {"*": torch.zeros(1, 3)}}, tmp_path / "zed.pt")
    with pytest.raises(BadRequest, match="zed.pt has vectors 1×3, of another model"):
        build_job(model.system, request.with_(prompt="zed"))


def test_models_of_whole_words_take_no_embeddings(tmp_path):
    torch.save({"string_to_param": {"*": torch.zeros(1, 32)}}, tmp_path / "zed.pt")
    words = load("animatediff", preset="tiny")
    with pytest.raises(BadRequest, match="whole words of its own vocabulary and takes no embeddings"):
        build_job(words.system, ask("zed", extra={"embeddings": str(tmp_path)}))


@pytest.fixture
def bundle(model, tmp_path):
    """A LoRA without effect that contains three embeddings, in two layouts."""
    width = model.system.config.text[0].width
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.zeros(32, 2)}
    table = torch.randn(2, width, generator=torch.Generator().manual_seed(2))
    torch.save({"string_to_param": {"*": table}}, tmp_path / "zed.pt")
    lora |= {"bundle_emb.mascot.string_to_param.*": table, "bundle_emb.odd.clip_l": torch.zeros(1, 3)}
    lora |= {"bundle_emb.one.clip_l": table.clone(), "bundle_emb.one.clip_l_out": table.clone()}
    save_file(lora, tmp_path / "ink.safetensors")
    return tmp_path / "ink.safetensors"


def test_embeddings_in_a_lora_equal_those_of_files_at_any_weight_of_it(model, bundle):
    wanted = model.run(ask("a zed", steps=1, extra={"embeddings": str(bundle.parent)})).video
    assert not torch.equal(wanted, model.run(ask("a mascot", steps=1)).video)
    for prompt, options in (
        ("a mascot", {}),
        ("a one", {}),
        ("a embedding:mascot", {"prompt_syntax": "comfy"}),
        ("a mascot<lora:ink:0.3>", {"loras": None, "lora_folder": str(bundle.parent)}),
        ("a mascot", {"loras": {str(bundle): 0.0}}),
    ):
        clip = model.run(ask(prompt, **{"steps": 1, "loras": {str(bundle): 1.0}, **options}))
        assert torch.equal(clip.video, wanted), prompt
    stage = clip.recipe["stages"][0]
    assert stage["request"]["extra"] == {"embeddings": {"mascot": "in a LoRA"}}
    assert "extra_inputs" not in clip.recipe
    assert str(bundle.parent) not in json.dumps(clip.recipe)


def test_a_clip_with_an_embedding_in_a_lora_is_replayed_with_the_lora_alone(model, bundle, tmp_path, capsys):
    clip = load(model.system.weights.path, loras={bundle: 0.5}).run(ask("a mascot", negative_prompt="one", steps=1))
    clip.save(tmp_path / "a.mp4")
    argv = ["replay", str(tmp_path / "a.mp4"), "--model", str(model.system.weights.path), "-o", str(tmp_path / "b.mp4")]
    assert main([*argv, "--lora", f"{bundle}:0.5"]) == 0
    assert "are identical to those of a.mp4" in capsys.readouterr().err


def test_embeddings_in_a_lora_that_change_nothing_are_noted_or_refused(model, bundle):
    loras = {"loras": {str(bundle): 1.0}}
    notes = notes_of(model, ask("a one", **loras))
    assert "ink.safetensors contains 2 embeddings (mascot, odd), not used: only the prompt can name embeddings" in notes
    assert "ink.safetensors has embeddings for the output of the text encoder, which are not used" in notes
    plain = notes_of(model, ask("a mascot", prompt_syntax="plain", **loras))
    assert any("ink.safetensors contains 3 embeddings (mascot, odd, one), not used" in note for note in plain)
    with pytest.raises(BadRequest, match="embedding odd in ink.safetensors has vectors 1×3, of another model"):
        build_job(model.system, ask("an odd", **loras))
    with pytest.raises(BadRequest, match="the embedding mascot is in no LoRA of this request"):
        build_job(model.system, ask("mascot", extra={"embeddings": {"mascot": "in a LoRA"}}))
    build_job(model.system, ask("a"))  # the LoRAs of the model's next request are its own


def test_an_image_stage_takes_the_syntax_and_embeddings_that_its_clip_cannot_read(model, tmp_path, capsys):
    width = model.system.config.text[0].width
    table = torch.randn(2, width, generator=torch.Generator().manual_seed(2))
    torch.save({"string_to_param": {"*": table}}, tmp_path / "zed.pt")
    painter, base = str(model.system.weights.path), load("opensora", preset="tiny")
    options = {"prompt_syntax": "comfy", "extra": {"embeddings": str(tmp_path), "oscillate": False}}
    options |= {"task": "animate", "image_model": painter, "height": 24, "width": 40, "frames": 5, "steps": 1}
    clip = base.run(ask("a (embedding:zed:1.2)", **options))
    image, own = (stage["request"] for stage in clip.recipe["stages"])
    assert (image["prompt_syntax"], image["extra"]) == ("comfy", {"embeddings": {"zed": "zed.pt"}})
    assert own["extra"] == {"oscillate": False}
    assert "prompt_syntax" not in own
    assert list(clip.recipe["extra_inputs"]) == ["zed.pt"]
    clip.save(tmp_path / "a.mp4")
    argv = ["replay", str(tmp_path / "a.mp4"), "--image-model", painter, "-o", str(tmp_path / "b.mp4")]
    assert main([*argv, "--input", f"zed.pt={tmp_path / 'zed.pt'}"]) == 0
    assert "are identical to those of a.mp4" in capsys.readouterr().err
    both = model.system.family.sampling.defaults(model.system.config)
    assert both.prompts.options == ("embeddings",)


def test_a_lora_that_a_prompt_names_is_added_at_its_weight(model, tmp_path):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(1)
    lora = {f"{name}.lora_A.weight": torch.randn(2, 32, generator=generator)}
    lora |= {f"{name}.lora_B.weight": torch.randn(32, 2, generator=generator)}
    save_file(lora, tmp_path / "ink.safetensors")
    named = model.run(ask("a <lora:ink:0.5>b", lora_folder=str(tmp_path)))
    given = model.run(ask("a b", loras={str(tmp_path / "ink.safetensors"): 0.5}))
    assert torch.equal(named.video, given.video)
    assert not torch.equal(named.video, model.run(ask("a b")).video)
    assert named.recipe["stages"][0]["loras"] == given.recipe["stages"][0]["loras"]
    assert named.recipe["stages"][0]["request"]["prompt"] == "a b"
    assert str(tmp_path) not in json.dumps(named.recipe)
    with pytest.raises(BadRequest, match="ink.safetensors is given by its file and in the prompt"):
        model.run(ask("<lora:ink>", lora_folder=str(tmp_path), loras={str(tmp_path / "ink.safetensors"): 1.0}))
    assert any("--lora-folder is not used" in note for note in notes_of(model, ask(lora_folder=str(tmp_path))))


def test_the_command_line_has_the_options(model, tmp_path, capsys):
    from kinema.cli import verbs

    given = verbs.read_options(
        "generate",
        verbs.options_of("generate"),
        ["a", "--embeddings", str(tmp_path), "--prompt-syntax", "comfy", "--lora-folder", str(tmp_path)],
        "kinema",
    )
    request = verbs.request_from("generate", given)
    assert request.extra == {"embeddings": str(tmp_path)}
    assert (request.prompt_syntax, request.lora_folder) == ("comfy", str(tmp_path))
    with pytest.raises(SystemExit):
        verbs.run("generate", ["--help"])
    page = capsys.readouterr().out
    assert all(
        option in page for option in ("--prompt-syntax {a1111,comfy,plain}", "--embeddings FOLDER", "--lora-folder")
    )
