"""The codecs' files: which codec a header is of, and what is said of files that are incomplete or of another codec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinema.checkpoints.files import Header
from kinema.checkpoints.settings import FileFault
from kinema.families.opensora.files import vae_file
from kinema.families.opensora.files.vae_1x_file import Kind, Vae1xFile, recognise
from kinema.families.opensora.vae1x.vae12 import Sizes12, VideoVAE12
from kinema.families.opensora.vae1x.vae13 import Sizes13, VideoVAE13
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.vae.causal3d import CausalAutoencoder
from kinema.vae.kl2d import Autoencoder

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def header(tensors: Mapping[str, Tensor]) -> Header:
    return {name: (tuple(tensor.shape), "F32") for name, tensor in tensors.items()}


def on_paper(build: Callable[[], nn.Module]) -> Header:
    with on_meta():
        return header(build().state_dict())


def found(given: Header, config: Mapping[str, Any] | None = None) -> Vae1xFile:
    file = recognise(given, config or {})
    assert file is not None
    return file


@cache
def published(name: str) -> Header:
    if name in HALVES:
        return {key: entry for key, entry in published("1.2").items() if key.startswith(HALVES[name])}
    return on_paper(BUILDS[name])


BUILDS = {"1.2": VideoVAE12, "1.3": VideoVAE13, "image": lambda: Autoencoder((128, 256, 512, 512), 2, 4)}
HALVES: dict[str, str] = {"1.2-image": "spatial_vae.module.", "1.2-temporal": "temporal_vae."}


def bare(given: Header, prefix: str) -> Header:
    return {name.removeprefix(prefix): entry for name, entry in given.items()}


# ------------------------------------------------------------------------------------ recognised


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("1.2", Sizes12()), ("1.3", Sizes13()), ("image", Sizes12())],
)
def test_published_files_have_the_default_sizes(kind: Kind, sizes: Sizes12 | Sizes13) -> None:
    given = published(kind)
    file = found(given)
    assert (file.kind, file.sizes) == (kind, sizes)
    file.check(given, "a file")
    assert set(file.table.foreign) == set(file.table.native) == set(given)


def test_other_sizes_are_read_from_shapes(vae12: VideoVAE12, vae13: VideoVAE13) -> None:
    """The normalisation of 1.2 is a pair of tensors of the file; that of 1.3 is only known for 16 channels."""
    older, newer = header(vae12.state_dict()), header(vae13.state_dict())
    neutral = {"shift": (0.0,) * 3, "scale": (1.0,) * 3}
    assert found(older).sizes == replace(vae12.sizes, **neutral)
    assert found(newer).sizes == replace(vae13.sizes, mean=neutral["shift"], std=neutral["scale"])
    for given in (older, newer):
        found(given).check(given, "a file")


@pytest.mark.parametrize("kind", HALVES)
def test_halves_of_1_2_are_recognised_with_and_without_their_prefix(kind: Kind) -> None:
    prefix = HALVES[kind]
    given = published(kind)
    file, count = found(given), {"1.2-image": 248, "1.2-temporal": 267}[kind]
    assert (file.kind, file.sizes, len(given)) == (kind, Sizes12(), count)
    file.check(given, "a file")
    assert set(file.table.native) == {name.removeprefix(prefix) for name in given}
    without = found(bare(given, prefix))
    assert (without.kind, without.sizes) == ("image" if kind == "1.2-image" else kind, Sizes12())
    without.check(bare(given, prefix), "a file")


@torch.no_grad()
def test_halves_fill_the_networks_that_they_say(vae12: VideoVAE12) -> None:
    state, x = vae12.state_dict(), torch.randn(1, 3, 5, 4, 6)
    for prefix, run in (
        ("spatial_vae.module.", lambda network: network.decode(x[:, :, 0])),
        ("temporal_vae.", lambda network: network.decode(x, 17)),
    ):
        given = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        file = found(header(given))
        network = file.build()
        network.load_state_dict(file.table.forward(given, "a file"))
        expected = vae12.spatial_vae.module if prefix.startswith("spatial") else vae12.temporal_vae
        assert torch.equal(run(network), run(expected))


def test_old_names_of_attention_are_read() -> None:
    """As in stabilityai/sd-vae-ft-ema."""

    def renamed(name: str) -> str:
        for new, old in OLD.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        return name

    given = {renamed(name): entry for name, entry in published("image").items()}
    file = found(given)
    assert len(set(given) - set(published("image"))) == 16
    file.check(given, "a file")
    assert set(file.table.native) == set(published("image"))
    assert file.table.by_native["encoder.mid_block.attentions.0.to_out.0.bias"][0].foreign == (
        "encoder.mid_block.attentions.0.proj_attn.bias"
    )


def test_the_frames_of_a_run_are_in_the_config() -> None:
    """Of 1.2 alone; no tensor tells them."""
    assert found(published("1.2"), {"micro_frame_size": 9}).sizes == Sizes12(run=9)
    for wrong in (0, None, True, 17.0, 2000):
        with pytest.raises(FileFault, match=r"has the micro_frame_size .* expected 1 to 1024 frames"):
            recognise(published("1.2"), {"micro_frame_size": wrong})


def test_other_files_are_not_recognised() -> None:
    others: list[Header] = [
        on_paper(CausalAutoencoder),
        {"encoder.down.0.block.0.conv1.weight": ((128, 128, 3, 3), "F32")},
        {"double_blocks.0.img_attn.q_proj.weight": ((8, 8), "F32")},
        {},
    ]
    for other in others:
        assert recognise(other, {}) is None
    for own in (published("1.2"), published("1.3"), published("image")):
        assert vae_file.recognise(own, {}) is None


# ---------------------------------------------------------------------------------------- refused


def test_missing_unexpected_and_misshapen_tensors_are_named() -> None:
    given = dict(published("1.2"))
    del given["scale"], given["temporal_vae.decoder.conv_out.conv.bias"]
    given["extra"] = ((1,), "F32")
    given["shift"] = ((4,), "F32")
    with pytest.raises(BadRequest) as refused:
        found(given).check(given, "vae.safetensors")
    assert str(refused.value) == (
        "vae.safetensors does not match its layout: 2 missing (scale, temporal_vae.decoder.conv_out.conv.bias); "
        "1 unexpected (extra); 1 with the wrong shape (shift is 4, expected 1×4×1×1×1)"
    )
    given = {
        name: entry for name, entry in published("1.3").items() if name != "decoder.up.2.upsample.conv3d.norm2.bias"
    }
    with pytest.raises(BadRequest, match=r"1 missing \(decoder\.up\.2\.upsample\.conv3d\.norm2\.bias\)"):
        found(given).check(given, "vae.safetensors")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("1.2", "spatial_vae.module.post_quant_conv.weight"),
        ("1.2", "temporal_vae.encoder.block_res_blocks.2.0.conv1.conv.weight"),
        ("1.2-temporal", "temporal_vae.post_quant_conv.conv.weight"),
        ("1.3", "decoder.conv_in.conv.weight"),
    ],
)
def test_a_file_without_the_tensors_that_give_its_sizes_names_them(kind: Kind, name: str) -> None:
    short = {key: entry for key, entry in published(kind).items() if key != name}
    with pytest.raises(FileFault, match=f"lacks {name}"):
        recognise(short, {})


@pytest.mark.parametrize(
    ("kind", "wanted", "sentence"),
    [
        (
            "1.3",
            ("1.2", 4),
            "vae.safetensors is the VAE of Open-Sora 1.3 (16 channels); this model needs the VAE of Open-Sora 1.2 "
            "(4 channels), as in hpcai-tech/OpenSora-VAE-v1.2",
        ),
        (
            "1.2-temporal",
            ("1.2", 4),
            "vae.safetensors is the temporal half of the VAE of Open-Sora 1.2 (4 channels); this model needs the VAE "
            "of Open-Sora 1.2 (4 channels), as in hpcai-tech/OpenSora-VAE-v1.2",
        ),
        (
            "1.2",
            ("image", 4),
            "vae.safetensors is the VAE of Open-Sora 1.2 (4 channels); this model needs a VAE of images (4 channels), "
            "as in stabilityai/sd-vae-ft-ema",
        ),
    ],
    ids=["1.3 for 1.2", "a half for 1.2", "1.2 for images"],
)
def test_another_codec_than_the_wanted_one_gets_one_sentence(
    kind: Kind, wanted: tuple[Kind, int], sentence: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        found(published(kind)).require(*wanted, "vae.safetensors")
    assert str(refused.value) == sentence


def test_the_wanted_codec_is_not_refused() -> None:
    found(published("1.2")).require("1.2", 4, "vae.safetensors")
    found(published("1.3")).require("1.3", 16, "vae.safetensors")
    with pytest.raises(BadRequest, match=r"needs the VAE of Open-Sora 1.3 \(8 channels\)"):
        found(published("1.3")).require("1.3", 8, "vae.safetensors")
