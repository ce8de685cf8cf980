"""Write recipes into files and read them back.

Every format carries the same tags. `kinema` is the recipe as JSON (ASCII, so that no container's text encoding can
corrupt it); `digitalSourceType` is the IPTC term for generated media, and `comment` states the same in words. mp4
stores them as tags, gif as a comment block, webp as EXIF and XMP, png as text chunks and XMP, a folder of frames as
``recipe.json``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinema import bounds
from kinema.media.ancillary import gif_comments, png_texts, webp_exif
from kinema.media.containers import open_container, readable_path, sniff
from kinema.media.structure import check_whole
from kinema.media.timing import MAX_FRAME_PIXELS
from kinema.schema import BadRequest
from kinema.values import strict

KEY = "kinema"
FOLDER_RECIPE = "recipe.json"
GENERATED = "trainedAlgorithmicMedia"
IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
NO_RECIPE = "it was not written by Kinema, or its metadata was stripped"
MAX_RECIPE = 1 << 20
"""Largest JSON that is parsed, in bytes; a recipe has a few thousand."""

_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769
_ASCII = b"ASCII\0\0\0"


def tags(recipe: Mapping[str, Any], *, generated: bool = True) -> dict[str, str]:
    """Tags of a file: title, comment, recipe and, for generated media, the IPTC marker."""
    try:
        text = json.dumps(strict(recipe), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"the recipe cannot be written as JSON: {error}") from error
    prompt = _printable(_prompt(recipe))
    written = {"title": prompt or "Kinema clip", KEY: text}
    if generated:
        about = f" Prompt: {prompt}" if prompt else ""
        written["comment"] = f"AI-generated video, made with Kinema.{about}"
        written["digitalSourceType"] = GENERATED
    return written


def xmp(generated: bool) -> bytes:
    """XMP packet with the IPTC digital source type."""
    kind = f' Iptc4xmpExt:DigitalSourceType="{IPTC}{GENERATED}"' if generated else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
        f' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"{kind}/></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    ).encode()


def exif(written: Mapping[str, str]) -> bytes:
    """EXIF block whose user comment holds the tags as JSON."""
    from PIL import Image

    block = Image.Exif()
    block[0x010E] = written.get("comment", "").encode("ascii", "replace").decode()
    block[0x0131] = "Kinema"
    block.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + json.dumps(dict(written)).encode("ascii")
    return block.tobytes()


def gif_comment(written: Mapping[str, str]) -> bytes:
    """GIF89a comment extension with the tags as JSON, in blocks of at most 255 bytes."""
    text = json.dumps(dict(written)).encode("ascii")
    blocks = b"".join(bytes([len(text[i : i + 255])]) + text[i : i + 255] for i in range(0, len(text), 255))
    return b"\x21\xfe" + blocks + b"\x00"


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read the recipe that Kinema wrote into ``path`` (mp4, gif, webp, png or a folder of frames).

    Raises `BadRequest` if the file is missing, unreadable or has no recipe.
    """
    found = find_recipe(path)
    if found is None:
        raise BadRequest(f"{Path(path).name} has no recipe: {NO_RECIPE}")
    return found


def find_recipe(path: str | Path) -> dict[str, Any] | None:
    """Read the recipe in ``path``; None if it has none. Raises `BadRequest` for a missing file or a damaged recipe."""
    path = readable_path(Path(path))
    text = _find(path)
    if text is None:
        return None
    recipe = bounds.from_json(text, f"the recipe in {bounds.printable(path.name, 80)}", infinite=True)
    if not isinstance(recipe, dict):
        raise BadRequest(f"the recipe in {path.name} is not a JSON object")
    return recipe


def _find(path: Path) -> str | None:
    if path.is_dir():
        file = path / FOLDER_RECIPE
        if not bounds.is_regular(file) or file.stat().st_size > MAX_RECIPE:
            return None
        return _from_json(bounds.read_bytes(file, MAX_RECIPE))
    kind = sniff(path)
    return _from_mp4(path) if kind == "mov" else _from_image(path, kind)


def _from_mp4(path: Path) -> str | None:
    import av

    try:
        with open_container(path, "mov", bounds.max_pixels(MAX_FRAME_PIXELS)) as container:
            text = container.metadata.get(KEY)
    except av.FFmpegError as error:
        check_whole(path, "mov")  # reports where it is cut
        raise BadRequest(f"{path.name} cannot be read as a video: it is damaged or cut short") from error
    return text if text is None or len(text) <= MAX_RECIPE else None


def _from_image(path: Path, kind: str | None) -> str | None:
    """Find the recipe by the file's structure, since Pillow rejects unusual metadata or decompresses all of it."""
    if kind == "gif":
        return next((r for r in map(_from_json, gif_comments(path, MAX_RECIPE)) if r is not None), None)
    if kind == "webp":
        comment = _user_comment(webp_exif(path, 2 * MAX_RECIPE))
        return _from_json(comment[len(_ASCII) :]) if comment.startswith(_ASCII) else None
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return None
    text = next(png_texts(path, KEY, MAX_RECIPE), None)
    return None if text is None else text.decode(errors="replace")


def _user_comment(block: bytes | None) -> bytes:
    from PIL import Image

    if block is None:
        return b""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            block_exif = Image.Exif()
            block_exif.load(block)
            comment = block_exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"")
    except Exception:  # Pillow raises anything on damaged metadata
        return b""
    return comment if isinstance(comment, bytes) else b""


def _from_json(text: bytes | str) -> str | None:
    """Return the recipe in a JSON object of tags, or None."""
    if len(text) > MAX_RECIPE:
        return None
    try:
        data = bounds.from_json(text, "its tags", infinite=True)
    except ValueError:
        return None
    found = data.get(KEY) if isinstance(data, dict) else None
    if isinstance(found, dict):
        return json.dumps(found)
    return found if isinstance(found, str) else None


def _prompt(recipe: Mapping[str, Any]) -> str:
    stages = recipe.get("stages") or [recipe]
    request = stages[0].get("request") if isinstance(stages[0], Mapping) else None
    return str(request.get("prompt", "")) if isinstance(request, Mapping) else ""


def _printable(text: str) -> str:
    """Reduce to one line that every container can store: no control characters or lone surrogates."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(clean.split())[:300]
