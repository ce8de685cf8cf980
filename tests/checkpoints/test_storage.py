"""Names and scaled weights are read alike from every format of file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kinema.checkpoints.files import header, read_tensors, viewed, write_tensors
from kinema.checkpoints.storage import LDM_UNET, usual_names
from kinema.checkpoints.stream import Stream
from kinema.schema import BadRequest

Tensors = dict[str, Tensor]
TENSORS: Tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(2)}
F8 = torch.float8_e4m3fn


def write_gguf(path: Path, tensors: Tensors) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "sd1")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


WRITERS: dict[str, Callable[[Path, Tensors], object]] = {
    ".safetensors": write_tensors,
    ".ckpt": lambda path, tensors: torch.save({"state_dict": tensors, "epoch": 1, "optimizer_states": []}, path),
    ".gguf": write_gguf,
}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "_orig_mod.", "state_dict.module."])
@pytest.mark.parametrize("suffix", WRITERS)
def test_prefixes_of_all_names_are_removed_in_every_format(tmp_path: Path, suffix: str, prefix: str) -> None:
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path, {prefix + name: tensor for name, tensor in TENSORS.items()})
    stream = Stream(path)
    found = read_tensors(path)
    assert found.keys() == stream.header.keys() == header(path).keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(stream[name], tensor)
    assert stream.text == b"" or not prefix


def test_a_prefix_that_only_some_names_have_stays() -> None:
    names = ["module.a.weight", "b.weight"]
    assert usual_names(names) == {name: name for name in names}


def test_the_prefix_of_a_unet_in_a_whole_checkpoint_stays() -> None:
    names = [f"{LDM_UNET}input_blocks.0.0.weight", "v_pred"]
    assert usual_names(names) == {name: name for name in names}


def test_marks_without_a_dot_do_not_keep_a_prefix() -> None:
    assert usual_names(["module.a.weight", "epoch"]) == {"module.a.weight": "a.weight", "epoch": "epoch"}


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "module.", "model.diffusion_model."])
def test_a_bare_unet_gets_its_usual_prefix(prefix: str) -> None:
    inner = ["input_blocks.0.0.weight", "output_blocks.0.0.in_layers.2.weight", "out.2.weight", "time_embed.0.bias"]
    assert list(usual_names([prefix + name for name in inner]).values()) == [LDM_UNET + name for name in inner]


def test_a_controlnet_keeps_its_names() -> None:
    names = ["input_blocks.0.0.weight", "zero_convs.0.0.weight", "middle_block_out.0.weight"]
    assert list(usual_names(names).values()) == names


def test_names_that_become_one_are_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a._orig_mod.w": torch.ones(1), "a.w": torch.ones(1)})
    with pytest.raises(BadRequest, match=r"a.safetensors: two tensors differ only in the prefix"):
        header(tmp_path / "a.safetensors")


# ------------------------------------------------------------------------------------ scaled float8


def scaled(scale: Tensor, name: str = "a.scale_weight") -> Tensors:
    return {
        "a.weight": torch.tensor([[1.0, -2.0, 0.5], [4.0, 0.25, 448.0]]).to(F8),
        name: scale,
        "a.bias": torch.ones(2),
        "scaled_fp8": torch.zeros(2, dtype=F8),
    }


@pytest.mark.parametrize("name", ["a.scale_weight", "a.weight_scale"])
@pytest.mark.parametrize("scale", [torch.tensor(0.37), torch.tensor([0.37]), torch.tensor([[0.5], [3.0]])])
def test_scaled_float8_is_multiplied_by_its_scale(tmp_path: Path, scale: Tensor, name: str) -> None:
    path = tmp_path / "a.safetensors"
    tensors = scaled(scale, name)
    write_tensors(path, tensors)
    expected = tensors["a.weight"].float() * scale
    found, stream = read_tensors(path), Stream(path)
    assert found.keys() == stream.header.keys() == {"a.weight", "a.bias"}
    assert torch.equal(found["a.weight"], expected)
    assert torch.equal(stream["a.weight"], expected)
    assert stream.header["a.weight"] == ((2, 3), torch.float32)
    assert stream.text == b""
    assert viewed(path).notes == ("a.safetensors stores 1 weight as float8 with scales, which are applied",)


def test_scales_of_a_wrapped_network_are_found(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(2, 3).to(F8), "a.scale_weight": torch.tensor(2.0), "b.bias": torch.ones(1)}
    write_tensors(tmp_path / "a.safetensors", {f"module.{name}": x for name, x in tensors.items()})
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["a.weight"], torch.full((2, 3), 2.0))


@pytest.mark.parametrize("name", ["a.input_scale", "a.scale_input"])
def test_scales_of_activations_are_not_used_and_named(tmp_path: Path, name: str) -> None:
    write_tensors(tmp_path / "a.safetensors", scaled(torch.tensor(2.0)) | {name: torch.tensor(7.0)})
    assert name not in header(tmp_path / "a.safetensors")
    assert viewed(tmp_path / "a.safetensors").notes[1] == (
        f"a.safetensors has 1 scale of activations ({name}), which are not used"
    )


@pytest.mark.parametrize(
    "scale",
    [torch.ones(3), torch.ones(1, 2), torch.ones(2, 3), torch.ones(0), torch.ones((), dtype=torch.int32)],
    ids=str,
)
def test_a_scale_of_the_wrong_shape_or_dtype_is_refused(tmp_path: Path, scale: Tensor) -> None:
    write_tensors(tmp_path / "a.safetensors", scaled(scale))
    with pytest.raises(BadRequest, match=r"a.safetensors has the scale a.scale_weight of shape"):
        header(tmp_path / "a.safetensors")


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", scaled(torch.tensor(float("nan"))))
    with pytest.raises(BadRequest, match=r"the scale of a.weight is not finite"):
        read_tensors(tmp_path / "a.safetensors")


def test_scaled_integers_are_refused_by_name(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(2, 2, dtype=torch.uint8), "a.weight_scale": torch.ones(2)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(BadRequest, match=r"stores a.weight as uint8 with a scale; expected float8"):
        header(tmp_path / "a.safetensors")
