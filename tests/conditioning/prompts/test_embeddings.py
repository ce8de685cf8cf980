"""Textual-inversion embeddings and LoRAs that prompts name: layouts, folders, and hostile files."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from kinema.conditioning.prompts import embeddings, folders, lora_tags
from kinema.conditioning.prompts.embeddings import IN_LORA, named_in, vectors, without_sign
from kinema.schema import BadRequest

TABLE = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def layouts(folder):
    """One table in each layout, by file."""
    made = {"a1111.pt": {"string_to_token": {"*": 265}, "string_to_param": {"*": TABLE}, "name": "x", "step": 5}}
    made |= {"learned_embeds.bin": {"<cat-toy>": TABLE}}
    for name, content in made.items():
        torch.save(content, folder / name)
    save_file({"<cat-toy>": TABLE}, folder / "diffusers.safetensors")
    save_file({"emb_params": TABLE.half()}, folder / "params.safetensors")
    return ["a1111.pt", "learned_embeds.bin", "diffusers.safetensors", "params.safetensors"]


def test_every_layout_gives_the_same_vectors(tmp_path):
    for name in layouts(tmp_path):
        (found,) = vectors(str(tmp_path / name), [8], 75)
        assert found.dtype == torch.float32
        assert torch.allclose(found, TABLE, atol=1e-3 if "params" in name else 0), name


def test_embeddings_with_a_parameter_dict_are_read(tmp_path):
    """The layout of the first textual inversions, whose ``.pt`` is also AUTOMATIC1111's oldest."""
    table = torch.nn.ParameterDict({"*": torch.nn.Parameter(TABLE)})
    content = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": table}
    torch.save(content, tmp_path / "x.pt")
    (found,) = vectors(str(tmp_path / "x.pt"), [8], 75)
    assert torch.equal(found, TABLE)
    assert type(found) is torch.Tensor
    assert "ParameterDict" not in str(torch.serialization.get_safe_globals())
    assert not any("ParameterTable" in str(each) for each in torch.serialization.get_safe_globals())


def test_a_parameter_dict_admits_nothing_else(tmp_path):
    table = torch.nn.ParameterDict({"*": torch.nn.Parameter(TABLE)})
    for name, content in (("code.pt", [table, Attack()]), ("module.pt", [table, torch.nn.Linear(2, 2)])):
        torch.save(content, tmp_path / name)
        with pytest.raises(BadRequest, match=r"contains Python code \((posix.system|torch.nn.modules.linear.Linear)"):
            vectors(str(tmp_path / name), [8], 75)


@pytest.mark.parametrize(
    "state", [None, [], {}, {"_parameters": [1]}, ({}, {"update": None}), {"_parameters": {"a": 1}}]
)
def test_a_parameter_dict_of_another_state_is_refused(state, tmp_path):
    """Its state is data: it sets no attribute, runs nothing, and gives no table."""

    class Forged:
        def __reduce__(self):
            return (torch.nn.ParameterDict, (), state)

    torch.save({"string_to_param": Forged()}, tmp_path / "x.pt")
    with pytest.raises(BadRequest, match=r"x.pt (cannot be read|is not a textual-inversion embedding)"):
        vectors(str(tmp_path / "x.pt"), [8], 75)


def test_pivotal_tuning_files_of_diffusers_are_read(tmp_path):
    """``NAME_emb.safetensors`` beside a LoRA: one row for each of its new tokens, for SD 1.5 and for SDXL."""
    save_file({"clip_l": TABLE}, tmp_path / "cat_emb.safetensors")
    (found,) = vectors(str(tmp_path / "cat_emb.safetensors"), [8], 75)
    assert torch.equal(found, TABLE)
    assert named_in(["a cat_emb"], str(tmp_path), "a1111") == {"cat_emb": str(tmp_path / "cat_emb.safetensors")}


def test_a_single_vector_is_one_row(tmp_path):
    torch.save({"<x>": TABLE[0]}, tmp_path / "x.bin")
    assert vectors(str(tmp_path / "x.bin"), [8], 75)[0].shape == (1, 8)


def test_sdxl_vectors_are_in_the_order_of_the_encoders(tmp_path):
    large = torch.randn(3, 12)
    save_file({"clip_g": large, "clip_l": TABLE}, tmp_path / "xl.safetensors")
    first, second = vectors(str(tmp_path / "xl.safetensors"), [8, 12], 75)
    assert torch.equal(first, TABLE)
    assert torch.equal(second, large)


class Attack:
    def __reduce__(self):
        return (os.system, ("false",))


