"""Where training clips come from: playroom, or a folder of the user's own."""

from __future__ import annotations

from pathlib import Path

from kinema.schema import BadRequest
from kinema.system import Recipe, System
from kinema.training.options import TrainOptions
from kinema.training.stream import Clips, Playroom


def clips(options: TrainOptions, system: System, recipe: Recipe) -> tuple[Clips, Clips]:
    """(training clips, held-out clips) at the system's native size."""
    own = system.family.defaults(system.config)
    size = {"frames": own.frames, "height": own.height, "width": own.width, "fps": own.fps}
    if options.data == "playroom":
        train = Playroom(**size, seed=options.seed, grammar=recipe.grammar)
        return train, Playroom(**size, seed=options.seed + 1, grammar=recipe.grammar, split="held-out")
    folder = Path(options.data)
    if not folder.is_dir():
        raise BadRequest(f"there is no folder {folder}; expected 'playroom' or a folder of clips with captions")
    from kinema.data.folder import Folder

    every = Folder.scan(folder, **size, frameskip=recipe.frameskip)
    return every.split(0.9)
