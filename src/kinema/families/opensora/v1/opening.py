"""From files of Open-Sora 1.0 to 1.3 to a configuration, and to tensors under our names.

The transformer is a file or folder; the codec is another, added in the slot ``vae``. Nothing in the weights tells the
size of clips: that is of the published model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from kinema.checkpoints.files import Header
from kinema.checkpoints.signatures import describe
from kinema.checkpoints.source import Source
from kinema.families.opensora.files import slots, stdit_file, vae_1x_file
from kinema.families.opensora.files.vae_1x_file import REPOSITORIES, TITLES, Kind, Vae1xFile
from kinema.families.opensora.stdit import network
from kinema.families.opensora.stdit.config import STDiTConfig
from kinema.families.opensora.v1.config import PRESETS, Config
from kinema.families.opensora.vae1x.vae12 import Sizes12
from kinema.families.opensora.vae1x.vae13 import Sizes13
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.system import FoundCheckpoint

BY_NAME = {
    "64x512x512": "v1.0-64f",
    "512x512": "v1.0-512px",
    "256x256": "v1.0",
    "STDiT-v4-360p": "v1.3-360p",
    "STDiT-v4-i2v": "v1.3-i2v",
}
"""Parts of published names whose presets no tensor tells: 1.0's scales of positions, the size of clips of 1.3."""
ASSUMED = "its positions are assumed to be those of 256 px and 16 frames, since neither tensors nor its name tell"


def kind_of(config: Config) -> Kind:
    """The codec that a model needs."""
    return "image" if config.by_image else "1.3" if config.version == "1.3" else "1.2"


def open_source(source: Source) -> FoundCheckpoint | None:
    """What is recognised in a source, by headers and JSON alone; None when it is not of this line.

    Raises `BadRequest` for tensors that do not fit each other, and a ``source.model`` of another version.
    """
    if source.pipeline:
        return None
    file = stdit_file.recognise(source.header, source.config("") if source.path.is_dir() else {})
    if file is None:
        return None
    file.check(source.header, source.path.name)
    version = file.config.version
    fitting = ((part, preset) for part, preset in BY_NAME.items() if PRESETS[preset].version == version)
    named = next((preset for part, preset in fitting if part in source.name), None)
    preset = source.model or named or f"v{version}"
    published = PRESETS.get(preset)
    if published is None or published.version != version:
        raise BadRequest(f"{source.path} cannot be {preset}: it is a transformer of Open-Sora {version}")
    stdit, own = file.config, published.stdit
    if version == "1.0":
        stdit = replace(stdit, space_scale=own.space_scale, time_scale=own.time_scale)
    known = version != "1.0" or source.model or named
    notes = () if known else (f"{source.name} is a model of Open-Sora 1.0; {ASSUMED}",)
    config = _with_codec(published, stdit, absent=("vae",))
    return FoundCheckpoint(config, notes=notes, beside=_beside(source.path, kind_of(config)))


def _with_codec(config: Config, stdit: STDiTConfig, absent: tuple[str, ...] = ()) -> Config:
    """The config with this transformer, and a codec of as many channels."""
    vae12, vae13 = replace(config.vae12, latent=stdit.channels), replace(config.vae13, latent=stdit.channels)
    return replace(config, stdit=stdit, vae12=vae12, vae13=vae13, absent=absent)


def _beside(path: Path, kind: Kind) -> dict[str, Path]:
    """The codec's folder next to the transformer's file or folder, by its name on the hub."""
    folder = path.resolve().parent / REPOSITORIES[kind].partition("/")[2]
    return {"vae": folder} if folder.is_dir() else {}


def lacking(config: Config) -> str:
    """What to do about a codec that is not there."""
    kind = kind_of(config)
    return f"this model has no VAE; add {TITLES[kind]} (--add vae=FILE, or --add vae={REPOSITORIES[kind]} from the hub)"


def convert(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's tensors under the network's names; every key used or named."""
    file = stdit_file.recognise(_header(tensors), {"num_heads": config.stdit.heads})
    assert file is not None  # it was recognised when the model was opened
    return {f"transformer.{name}": x for name, x in file.to_ours(tensors, "this file").items()}


def layers(config: Config) -> dict[str, str]:
    """The transformer's layers by their names in its own file."""
    with on_meta():
        names = [name for name, _ in network.build(config.stdit).named_modules() if name]
    return {name: f"transformer.{name}" for name in names}


def _header(tensors: Mapping[str, Tensor]) -> Header:
    return {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}


# ------------------------------------------------------------------------------------------- slots


class FirstLineSlots:
    """The codec, and T5, which is not part of the network."""

    names: tuple[str, ...] = ("vae", "t5")

    def open(self, config: Config, slot: str, source: Source) -> FoundCheckpoint:
        """The config with this in it. Raises `BadRequest` for what does not belong there, and says what it is."""
        slots.check_slot(self.names, slot, source)
        if slot == "t5":
            return slots.open_encoder(config, slot, source, config.stdit.text)
        file = vae_1x_file.recognise(source.header, source.config("") if source.path.is_dir() else {})
        kind, latent = kind_of(config), config.stdit.channels
        if file is None:
            needs = f"{TITLES[kind]} ({latent} channels), as in {REPOSITORIES[kind]}"
            raise BadRequest(f"{source.path} is not a VAE of this model: it is {describe(source)}; expected {needs}")
        file.require(kind, latent, str(source.path))
        file.check(source.header, source.path.name)
        return FoundCheckpoint(_into(config, file))

    def convert(self, config: Config, slot: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """Its tensors under the network's names."""
        file = vae_1x_file.recognise(_header(tensors), {"micro_frame_size": config.vae12.run})
        assert file is not None  # it was recognised when it was added
        return {f"vae.{name}": x for name, x in file.table.forward(tensors, "this file").items()}


def _into(config: Config, file: Vae1xFile) -> Config:
    sizes = file.sizes
    if isinstance(sizes, Sizes13):
        return replace(config, vae13=sizes, absent=())
    assert isinstance(sizes, Sizes12)
    return replace(config, vae12=sizes, absent=())


SLOTS = FirstLineSlots()
