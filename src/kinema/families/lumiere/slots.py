"""What can be added at opening: the image model to inflate, and temporal layers that were trained apart from it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kinema.bounds import first_names
from kinema.checkpoints.signatures import describe
from kinema.checkpoints.source import Source
from kinema.families.lumiere.config import Config
from kinema.families.lumiere.image_files import native, open_image
from kinema.families.lumiere.model import Lumiere, of_new_layer
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest
from kinema.system import FoundCheckpoint


class Slots:
    """See `kinema.system.files.Slots`."""

    names: tuple[str, ...] = ("image", "temporal")

    def open(self, config: Config, slot: str, source: Source) -> FoundCheckpoint:
        if slot not in self.names:
            kind = slot.partition(".")[0]
            raise BadRequest(f"there is one {kind}, which takes no name: give --add {kind}=FILE")
        return open_image(config, source) if slot == "image" else _open_temporal(config, source)

    def convert(self, config: Config, slot: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return native(config, tensors) if slot == "image" else dict(tensors)


SLOTS = Slots()


def _open_temporal(config: Config, source: Source) -> FoundCheckpoint:
    """Temporal layers, as training writes them; their image model comes first. Checked by the header alone."""
    with on_meta():
        expected = {name: tuple(p.shape) for name, p in Lumiere(config).named_parameters() if of_new_layer(name)}
    found = {name: shape for name, (shape, _) in source.header.items()}
    if not any(of_new_layer(name) for name in found):
        raise BadRequest(f"{source.path} is {describe(source)}; expected temporal layers, as training writes them")
    wrong = [name for name in expected if found.get(name) != expected[name]]
    if wrong or len(found) > len(expected):
        wrong = wrong or [name for name in found if name not in expected]
        raise BadRequest(
            f"{source.path} fits another image model or preset: {len(wrong)} of its {len(found)} tensors are missing, "
            f"unexpected or of another size ({first_names(wrong)}); add the image model that it was trained on first"
        )
    return FoundCheckpoint(config)
