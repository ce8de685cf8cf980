"""Six verbs in Python: a generated clip, and five others that start from it.

Run: python examples/six_verbs.py [model] [folder]. By default the embedded model and ./clips.
"""

from __future__ import annotations

import sys
from pathlib import Path

import kinema


def main(model_name: str = "zoetrope", folder: str = "clips") -> list[Path]:
    out = Path(folder)
    out.mkdir(exist_ok=True)
    name, _, preset = model_name.partition("/")
    model = kinema.load(name, preset=preset or None)
    quick = {"steps": 4, "seed": 1} if preset == "tiny" else {"seed": 1}

    ball = model.generate("a red ball rolls right", **quick).save(out / "ball.mp4")[0]
    clips = {
        "animate": model.animate(ball, "a red ball rolls right", **quick),
        "interpolate": model.interpolate(ball, prompt="a red ball rolls right", every=2, **quick),
        "extend": model.extend(ball, prompt="a red ball rolls right", keep=4, **quick),
        "inpaint": model.inpaint(ball, "a green star spins", region=(0.5, 0, 1, 0.5), **quick),
        "edit": model.edit(ball, "a blue box slides right", strength=0.8, **quick),
    }
    return [ball, *(clip.save(out / f"{verb}.mp4")[0] for verb, clip in clips.items())]


if __name__ == "__main__":
    for path in main(*sys.argv[1:]):
        sys.stdout.write(f"{path}\n")
