"""The studio's files over HTTP: a fixed list, types, caching and the policy."""

from __future__ import annotations

import asyncio
import gzip
import re
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette

from kinema.server import studio_files

STUDIO = Path(studio_files.__file__).parents[1] / "studio"


def get(path: str, **headers: str) -> httpx2.Response:
    async def answer() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=Starlette(routes=studio_files.routes()))
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(answer())


def test_the_page_is_at_the_root_and_every_file_has_its_type():
    assert get("/").text == (STUDIO / "index.html").read_text(encoding="utf-8")
    for file in STUDIO.iterdir():
        answer = get(f"/studio/{file.name}")
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"] == studio_files.TYPES[file.suffix]


def test_every_answer_has_the_policy_and_is_revalidated():
    for path in ("/", "/studio/app.js", "/studio/nothing.js"):
        policy = get(path).headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    first = get("/studio/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = get("/studio/app.js", **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_files_are_sent_gzipped_to_those_who_accept_it():
    plain = get("/studio/style.css", **{"Accept-Encoding": "identity"})
    zipped = get("/studio/style.css", **{"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert int(zipped.headers["content-length"]) < len(plain.content) / 3
    assert gzip.decompress(studio_files.read()["style.css"].zipped) == plain.content


@pytest.mark.parametrize("name", ["..%2fserver%2fapp.py", "%2e%2e/pyproject.toml", "../index.html", "nothing.js", ""])
def test_no_other_path_is_opened(name):
    assert get(f"/studio/{name}").status_code == 404


def test_the_page_has_no_script_and_no_style_of_its_own():
    page = (STUDIO / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]* src=)", page) == []
    assert re.findall(r"<style| style=| on\w+=", page) == []


def test_no_module_parses_markup_or_text_as_code():
    for file in STUDIO.glob("*.js"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file.name
        )


def test_every_import_of_a_module_exists():
    names = {file.name for file in STUDIO.iterdir()}
    for file in STUDIO.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', file.read_text(encoding="utf-8")):
            assert name in names, f"{file.name} imports {name}"
