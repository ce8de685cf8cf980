"""Clips signed with C2PA, by a certificate of the test's own."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
import torch

from kinema.media.metadata import read_recipe
from kinema.media.read import read_video
from kinema.schema import BadRequest, Clip
from kinema.server import clip_files, signing

c2pa = pytest.importorskip("c2pa")
from cryptography import x509  # noqa: E402 (comes with c2pa-python)
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

NOW = datetime.datetime.now(datetime.UTC)
USES = (
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "encipher_only",
    "decipher_only",
)
KEYS = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def named(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def issued(name, key, issuer, signer, *, root: bool, days: tuple[int, int] = (-1, 9)) -> x509.Certificate:
    usage = {"digital_signature": not root, "key_cert_sign": root, "crl_sign": root}
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + datetime.timedelta(days=days[0]))
        .not_valid_after(NOW + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage, **dict.fromkeys(USES, False)), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Certificate chain and key by kind, and what is wrong with others."""
    folder, found = tmp_path_factory.mktemp("keys"), {}
    root = ec.generate_private_key(ec.SECP256R1())
    top = issued("root", root, "root", root, root=True)
    for kind, make in {**KEYS, "expired": KEYS["p256"]}.items():
        key = make()
        days = (-9, -1) if kind == "expired" else (-1, 9)
        leaf = issued("leaf", key, "root", root, root=False, days=days)
        pem = serialization.Encoding.PEM
        chain, secret = folder / f"{kind}.crt", folder / f"{kind}.key"
        chain.write_bytes(leaf.public_bytes(pem) + top.public_bytes(pem))
        plain = serialization.NoEncryption()
        secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        found[kind] = chain, secret
    return found


@pytest.fixture(scope="module")
def mp4(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "x.mp4"
    torch.manual_seed(0)
    Clip(torch.rand(1, 3, 4, 32, 32) * 2 - 1, 8.0, {"recipe": 2}).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", sorted(KEYS))
def test_a_signed_clip_says_that_a_model_generated_it_and_keeps_its_frames_and_recipe(kind, files, mp4, tmp_path):
    before, after = tmp_path / "before.mp4", tmp_path / "after.mp4"
    before.write_bytes(mp4)
    after.write_bytes(mp4)
    signer = signing.Signer(*files[kind])
    signer.check()
    signer.sign(after)
    with c2pa.Reader(str(after)) as reader:
        assert reader.get_validation_state() == "Valid"
        manifest = json.loads(reader.json())
    active = manifest["manifests"][manifest["active_manifest"]]
    action = next(each for each in active["assertions"] if each["label"].startswith("c2pa.actions"))["data"]["actions"][
        0
    ]
    assert action["action"] == "c2pa.created"
    assert action["softwareAgent"]["name"] == "Kinema"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert torch.equal(read_video(after).video, read_video(before).video)
    assert read_recipe(after) == read_recipe(before)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["after.mp4", "before.mp4"]


def test_a_changed_frame_breaks_the_signature(files, mp4, tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(mp4)
    signing.Signer(*files["p256"]).sign(path)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with c2pa.Reader(str(path)) as reader:
        assert reader.get_validation_state() == "Invalid"


@pytest.mark.parametrize(
    ("chain", "key", "sentence"),
    [
        ("p256", "rsa", "does not belong to the first certificate"),
        ("expired", "expired", "is valid from"),
        (None, "p256", "holds no certificate"),
        ("p256", None, "is not a private key"),
        ("missing", "p256", "cannot be read"),
    ],
)
def test_a_wrong_certificate_or_key_is_refused_in_one_sentence(chain, key, sentence, files, tmp_path):
    text = tmp_path / "text.pem"
    text.write_text("no key")
    certificate = tmp_path / "none.pem" if chain == "missing" else files[chain][0] if chain else text
    with pytest.raises(BadRequest, match=sentence):
        signing.Signer(certificate, files[key][1] if key else text)


def test_a_certificate_that_is_no_c2pa_certificate_is_refused(tmp_path):
    key = KEYS["p256"]()
    chain, secret = Path(tmp_path / "x.crt"), Path(tmp_path / "x.key")
    pem = serialization.Encoding.PEM
    chain.write_bytes(issued("root", key, "root", key, root=True).public_bytes(pem))
    secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    with pytest.raises(BadRequest, match="expected a C2PA certificate chain"):
        signing.Signer(chain, secret).check()


def test_without_the_package_the_extra_is_named(files, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    with pytest.raises(BadRequest, match=r"pip install 'kinema\[c2pa\]'"):
        signing.Signer(*files["p256"])


def test_the_video_of_a_finished_job_is_signed(files, tmp_path):
    clip = Clip(torch.zeros(1, 3, 2, 16, 16), 8.0, {"recipe": 2, "stages": [{"request": {"seed": 1}}]})
    clip_files.save(clip, tmp_path / "video_1.part", "video_1", sign=signing.Signer(*files["p256"]).sign)
    with c2pa.Reader(str(tmp_path / "video_1" / "video_1.mp4")) as reader:
        assert reader.get_validation_state() == "Valid"
