"""Parse captions into meanings, including synonyms, -ing forms and missing articles."""

from __future__ import annotations

import re

from kinema.data.playroom.grammar import (
    BACKGROUNDS,
    CAMERAS,
    COLOUR_WORDS,
    DIRECTED,
    GROUND,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    SPEED_WORDS,
    VERB_WORDS,
    WAY_WORDS,
    Meaning,
    NamedObject,
)


def _forms(words: str) -> list[str]:
    """The inflected, bare and -ing forms of a verb phrase: rolls, roll, rolling."""
    verb, *rest = words.split(" ")
    bare = {"goes": "go", "hits": "hit", "gets": "get"}.get(verb, verb[:-1])
    stem = bare[:-1] if bare.endswith("e") else bare
    doubled = {"hop": "hopp", "spin": "spinn", "hit": "hitt", "get": "gett"}.get(stem, stem)
    return [" ".join([form, *rest]) for form in (verb, bare, f"{doubled}ing")]


def _names(table: dict[str, tuple[str, ...]], *, verbs: bool = False) -> dict[str, str]:
    return {form: name for name, ways in table.items() for way in ways for form in (_forms(way) if verbs else [way])}


_COLOURS, _SHAPES = _names(COLOUR_WORDS), _names(SHAPE_WORDS)
_VERBS = _names(VERB_WORDS, verbs=True)
_WAYS = _names(WAY_WORDS) | {f"{side}wards": side for side in ("left", "right")} | {"upward": "up", "downward": "down"}
_MEETINGS = _names({name: RELATION_WORDS[name] for name in ("chases", "collides")}, verbs=True)
_PLACES = _names({name: ways for name, ways in RELATION_WORDS.items() if name not in ("chases", "collides")})
_SIZES, _SPEEDS = _names(SIZE_WORDS), _names(SPEED_WORDS)


def _any(names: dict[str, str]) -> str:
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True))


def _noun(mark: str) -> str:
    return (
        rf"(?:(?:an?|the|one) )?(?:(?P<size{mark}>{_any(_SIZES)}) )?(?P<colour{mark}>{_any(_COLOURS)}) "
        rf"(?P<shape{mark}>{_any(_SHAPES)})(?: (?P<letter{mark}>(?<=letter )[a-z]))?"
    )


_WAY = rf"(?: (?P<way>{_any(_WAYS)}))?"
_SPEED = rf"(?: (?P<speed>{_any(_SPEEDS)}))?"
_CLIP = re.compile(
    rf"{_noun('')} (?:is )?(?:(?P<meeting>{_any(_MEETINGS)}) {_noun('2')}{_WAY.replace('<way>', '<way2>')}"
    rf"|(?P<verb>{_any(_VERBS)}){_WAY}{_SPEED}(?: (?P<place>{_any(_PLACES)}) {_noun('3')})?)"
)
_CAMERA = re.compile(r"(?:,? (?:while|as) )the camera (?P<camera>(?:pan|zoom)s? \w+)$")
_BACKGROUND = re.compile(r" (?:on|against|in front of) (?:an? )?(?P<background>(?:plain )?\w+) background$")
_GROUND = re.compile(r" on (?:the )?grass under an? blue sky$")


def parse(caption: str) -> Meaning | None:
    """The meaning of a caption, None if it is not in the playroom's grammar."""
    text = " ".join(caption.lower().replace(",", " ").split()).rstrip(" .!")
    camera = background = None
    if found := _CAMERA.search(text):
        camera = re.sub(r"^(pan|zoom)\b", r"\1s", found["camera"])
        text = text[: found.start()]
    if found := _GROUND.search(text):
        background, text = GROUND, text[: found.start()]
    elif found := _BACKGROUND.search(text):
        background, text = found["background"].replace("gray", "grey"), text[: found.start()]
        background = background if background in BACKGROUNDS else f"plain {background}"
    if (camera and camera not in CAMERAS) or (background and background not in BACKGROUNDS):
        return None
    clip = _CLIP.fullmatch(text)
    return _meaning(clip, background, camera) if clip else None


def _thing(clip: re.Match[str], mark: str) -> NamedObject | None:
    shape, letter = _SHAPES[clip[f"shape{mark}"]], clip[f"letter{mark}"]
    if (shape == "letter") != (letter is not None):
        return None
    return NamedObject(_COLOURS[clip[f"colour{mark}"]], shape, letter.upper() if letter else None)


def _meaning(clip: re.Match[str], background: str | None, camera: str | None) -> Meaning | None:
    meeting, place = clip["meeting"], clip["place"]
    first = _thing(clip, "")
    second = _thing(clip, "2" if meeting else "3") if meeting or place else None
    if first is None or (second is None and (meeting or place)):
        return None
    way = _WAYS.get(clip["way2" if meeting else "way"] or "")
    relation: str | None
    if meeting:
        motion = relation = _MEETINGS[meeting]
        if way in ("up", "down"):
            return None
    else:
        verb, relation = _VERBS[clip["verb"]], _PLACES.get(place or "")
        if (verb in DIRECTED) != (way is not None):
            return None
        motion = f"{verb} {way}" if way else verb
    return Meaning(
        first.colour, first.shape, motion, first.letter, way, _SIZES.get(clip["size"] or ""),
        _SPEEDS.get(clip["speed"] or ""), relation, second, background, camera,
    )  # fmt: skip
