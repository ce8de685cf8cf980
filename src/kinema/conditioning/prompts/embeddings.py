"""Textual-inversion embeddings: word vectors in files, for the words of prompts that name them.

Layouts: AUTOMATIC1111's ``.pt`` (``string_to_param``), diffusers' ``learned_embeds`` (one tensor under its token, also
as ``emb_params``), and SDXL's (``clip_l`` and ``clip_g``). A LoRA's file may contain some, too (``bundle_emb.…``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kinema.bounds import first_names, is_regular, printable
from kinema.checkpoints import files
from kinema.checkpoints.pickles import check_tensors, read_content
from kinema.conditioning.prompts.folders import Folder
from kinema.conditioning.prompts.rows import EMBEDDING
from kinema.schema import BadRequest, PromptSyntax

MAX_BYTES = 64 * 2**20
"""Limit on the bytes of a file; 75 vectors of SDXL have 600 kB."""
IN_LORA = "in a LoRA"
"""What stands for the file of an embedding that a LoRA in use contains; the recipe has the LoRA."""
SDXL = ("clip_l", "clip_g")
"""Keys of the vectors of SDXL's encoders, in the order of the encoders."""
_GENERIC = "learned_embeds"
"""How file names begin that say nothing; such an embedding has its token as another name."""
MAX_GENERIC = 1000
"""Such files in a folder, since their tokens are only known after reading them."""
_SIGN = re.compile(rf"(?<![^\s(\[,|:]){EMBEDDING}([^\s()\[\],|:]+)")


def named_in(
    texts: Iterable[str], folder: str | None, syntax: PromptSyntax, in_loras: Collection[str] = ()
) -> dict[str, str]:
    """Return the files in a folder of the embeddings that prompts may name, by name; `IN_LORA` for those of LoRAs.

    ``embedding:NAME`` names one, and for AUTOMATIC1111 its bare name does. A file in the folder comes before an
    embedding in a LoRA. Raises BadRequest for ``embedding:NAME`` that the folder and the LoRAs lack.
    """
    listed = None if folder is None else Folder.read(Path(folder), "--embeddings")
    texts, found = list(texts), dict[str, str]()
    for name in dict.fromkeys(name for text in texts for name in signs(text)):
        if name in in_loras and (listed is None or name not in listed.files):
            found[name] = IN_LORA
        elif listed is not None:
            found[name] = str(listed.file(name, "embedding"))
    if syntax == "a1111":
        known = dict.fromkeys(in_loras, IN_LORA)
        if listed is not None and folder is not None:
            known |= {key: str(path) for path in _generic(listed, folder) for key in _tokens(path)}
            known |= {key: str(path) for key, path in listed.files.items() if key == path.stem}
        together = "\n".join(texts).lower()
        found |= {key: file for key, file in known.items() if _mentions(together, key.lower())}
    return found


def signs(text: str) -> list[str]:
    """The names that a prompt gives as ``embedding:NAME``."""
    return _SIGN.findall(text)


def without_sign(text: str, names: Iterable[str]) -> str:
    """Return a prompt in which ``embedding:NAME`` of these names is the bare name, for AUTOMATIC1111."""
    known = set(names)
    return _SIGN.sub(lambda match: match[1] if match[1] in known else match.group(), text)


def _mentions(text: str, name: str) -> bool:
    """Whether text may contain the tokens of a name: not as a part of a longer run of letters."""
    if name not in text:
        return False
    before = r"(?<![^\W\d_])" if name[:1].isalpha() else ""
    after = r"(?![^\W\d_])" if name[-1:].isalpha() else ""
    return re.search(before + re.escape(name) + after, text) is not None


def _generic(listed: Folder, folder: str) -> list[Path]:
    """The files whose names say nothing, the one that counts for a token last."""
    found = [path for path in dict.fromkeys(listed.files.values()) if path.stem.startswith(_GENERIC)]
    if len(found) > MAX_GENERIC:
        raise BadRequest(
            f"--embeddings {printable(folder, 200)} has {len(found):,} files named {_GENERIC}, which must all be read; "
            f"expected at most {MAX_GENERIC:,}"
        )
    return found[::-1]


def _tokens(path: Path) -> list[str]:
    """The token of a file of diffusers; none of a file that is no embedding, as no prompt can name it."""
    try:
        return [name for name in _read(path) if name not in (*SDXL, "emb_params", "*")]
    except BadRequest:
        return []


def vectors(file: str, widths: Sequence[int], longest: int) -> list[Tensor]:
    """Return an embedding's vectors for each text encoder of these widths, N×C in float32.

    Raises BadRequest for a file that is no embedding, is of another model, or has more vectors than a row, ``longest``.
    """
    path = Path(file)
    return fitted(_read(path), printable(path.name, 100), widths, longest)


def fitted(tables: Mapping[str, Tensor], where: str, widths: Sequence[int], longest: int) -> list[Tensor]:
    """Return the vectors in an embedding's tables by key, as `vectors` does; messages begin with ``where``."""
    # OneTrainer's second kind of vectors is added to the encoder's output instead.
    tables = {key: table for key, table in tables.items() if not key.endswith("_out")} or tables
    if len(widths) == len(SDXL) and set(SDXL) <= set(tables):
        found = [tables[key] for key in SDXL]
    elif len(widths) == len(tables) == 1 and not next(iter(tables)).endswith("_out"):
        found = list(tables.values())
    else:
        kinds = {1: "one table of vectors", 2: f"vectors named {' and '.join(SDXL)}"}
        raise BadRequest(f"{where} has {first_names(sorted(tables))}; this model needs {kinds[len(widths)]}")
    found = [tensor[None] if tensor.ndim == 1 else tensor for tensor in found]
    shapes = [tuple(tensor.shape) for tensor in found]
    if any(len(shape) != 2 or shape[1] != width for shape, width in zip(shapes, widths, strict=True)):
        shown = " and ".join("×".join(map(str, shape)) for shape in shapes)
        raise BadRequest(
            f"{where} has vectors {shown}, of another model; expected N×{' and N×'.join(map(str, widths))}"
        )
    if len({shape[0] for shape in shapes}) > 1 or not 0 < shapes[0][0] <= longest:
        raise BadRequest(f"{where} has {' and '.join(str(s[0]) for s in shapes)} vectors; expected 1 to {longest}")
    found = [tensor.detach().float() for tensor in found]
    if not all(bool(tensor.isfinite().all()) for tensor in found):
        raise BadRequest(f"{where} has infinite or NaN values; expected an embedding")
    return found


def _read(path: Path) -> dict[str, Tensor]:
    """The tables of vectors in a file by key, unchecked."""
    where = printable(path.name, 100)
    if not is_regular(path):
        raise BadRequest(f"there is no embedding {printable(str(path), 200)}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise BadRequest(f"{where} has {size:,} bytes; an embedding has at most {MAX_BYTES:,}")
    content: Any = files.read_tensors(path) if path.suffix == ".safetensors" else read_content(path, "cpu")
    if isinstance(content, Mapping) and isinstance(inner := content.get("string_to_param"), Mapping):
        content = inner
    tensors = (
        {str(name): x for name, x in content.items() if isinstance(x, Tensor)} if isinstance(content, Mapping) else {}
    )
    if not 0 < len(tensors) <= len(SDXL) or any(not x.dtype.is_floating_point for x in tensors.values()):
        raise BadRequest(f"{where} is not a textual-inversion embedding; expected one table of vectors, or SDXL's two")
    return check_tensors(path, tensors)
