"""`kinema serve`: options, and what is refused before anything starts."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from kinema.cli import serve
from kinema.cli.main import main
from kinema.cli.options import parse
from kinema.schema import BadRequest
from kinema.server.settings import Limits, Settings
from kinema.values import is_loopback

TOKEN = "abcdefghijklmnop0123"


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KINEMA_TOKEN", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def started(monkeypatch):
    """Settings with which the server was started; it ends at once."""
    found = []

    def run(settings, *, on_ready, on_note):
        found.append(settings)
        on_ready("http://127.0.0.1:8000")
        on_note("1 video did not finish when the service last ended: video_a")
        return SimpleNamespace(signal=signal.SIGTERM, interrupted=["video_b"])

    monkeypatch.setattr("kinema.server.app.serve", run)
    return found


def settings_of(*words: str) -> Settings:
    return serve.settings_of(parse(serve.OPTIONS, list(words), "kinema serve", ""))


def refusal(capsys, *words: str) -> str:
    assert main(["serve", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_without_options_the_settings_have_their_own_defaults(tmp_path):
    assert settings_of() == Settings(folder=tmp_path / "data" / "kinema" / "service")


def test_every_option_reaches_the_settings():
    words = (
        "--folder f --host ::1 --port 9 --token abcdefghijklmnop0123 --allow-host a --allow-host b -m svd --models m "
    )
    words += (
        "--models n --lora-folder l --alias sora-2=svd --allow-downloads --device cuda:0 --device cuda:1 --dtype bf16 "
    )
    words += "--threads 3 --memory 2GiB --offload block --compile --preview-rate 2 --c2pa-certificate c --c2pa-key k "
    words += (
        "--max-frames 1 --max-job-pixels 2 --max-steps 3 --max-queue 4 --max-upload 5M --max-assets 6G --max-streams 7"
    )
    limits = Limits(frames=1, pixels=2, steps=3, queue=4, upload_bytes=5 * 2**20, assets_bytes=6 * 2**30, streams=7)
    assert settings_of(*words.split()) == Settings(
        folder=Path("f"),
        host="::1",
        port=9,
        token=TOKEN,
        allowed_hosts=("a", "b"),
        model="svd",
        model_folders=(Path("m"), Path("n")),
        lora_folder=Path("l"),
        devices=("cuda:0", "cuda:1"),
        dtype="bf16",
        threads=3,
        memory=2**31,
        offload="block",
        compile=True,
        offline=False,
        preview_rate=2.0,
        aliases={"sora-2": "svd"},
        c2pa_certificate=Path("c"),
        c2pa_key=Path("k"),
        limits=limits,
    )


def test_the_service_says_where_it_is_what_it_interrupted_and_ends_with_the_signals_code(started, capsys, tmp_path):
    assert main(["serve", "--port", "0"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.splitlines() == [
        "kinema: serving on http://127.0.0.1:8000 (no token is needed on this machine); jobs are kept in "
        f"{tmp_path}/data/kinema/service; Ctrl-C stops",
        "kinema: 1 video did not finish when the service last ended: video_a",
        "kinema: video_b was running and is interrupted; retry it with POST /v1/videos/video_b/retry",
        "kinema: stopped",
    ]


def test_the_folder_is_created_for_this_user_alone(started, tmp_path):
    main(["serve", "--port", "0"])
    assert stat.S_IMODE((tmp_path / "data/kinema/service").stat().st_mode) == 0o700


@pytest.mark.parametrize(("mode", "open_"), [(0o755, True), (0o750, True), (0o700, False)])
def test_a_folder_that_others_can_read_keeps_its_permissions_and_is_named(started, capsys, tmp_path, mode, open_):
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(mode)
    main(["serve", "--port", "0", "--folder", "own"])
    assert ("other users may read or change --folder own" in capsys.readouterr().err) is open_
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == mode


def test_a_port_that_is_taken_is_refused(started, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port} (" in refusal(capsys, "--port", str(port))
    assert not started


def test_an_address_of_another_machine_is_refused(started, capsys):
    assert "cannot listen on 192.0.2.1 port" in refusal(capsys, "--host", "192.0.2.1", "--token", TOKEN)
    assert "--host no.such.host.invalid is not an address" in refusal(
        capsys, "--host", "no.such.host.invalid", "--token", TOKEN
    )
    assert not started


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1"])
def test_an_address_that_others_reach_needs_a_token(host, started, capsys):
    assert f"--host {host} can be reached from other machines; give a token" in refusal(capsys, "--host", host)
    assert not started


def test_a_folder_that_is_a_file_or_cannot_be_written_is_refused(started, capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    assert "--folder file is a file; expected a folder" in refusal(capsys, "--port", "0", "--folder", "file")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert "cannot write in --folder x (No space left on device)" in refusal(capsys, "--port", "0", "--folder", "x")
    assert not started


def test_a_link_to_nothing_is_no_folder(started, capsys, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    words = ["--port", "0", "--folder", str(tmp_path / "link")]
    assert f"--folder {tmp_path / 'link'} is a link to nothing; expected a folder" in refusal(capsys, *words)
    (tmp_path / "file").touch()
    words = ["--port", "0", "--folder", str(tmp_path / "file")]
    assert f"--folder {tmp_path / 'file'} is a file; expected a folder" in refusal(capsys, *words)
    assert not started


def test_a_missing_extra_is_named(started, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert refusal(capsys) == "kinema: kinema serve needs uvicorn; pip install 'kinema[serve]'\n"


def test_the_needed_packages_are_those_of_the_extra():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extra = {line.split(">")[0].replace("-", "_") for line in project["optional-dependencies"]["serve"]}
    assert {*serve.NEEDED, "opencv_python_headless"} == extra  # OpenCV is for painted masks alone


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "70000"], "--port is 70000; expected 0 to 65,535"),
        (["--max-frames", "0"], "--max-frames is 0; expected 1 to 4,096"),
        (["--preview-rate", "0"], "--preview-rate is 0; expected 0.1 to 60"),
        (["--threads", "0"], "--threads is 0; expected 1 to 1,024"),
        (["--max-upload", "big"], "--max-upload is 'big'; expected a size such as 8GiB"),
        (["--memory", "-1"], "--memory"),
        (["--memory", "8"], "--memory is 8 bytes, in which no model fits; expected a size such as 8GiB"),
        (["--models", "none"], "--models none is not a folder"),
        (["--lora-folder", "none"], "--lora-folder none is not a folder"),
        (["--alias", "sora-2"], "--alias sora-2: expected NAME=MODEL"),
        (["--alias", "a=b", "--alias", "a=c"], "--alias a=c: expected NAME=MODEL, each name once"),
        (["--c2pa-key", "k"], "--c2pa-certificate and --c2pa-key belong together"),
        (["--c2pa-key", "k", "--c2pa-certificate", "c"], "c cannot be read"),
        (["--token", "short"], "the token of --token cannot be used; expected 16 to 256 ASCII characters"),
        (["--token", TOKEN, "--token-file", "x"], "--token and --token-file both set the token"),
        (["--token-file", "none"], "none cannot be read"),
        (["--offload", "some"], "--offload is 'some'; expected auto or none or"),
        (["--prot", "1"], "did you mean --port"),
        (["x"], "unexpected 'x'"),
    ],
)
def test_a_wrong_option_is_refused_in_one_sentence(words, sentence, started, capsys):
    assert sentence in refusal(capsys, *words)
    assert not started


def test_the_token_comes_from_the_option_the_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "token").write_text(f"{TOKEN}-file\n")
    assert settings_of().token is None
    monkeypatch.setenv("KINEMA_TOKEN", f"{TOKEN}-environment")
    assert settings_of().token == f"{TOKEN}-environment"
    assert settings_of("--token-file", "token").token == f"{TOKEN}-file"
    assert settings_of("--token", TOKEN).token == TOKEN


def test_the_token_is_never_shown_and_not_passed_on(started, capsys, monkeypatch):
    monkeypatch.setenv("KINEMA_TOKEN", TOKEN)
    main(["serve", "--port", "0"])
    assert "clients need the token" in (err := capsys.readouterr().err)
    assert TOKEN not in err + repr(started[0])
    assert "KINEMA_TOKEN" not in os.environ
    secret = "a secret with spaces in it"
    with pytest.raises(BadRequest) as caught:
        settings_of("--token", secret)
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False), ("", False)],
)
def test_which_addresses_only_this_machine_reaches(host, alone):
    assert is_loopback(host) is alone
