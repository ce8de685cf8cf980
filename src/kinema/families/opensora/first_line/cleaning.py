"""The cleaning of captions of Open-Sora 1.0 to 1.3 before T5 reads them; it began with IF and PixArt.

Original: text_preprocessing (opensora/models/text_encoder/t5.py), which uses ftfy and BeautifulSoup. Here the standard
library stands in for them: markup is taken out, ligatures, wide letters, curly quotes, control characters and composed
accents are made plain. Left out is ftfy's repair of text in the wrong encoding (``cafÃ©``).
"""

from __future__ import annotations

import html
import re
import unicodedata
from html.parser import HTMLParser
from urllib.parse import unquote_plus

Rule = tuple[re.Pattern[str], str]
_HOSTS = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58"
    "\ufe63\uff0d"
)


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), into) for pattern, into in pairs)


ADDRESSES = _rules(
    (rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_HOSTS}))", ""),
    (rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_HOSTS}))", ""),
)
SIGNS = _rules(
    (r"@[\w\d]+\b", ""),
    ("[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+", ""),
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{_FILES})", ""),
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
"""In this order; brackets, slashes and the like become spaces."""
JOINTS = re.compile("[-_]")
"""More than three of them join words, and become spaces."""
SPAM = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)
"""Also codes (jc6640), sizes (1920x1080), and what is left at the ends. The second x is Cyrillic."""
PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "\u2028": "\n", "\u2029": "\n", "\x85": "\n"})
"""What ftfy writes plainly besides ligatures, wide letters and accents."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff\u206a-\u206f\ufff9-\ufffc]")
_WIDE = re.compile("[\u3000\uff01-\uffef\ufb00-\ufb06\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3]")


def cleaned(prompt: str) -> str:
    """A prompt as T5 reads it, in lower case. Cleaned twice, as published: what is taken out may leave more to."""
    return _once(_once(prompt))


def _once(text: str) -> str:
    text = unquote_plus(text).strip().lower().replace("<person>", "person")
    text = _replaced(text, ADDRESSES)
    text = _replaced(_without_markup(text), SIGNS)
    if len(JOINTS.findall(text)) > 3:
        text = JOINTS.sub(" ", text)
    text = html.unescape(html.unescape(_plain(text))).strip()
    return _replaced(text, SPAM).strip()


def _replaced(text: str, rules: tuple[Rule, ...]) -> str:
    for pattern, into in rules:
        text = pattern.sub(into, text)
    return text


def _plain(text: str) -> str:
    """The text without control characters, with plain letters and quotes, and accents composed (NFC)."""
    text = _CONTROL.sub("", text.translate(PLAIN).replace("\r\n", "\n").replace("\r", "\n"))
    text = _WIDE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return unicodedata.normalize("NFC", text)


class _Text(HTMLParser):
    """Collects what is no tag, comment, script or style."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.hidden += tag in ("script", "style", "template")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style", "template") and self.hidden > 0

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def _without_markup(text: str) -> str:
    parser = _Text()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)
