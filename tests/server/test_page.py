"""docs/serve.md and the README say what the service does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import get_args

from kinema.server.jobs import NEXT, Status

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def test_the_tables_of_the_page_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("serve_tables", ROOT / "tools" / "serve_tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.filled(PAGE) == PAGE, "run: python tools/serve_tables.py"


def test_the_states_of_the_page_are_those_of_jobs():
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", PAGE, re.MULTILINE)
    found = {name: set(re.findall(r"`(\w+)`", after)) for name, after in rows if name in get_args(Status)}
    assert found == {status: set(after) for status, after in NEXT.items()}


def test_the_readme_has_the_lines_that_ci_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```\n(video=\$\(curl.*?)^```", readme, re.MULTILINE | re.DOTALL)[1]
    assert [word in block for word in ("/v1/videos ", '/v1/videos/$video"', "/events", "/content")] == [True] * 4
    assert block.rstrip().endswith("-o ball.mp4")
    assert ".ci/first_clip" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
