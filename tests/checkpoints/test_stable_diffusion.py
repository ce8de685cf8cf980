"""Names, sizes and table rows of Stable Diffusion's single-file layout."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kinema.checkpoints import stable_diffusion
from kinema.checkpoints.stable_diffusion import TEXT, UNET, VAE, XL_TEXT
from kinema.checkpoints.table import Table

CLIP = SimpleNamespace(width=768, layers=12, heads=12, mlp=3072, projection=None, vocabulary=49408, length=77)
BIG = SimpleNamespace(width=1280, layers=32, heads=20, mlp=5120, projection=1280, vocabulary=49408, length=77)
SHARED = {"layers": 2, "in_channels": 4, "latent_channels": 4, "vae_channels": (128, 256, 512, 512), "vae_layers": 2}
SD15 = {"channels": (320, 640, 1280, 1280), "depths": (1, 1, 1, 0), "heads": (8,) * 4, "context": 768, "linear": False}
SDXL = {"channels": (320, 640, 1280), "depths": (0, 2, 10), "heads": (5, 10, 20), "context": 2048, "linear": True}
MODELS = {
    "sd15": SimpleNamespace(**SHARED, **SD15, size_embedding=0, pooled=0, text=(CLIP,)),
    "sdxl": SimpleNamespace(**SHARED, **SDXL, size_embedding=256, pooled=1280, text=(CLIP, BIG)),
}


def header_of(name):
    table = Table(stable_diffusion.rows(MODELS[name]))
    return {key: (shape, torch.float16) for key, shape in table.foreign.items()}


@pytest.mark.parametrize(("name", "unet"), [("sd15", 686), ("sdxl", 1680)])
def test_tables_have_the_tensor_counts_of_the_published_files(name, unet):
    header = header_of(name)
    texts = [TEXT] if name == "sd15" else list(XL_TEXT)
    assert sum(key.startswith(UNET) for key in header) == unet
    assert sum(key.startswith(VAE) for key in header) == 248
    assert sum(key.startswith(texts[0]) for key in header) == 196
    assert sum(key.startswith((UNET, VAE, *texts)) for key in header) == len(header)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_sizes_are_inferred_from_the_header(name):
    header, model = header_of(name), MODELS[name]
    sizes = stable_diffusion.unet_sizes(header, name == "sdxl")
    vae = {key.removeprefix(VAE): entry for key, entry in header.items() if key.startswith(VAE)}
    sizes |= stable_diffusion.vae_sizes(vae)
    assert sizes == {size: getattr(model, size) for size in sizes}
    assert {"channels", "depths", "heads", "context", "vae_channels"} <= set(sizes)
    first = stable_diffusion.text_sizes(header, TEXT if name == "sd15" else XL_TEXT[0])
    assert SimpleNamespace(**first) == CLIP
    second = stable_diffusion.open_clip_sizes(header, XL_TEXT[1])
    assert second is None if name == "sd15" else SimpleNamespace(**second) == BIG


def test_unused_tensors_from_training_are_skipped():
    header = header_of("sd15")
    unused = ("model_ema.decay", "alphas_cumprod", "first_stage_model.loss.logvar", "cond_stage_model.logit_scale")
    more = {name: ((1,), torch.float32) for name in unused}
    assert stable_diffusion.without_unused(header | more) == header
    assert stable_diffusion.is_image_model(header)
    assert not stable_diffusion.is_image_model(more)


def test_names_without_text_model_are_normalised():
    name = f"{TEXT}text_model.encoder.layers.0.mlp.fc1.weight"
    assert stable_diffusion.usual_name(name.replace("text_model.", "")) == name == stable_diffusion.usual_name(name)
