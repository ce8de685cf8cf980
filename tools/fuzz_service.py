"""Send generated requests to a service for a while, and check its answers against its OpenAPI page.

    python tools/fuzz_service.py --seconds 300
    python tools/fuzz_service.py --seconds 300 --url http://127.0.0.1:8000

Without a URL it starts the HTTP layer over the engine of the tests, and also reports files and connections that the
server opened outside of its folder. Exits with 1 after any finding.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

TESTS = Path(__file__).resolve().parents[1] / "tests" / "server" / "http"
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "unsupported_method", "negative_data_rejection", "missing_required_header"),
    "use_after_free",
)


@contextmanager
def service(url: str | None, folder: Path):
    if url is not None:
        yield SimpleNamespace(url=url, opened=[], log="")
        return
    sys.path.insert(0, str(TESTS))
    from running import running

    with running(folder / "store", limits={"upload_bytes": 2**20}) as found:
        yield found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    parser.add_argument("--url")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with service(given.url, Path(folder)) as found:
            page = f"{found.url}/openapi.json"
            command = ["schemathesis", "run", page, "--phases", given.phases, "--checks", ",".join(CHECKS)]
            command += ["--max-time", str(given.seconds), "--continue-on-failure", "--warnings", "off"]
            code = subprocess.run(command, cwd=folder, check=False).returncode
        print(f"opened outside of the folder: {found.opened or 'nothing'}")
        print(f"log of the server: {found.log or 'empty'}")
    return int(bool(code or found.opened or found.log))


if __name__ == "__main__":
    sys.exit(main())
