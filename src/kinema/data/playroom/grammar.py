"""The grammar of the playroom: meanings, captions and their split into training, tuning and evaluation.

A ``Meaning`` describes a clip; ``phrase`` turns it into a caption and ``parse`` inverts that. The
simplest caption is ``a {colour} {shape} {motion}``: "a red ball rolls right". All randomness comes
from the generator passed in, so captions are the same on every platform.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeVar

from kinema.schema import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

Grammar = Literal["simple", "full", "mixed"]
Share = Literal["train", "tuning", "evaluation"]
Split = Literal["train", "tuning", "evaluation", "all", "train-v1"]
"""A share, all of them, or ``train-v1``: all but tuning, on which the shipped weights were trained."""
Word = TypeVar("Word")

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "cyan")
SHAPES = ("ball", "box", "triangle", "star", "ring", "heart", "letter")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIRECTIONS = ("left", "right", "up", "down")
DIRECTED = ("rolls", "moves", "slides")
FREE_MOTIONS = ("bounces", "swings", "orbits", "spins", "grows", "shrinks", "fades")
DIRECTED_MOTIONS = tuple(f"{verb} {way}" for verb in DIRECTED for way in DIRECTIONS)
MOTIONS = (*DIRECTED_MOTIONS, *FREE_MOTIONS)
RELATIONS = ("behind", "above", "below", "next to", "chases", "collides")
PLAIN_COLOURS = ("grey", "black", "beige", "brown", "dark", "light")
TEXTURES = ("gradient", "striped", "checkered", "speckled")
GROUND = "grass and sky"
BACKGROUNDS = (*(f"plain {name}" for name in PLAIN_COLOURS), *TEXTURES, GROUND)
CAMERAS = ("pans left", "pans right", "zooms in", "zooms out")
SIZES = ("small", "big")
SPEEDS = ("fast", "slowly")
TIMED = (*DIRECTED_MOTIONS, "bounces", "swings", "orbits", "spins")
"""The motions that can be fast or slow."""

# The first phrase of each is the canonical one.
COLOUR_WORDS: dict[str, tuple[str, ...]] = {name: (name,) for name in COLOURS} | {
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "circle", "sphere", "disc"),
    "box": ("box", "square", "cube", "block"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop", "donut"),
    "heart": ("heart",),
    "letter": ("letter", "capital letter"),
}
VERB_WORDS: dict[str, tuple[str, ...]] = {
    "rolls": ("rolls", "tumbles"),
    "moves": ("moves", "travels", "goes"),
    "slides": ("slides", "glides"),
    "bounces": ("bounces", "hops", "bounces up and down"),
    "swings": ("swings", "swings back and forth"),
    "orbits": ("orbits", "moves in a circle"),
    "spins": ("spins", "rotates", "turns"),
    "grows": ("grows", "expands", "gets bigger"),
    "shrinks": ("shrinks", "gets smaller"),
    "fades": ("fades", "fades away", "disappears"),
}
WAY_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "behind": ("behind",),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "next to": ("next to", "beside"),
    "chases": ("chases", "follows"),
    "collides": ("collides with", "hits", "bumps into"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "big": ("big", "large")}
SPEED_WORDS: dict[str, tuple[str, ...]] = {"fast": ("fast", "quickly"), "slowly": ("slowly",)}
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    name: (f"on a {name} background" if name != GROUND else "on grass under a blue sky",) for name in BACKGROUNDS
}
CAMERA_WORDS: dict[str, tuple[str, ...]] = {name: (f"while the camera {name}",) for name in CAMERAS}

RARE_SYNONYM = 0.04
COMMON_SYNONYM = 0.3
RICH = 0.3
"""Share of the full grammar in the mixed one; most prompts are simple sentences."""
LETTER_SHARE = 0.16
"""Share of letters in training clips: more than one in seven, since the class has 26 shapes."""


@dataclass(frozen=True)
class NamedObject:
    """An object as named in a caption: colour and shape, and the letter if it is one."""

    colour: str
    shape: str
    letter: str | None = None

    @property
    def glyph(self) -> str:
        """The shape, or the letter for letters: identifies the outline."""
        return self.letter or self.shape


@dataclass(frozen=True)
class Meaning:
    """The content of a caption. ``motion`` is canonical ("rolls right"); unspecified fields are None.

    The motion of a chase or a collision is the relation's name.
    """

    colour: str
    shape: str
    motion: str
    letter: str | None = None
    direction: str | None = None
    size: str | None = None
    speed: str | None = None
    relation: str | None = None
    second: NamedObject | None = None
    background: str | None = None
    camera: str | None = None

    @property
    def thing(self) -> NamedObject:
        """The first object."""
        return NamedObject(self.colour, self.shape, self.letter)


def pick(rng: np.random.Generator, choices: Sequence[Word]) -> Word:
    """A uniformly random choice (``Generator.choice`` is ten times slower for short lists)."""
    return choices[int(rng.random() * len(choices))]


# --------------------------------------------------------------------------------------- split


@lru_cache(maxsize=8192)
def share_of(colour: str, glyph: str, motion: str) -> Share:
    """The share of this combination, by a stable hash: a tenth for tuning, two for evaluation, the rest for training.

    Captions are split by what they say, so that another wording, size or background of an evaluation prompt is not
    trained on either (docs/decisions/0015).
    """
    digest = hashlib.blake2s(f"{colour}/{glyph}/{motion}".encode()).digest()
    tenth = int.from_bytes(digest[:4], "little") % 10
    return "tuning" if tenth == 0 else "evaluation" if tenth <= 2 else "train"


def combinations(meaning: Meaning) -> list[tuple[str, str, str]]:
    """The (colour, glyph, motion) combinations in a clip of this meaning."""
    first = meaning.thing
    if meaning.motion in MOTIONS:
        return [(first.colour, first.glyph, meaning.motion)]
    second = meaning.second or first
    ways = [meaning.direction] if meaning.direction else ["left", "right"]
    return [
        (thing.colour, thing.glyph, f"{verb} {way}") for thing in (first, second) for way in ways for verb in DIRECTED
    ]


def in_split(meaning: Meaning, split: Split) -> bool:
    """Whether a clip of this meaning belongs to this split."""
    if split == "all":
        return True
    shares = {share_of(*combination) for combination in combinations(meaning)}
    # Tuning comes first: its prompts have been in use since before there was an evaluation share.
    share = "tuning" if "tuning" in shares else "evaluation" if "evaluation" in shares else "train"
    return share != "tuning" if split == "train-v1" else share == split


# ---------------------------------------------------------------------------------- sampling


def random_meaning(
    rng: np.random.Generator, grammar: Grammar, split: Split, fixed: Mapping[str, str | None]
) -> Meaning:
    """Sample a meaning of the grammar and the split, with the ``fixed`` fields set.

    Raises ``BadRequest`` if no meaning of the split has these fields.
    """
    rich = grammar == "full" or (grammar == "mixed" and rng.random() < RICH)
    for _ in range(2000):
        meaning = _full(rng, fixed) if rich else _simple(rng, fixed)
        if in_split(meaning, split):
            return meaning
    fields = ", ".join(f"{key}={value}" for key, value in fixed.items())
    raise BadRequest(f"playroom: no clip with {fields} is in the {split!r} split; use split='all'")


def _thing(rng: np.random.Generator, fixed: Mapping[str, str | None]) -> NamedObject:
    colour = fixed.get("colour") or pick(rng, COLOURS)
    shape = "letter" if rng.random() < LETTER_SHARE else pick(rng, SHAPES[:-1])
    letter = pick(rng, LETTERS)
    shape = fixed.get("shape") or ("letter" if fixed.get("letter") else shape)
    return NamedObject(colour, shape, (fixed.get("letter") or letter) if shape == "letter" else None)


def _motion(rng: np.random.Generator) -> str:
    return pick(rng, DIRECTED_MOTIONS) if rng.random() < 0.5 else pick(rng, FREE_MOTIONS)


def _simple(rng: np.random.Generator, fixed: Mapping[str, str | None]) -> Meaning:
    thing = _thing(rng, fixed)
    sampled = _motion(rng)
    motion = fixed.get("motion") or sampled
    return Meaning(
        thing.colour,
        thing.shape,
        motion,
        thing.letter,
        direction_of(motion),
        size=fixed.get("size"),
        speed=fixed.get("speed"),
        background=fixed.get("background"),
        camera=fixed.get("camera"),
    )


def direction_of(motion: str) -> str | None:
    """The direction of a directed motion ("rolls right" -> "right"), else None."""
    last = motion.rsplit(" ", 1)[-1]
    return last if last in DIRECTIONS else None


RELATED_MOTIONS: dict[str, tuple[str, ...]] = {
    "behind": DIRECTED_MOTIONS,
    "above": (
        "rolls left",
        "rolls right",
        "moves left",
        "moves right",
        "slides left",
        "slides right",
        "spins",
        "fades",
    ),
    "below": (
        "rolls left",
        "rolls right",
        "moves left",
        "moves right",
        "slides left",
        "slides right",
        "spins",
        "fades",
    ),
    "next to": ("moves up", "moves down", "slides up", "slides down", "bounces", "spins", "grows", "shrinks", "fades"),
    "chases": ("chases",),
    "collides": ("collides",),
}


def _full(rng: np.random.Generator, fixed: Mapping[str, str | None]) -> Meaning:
    meaning = _simple(rng, fixed)
    if rng.random() < 0.25 and "size" not in fixed and meaning.motion not in ("grows", "shrinks"):
        meaning = replace(meaning, size=pick(rng, SIZES))
    if fixed.get("relation") or (rng.random() < 0.4 and "relation" not in fixed):
        meaning = _related(rng, meaning, fixed)
    if meaning.motion in TIMED and rng.random() < 0.25 and "speed" not in fixed:
        meaning = replace(meaning, speed=pick(rng, SPEEDS))
    if rng.random() < 0.5 and "background" not in fixed:
        kind = pick(rng, ("plain", *TEXTURES, GROUND))
        meaning = replace(meaning, background=f"plain {pick(rng, PLAIN_COLOURS)}" if kind == "plain" else kind)
    if rng.random() < 0.25 and "camera" not in fixed:
        meaning = replace(meaning, camera=_suitable_camera(rng, meaning))
    return meaning


def _suitable_camera(rng: np.random.Generator, meaning: Meaning) -> str | None:
    """A camera motion that is visible: over a patterned background, and not a pan that follows the object."""
    if meaning.background and meaning.background.startswith("plain"):
        return None
    ways = ("left", "right") if meaning.motion in ("chases", "collides") else (meaning.direction,)
    return pick(rng, [camera for camera in CAMERAS if camera not in [f"pans {way}" for way in ways]])


def _related(rng: np.random.Generator, meaning: Meaning, fixed: Mapping[str, str | None]) -> Meaning:
    """Add a second object, in a relation that fits a fixed motion if there is one."""
    sampled = pick(rng, RELATIONS)
    suited = [name for name in RELATIONS if fixed.get("motion") in (None, *RELATED_MOTIONS[name])]
    relation = fixed.get("relation") or (sampled if sampled in suited or not suited else pick(rng, suited))
    motion = fixed.get("motion") or pick(rng, RELATED_MOTIONS[relation])
    colour = pick(rng, [name for name in COLOURS if name != meaning.colour])
    second = _thing(
        rng,
        {
            "colour": fixed.get("second_colour") or colour,
            "shape": fixed.get("second_shape"),
            "letter": fixed.get("second_letter"),
        },
    )
    way = direction_of(motion)
    if relation in ("chases", "collides"):
        way = fixed.get("direction") or (pick(rng, ("left", "right")) if rng.random() < 0.5 else None)
    return replace(meaning, motion=motion, direction=way, relation=relation, second=second)


# ----------------------------------------------------------------------------------- phrasing


def phrase(meaning: Meaning, rng: np.random.Generator | None = None, synonyms: float = 0.0) -> str:
    """The caption of a meaning; with ``rng``, each phrase is replaced by a synonym with this probability."""

    def say(words: dict[str, tuple[str, ...]], name: str) -> str:
        ways = words[name]
        if rng is None or len(ways) == 1 or rng.random() >= synonyms:
            return ways[0]
        return pick(rng, ways[1:])

    def noun(thing: NamedObject, size: str | None = None) -> str:
        words = [say(COLOUR_WORDS, thing.colour), say(SHAPE_WORDS, thing.shape)]
        words = [say(SIZE_WORDS, size), *words] if size else words
        words = [*words, thing.letter] if thing.letter else words
        return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"

    parts = [noun(meaning.thing, meaning.size)]
    if meaning.motion in MOTIONS:
        parts.append(say(VERB_WORDS, meaning.motion.split(" ")[0]))
    if meaning.relation in ("chases", "collides") and meaning.second:
        parts += [say(RELATION_WORDS, meaning.relation), noun(meaning.second)]
    if meaning.direction:
        parts.append(say(WAY_WORDS, meaning.direction))
    if meaning.speed:
        parts.append(say(SPEED_WORDS, meaning.speed))
    if meaning.motion in MOTIONS and meaning.relation and meaning.second:
        parts += [say(RELATION_WORDS, meaning.relation), noun(meaning.second)]
    if meaning.background:
        parts.append(say(BACKGROUND_WORDS, meaning.background))
    if meaning.camera:
        parts.append(say(CAMERA_WORDS, meaning.camera))
    return " ".join(parts)


@lru_cache(maxsize=1)
def vocabulary() -> list[str]:
    """All words that captions can contain, sorted; letters are single capitals."""
    tables = (
        COLOUR_WORDS,
        SHAPE_WORDS,
        VERB_WORDS,
        WAY_WORDS,
        RELATION_WORDS,
        SIZE_WORDS,
        SPEED_WORDS,
        BACKGROUND_WORDS,
        CAMERA_WORDS,
    )
    words = {"a", "an", *LETTERS}
    for table in tables:
        for ways in table.values():
            words.update(word for way in ways for word in way.split(" "))
    return sorted(words)
