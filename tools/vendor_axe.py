"""Fetch axe-core, which the tests of the studio run in the browser: ``python tools/vendor_axe.py``.

It is the only file of another project in the tests (MPL-2.0, its notice at the top of the file). The studio itself has
none.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path

VERSION = "4.14.1"
URL = f"https://registry.npmjs.org/axe-core/-/axe-core-{VERSION}.tgz"
INTEGRITY = "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
TARGET = Path(__file__).parents[1] / "tests" / "studio" / "axe.min.js"


def main() -> None:
    with urllib.request.urlopen(URL) as answer:
        package = answer.read()
    found = "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()
    if found != INTEGRITY:
        raise SystemExit(f"{URL} has the hash {found}; expected {INTEGRITY}")
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        TARGET.write_bytes(archive.extractfile("package/axe.min.js").read())
    print(TARGET)


if __name__ == "__main__":
    main()