@pytest.mark.parametrize(
    ("name", "content", "widths", "message"),
    [
        ("wide.pt", {"<x>": torch.zeros(2, 12)}, [8], r"wide.pt has vectors 2×12, of another model; expected N×8"),
        ("long.pt", {"<x>": torch.zeros(76, 8)}, [8], "76 vectors; expected 1 to 75"),
        ("none.pt", {"<x>": torch.zeros(0, 8)}, [8], "0 vectors; expected 1 to 75"),
        ("cube.pt", {"<x>": torch.zeros(2, 2, 8)}, [8], "2×2×8"),
        ("nan.pt", {"<x>": torch.full((1, 8), torch.nan)}, [8], "infinite or NaN"),
        ("whole.pt", {"<x>": torch.zeros(1, 8, dtype=torch.long)}, [8], "not a textual-inversion embedding"),
        ("model.pt", {str(n): torch.zeros(8) for n in range(9)}, [8], "not a textual-inversion embedding"),
        ("list.pt", [torch.zeros(8)], [8], "not a textual-inversion embedding"),
        ("one.pt", {"<x>": TABLE}, [8, 12], r"one.pt has <x>; this model needs vectors named clip_l and clip_g"),
        ("two.pt", {"clip_l": TABLE, "clip_g": TABLE}, [8], "this model needs one table of vectors"),
        ("uneven.pt", {"clip_l": TABLE, "clip_g": torch.zeros(2, 12)}, [8, 12], "3 and 2 vectors"),
        ("code.pt", {"<x>": Attack()}, [8], "contains Python code .*system"),
    ],
)
def test_files_that_are_no_embedding_of_this_model_raise(name, content, widths, message, tmp_path):
    path = tmp_path / name
    if name == "code.pt":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(BadRequest, match=message):
        vectors(str(path), widths, 75)


