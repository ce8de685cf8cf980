"""C2PA signatures: a clip states, signed, that a trained model generated it (extra ``c2pa``).

The private key's kind decides the algorithm. Nothing is fetched: signatures carry no time stamp of an authority.
Imports without torch.
"""

from __future__ import annotations

import datetime
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

from kinema import __version__, bounds
from kinema.atomic import replacing
from kinema.bounds import printable
from kinema.schema import BadRequest

MAX_PEM = 2**16
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""Elliptic curves and the algorithms of C2PA that use them."""
AGENT = {"name": "Kinema", "version": __version__}
MANIFEST = {
    "claim_generator_info": [AGENT],
    "assertions": [
        {
            "label": "c2pa.actions",
            "data": {"actions": [{"action": "c2pa.created", "softwareAgent": AGENT, "digitalSourceType": GENERATED}]},
        }
    ],
}


class Signer:
    """Signs clips with one certificate."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read a certificate chain and its private key, both PEM. Raises BadRequest if they cannot sign."""
        try:
            import c2pa
        except ImportError:
            raise BadRequest("signed clips need c2pa-python; pip install 'kinema[c2pa]'") from None
        chain, secret = (bounds.read_bytes(path, MAX_PEM, "a file in PEM format") for path in (certificate, key))
        algorithm = _algorithm(chain, secret, certificate, key)
        self.certificate = certificate
        try:
            self.signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, secret, None))
        except c2pa.C2paError as error:
            raise BadRequest(f"{certificate} and {key} cannot sign: {printable(str(error), 160)}") from error

    def check(self) -> None:
        """Sign an image of one pixel, so that what is wrong shows before the first clip. Raises BadRequest."""
        self._sign("image/png", io.BytesIO(_pixel()), io.BytesIO())

    def sign(self, path: Path) -> None:
        """Sign the mp4 ``path`` in place, atomically. Raises BadRequest."""
        with replacing(path) as part, path.open("rb") as source, part.open("w+b") as target:
            self._sign("video/mp4", source, target)

    def _sign(self, kind: str, source: Any, target: Any) -> None:
        import c2pa

        try:
            with c2pa.Builder(json.dumps(MANIFEST)) as builder:
                builder.sign(self.signer, kind, source, target)
            target.seek(0)
            with c2pa.Reader(kind, target) as reader:
                valid = reader.get_validation_state() in ("Valid", "Trusted")
        except c2pa.C2paError as error:
            reason = f" ({printable(str(error), 160)})"
        else:
            reason = ""
            if valid:
                return
        raise BadRequest(f"{self.certificate} gives no valid signature{reason}; expected a C2PA certificate chain")


def _algorithm(chain: bytes, secret: bytes, certificate: Path, key: Path) -> str:
    """C2PA's name for the key's algorithm. Raises BadRequest for files that cannot be read or do not match."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        own = load_pem_private_key(secret, None)
    except (TypeError, ValueError):  # TypeError: it is encrypted
        raise BadRequest(
            f"{key} is not a private key; expected one in PEM format (PKCS 8), without a password"
        ) from None
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except ValueError:
        raise BadRequest(f"{certificate} holds no certificate; expected a chain in PEM format") from None
    if leaf.public_key() != own.public_key():
        raise BadRequest(f"{key} does not belong to the first certificate of {certificate}")
    now = datetime.datetime.now(datetime.UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise BadRequest(f"{certificate} is valid from {leaf.not_valid_before_utc:%F} to {leaf.not_valid_after_utc:%F}")
    if isinstance(own, ec.EllipticCurvePrivateKey) and own.curve.name in CURVES:
        return CURVES[own.curve.name]
    if isinstance(own, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(own, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise BadRequest(
        f"{key} is of a kind that C2PA does not have; expected ECDSA (P-256, P-384, P-521), RSA or Ed25519"
    )


def _pixel() -> bytes:
    """A png of one black pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