def test_large_damaged_and_absent_files_raise(tmp_path, monkeypatch):
    for name, content, message in (
        ("cut.safetensors", b"\x09\0\0\0\0\0\0\0{", "cut.safetensors"),
        ("empty.pt", b"", "empty"),
        ("noise.pt", os.urandom(99), "cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadRequest, match=message):
            vectors(str(tmp_path / name), [8], 75)
    with pytest.raises(BadRequest, match="there is no embedding"):
        vectors(str(tmp_path / "gone.pt"), [8], 75)
    monkeypatch.setattr(embeddings, "MAX_BYTES", 100)
    torch.save({"<x>": TABLE}, tmp_path / "big.pt")
    with pytest.raises(BadRequest, match="big.pt has .* bytes; an embedding has at most 100"):
        vectors(str(tmp_path / "big.pt"), [8], 75)


def test_prompts_name_embeddings(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("EasyNegative.pt", "more/style.safetensors", "art.bin", "v1.pt"):
        (tmp_path / name).touch()
    torch.save({"<cat-toy>": TABLE}, tmp_path / "learned_embeds.bin")

    def named(syntax, *texts):
        return {name: os.path.relpath(path, tmp_path) for name, path in named_in(texts, str(tmp_path), syntax).items()}

    assert named("a1111", "a (easynegative:1.2), cartoon", "<cat-toy> v12") == {
        "EasyNegative": "EasyNegative.pt",
        "v1": "v1.pt",
        "<cat-toy>": "learned_embeds.bin",
    }
    assert named("comfy", "easynegative, (embedding:style:1.2), embedding:more/style") == {
        "style": "more/style.safetensors",
        "more/style": "more/style.safetensors",
    }
    assert named("a1111", "embedding:art") == {"art": "art.bin"}
    for syntax in ("a1111", "comfy"):
        with pytest.raises(BadRequest, match="no embedding 'styles'; did you mean style"):
            named(syntax, "embedding:styles")
    assert without_sign("a embedding:art, embedding:x", ["art"]) == "a art, embedding:x"


def test_an_embedding_in_a_lora_is_named_as_those_of_a_folder_are_which_come_first(tmp_path):
    """So in AUTOMATIC1111, which skips a bundled embedding whose name the folder has."""
    torch.save({"<x>": TABLE}, tmp_path / "zed.pt")
    zed, bundle = str(tmp_path / "zed.pt"), {"Zed", "zed", "mascot"}
    for syntax, text, folder, found in (
        ("a1111", "a (mascot:1.2)", None, {"mascot": IN_LORA}),
        ("a1111", "embedding:mascot, mascots", None, {"mascot": IN_LORA}),
        ("a1111", "mascots", None, {}),
        ("a1111", "zed and mascot", str(tmp_path), {"Zed": IN_LORA, "zed": zed, "mascot": IN_LORA}),
        ("comfy", "embedding:zed mascot", str(tmp_path), {"zed": zed}),
        ("comfy", "embedding:mascot", str(tmp_path), {"mascot": IN_LORA}),
    ):
        assert named_in([text], folder, syntax, bundle) == found, text
    with pytest.raises(BadRequest, match="no embedding 'mascots'"):
        named_in(["embedding:mascots"], str(tmp_path), "comfy", bundle)


def test_each_folder_of_diffusers_has_a_token_of_its_own(tmp_path, monkeypatch):
    """All their files have one name, or that of a step of training; a file that is no embedding has no token."""
    for place, token in (("cat", "<cat-toy>"), ("dog", "<dog-toy>"), ("more/dog", "<dog-toy>")):
        (tmp_path / place).mkdir(parents=True)
        torch.save({token: TABLE}, tmp_path / place / "learned_embeds.bin")
    save_file({"<eel>": TABLE}, tmp_path / "learned_embeds-steps-500.safetensors")
    (tmp_path / "learned_embeds.pt").write_bytes(b"no embedding")

    def named(text):
        return {k: os.path.relpath(v, tmp_path) for k, v in named_in([text], str(tmp_path), "a1111").items()}

    assert named("<cat-toy> and <dog-toy>, <eel>") == {
        "<cat-toy>": "cat/learned_embeds.bin",
        "<dog-toy>": "dog/learned_embeds.bin",
        "<eel>": "learned_embeds-steps-500.safetensors",
    }
    monkeypatch.setattr(embeddings, "MAX_GENERIC", 4)
    with pytest.raises(BadRequest, match="has 5 files named learned_embeds, which must all be read"):
        named("a")


def test_folders_are_bounded_and_never_left(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    torch.save({"<x>": TABLE}, tmp_path / "outside.pt")
    (tmp_path / "aside").mkdir()
    torch.save({"<x>": TABLE}, tmp_path / "aside" / "x.pt")
    (inside / "link").symlink_to(tmp_path)
    (inside / "aside").symlink_to(tmp_path / "aside")
    for name in ("../outside", "..", str(tmp_path / "outside.pt"), "link/outside", "aside/x"):
        with pytest.raises(BadRequest, match="there is no embedding"):
            named_in([f"embedding:{name}"], str(inside), "comfy")
    (tmp_path / "more").mkdir()
    (inside / "deep").mkdir()
    torch.save({"<x>": TABLE}, inside / "deep" / "in.pt")
    (inside / "again").symlink_to(inside / "deep")
    (inside / "deep" / "up").symlink_to(inside)
    (inside / "a.pt").symlink_to(tmp_path / "outside.pt")
    for name, path in (("again/in", "again/in.pt"), ("deep/in", "deep/in.pt"), ("a", "a.pt")):
        assert named_in([f"embedding:{name}"], str(inside), "comfy") == {name: str(inside / path)}
    with pytest.raises(BadRequest, match="there is no embedding"):
        named_in(["embedding:deep/up/a"], str(inside), "comfy")
    with pytest.raises(BadRequest, match="which is not a folder"):
        named_in(["a"], str(tmp_path / "outside.pt"), "comfy")
    monkeypatch.setattr(folders, "MAX_FILES", 1)
    with pytest.raises(BadRequest, match="has more than 1 files"):
        named_in(["a"], str(tmp_path), "comfy")


# --------------------------------------------------------------------------------------------- LoRAs


def test_prompts_name_loras(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("ink.safetensors", "more/wash.pt"):
        (tmp_path / name).touch()
    named = lora_tags.tags("a cat <lora:ink:0.8>, <lyco:more/wash:-.5:-.5> <lora:ink:0.8>")
    assert lora_tags.files_of(named, str(tmp_path)) == {
        str(tmp_path / "ink.safetensors"): 0.8,
        str(tmp_path / "more" / "wash.pt"): -0.5,
    }
    assert lora_tags.tags("<lora:ink>") == {"ink": 1.0}
    assert lora_tags.without_tags("a <lora:ink:0.8>cat < b > c") == "a cat < b > c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<lora:ink:0.8>", r"give its file with --lora ink.safetensors:0.8 and leave <lora:…> out, or its folder"),
        ("<hypernet:ink>", "only LoRAs can be added in a prompt"),
        ("<lora:ink:0.8:0.2>", "several weights; expected one"),
        ("<lora:ink:te=0.8>", "several weights; expected one"),
        ("<lora:ink:nan>", "has the weight nan"),
        ("<lora:ink:1e309>", "has the weight 1e309"),
        ("<lora:ink:0.8> <lora:ink:0.9>", "the same LoRA another weight"),
    ],
)
def test_lora_tags_that_cannot_be_used_raise(text, message):
    with pytest.raises(BadRequest, match=message):
        lora_tags.files_of(lora_tags.tags(text), None)


def test_a_lora_that_is_not_in_the_folder_raises(tmp_path):
    with pytest.raises(BadRequest, match="no LoRA 'ink': its folder has no weight files"):
        lora_tags.files_of({"ink": 1.0}, str(tmp_path))
    (tmp_path / "inks.safetensors").touch()
    with pytest.raises(BadRequest, match="no LoRA 'ink'; did you mean inks"):
        lora_tags.files_of({"ink": 1.0}, str(tmp_path))
