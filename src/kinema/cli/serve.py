"""``kinema serve``: options to `Settings`, the refusals before anything starts, and the end of the service."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kinema.atomic import check_folder
from kinema.bounds import printable, read_bytes
from kinema.cli.options import parse, with_defaults
from kinema.options import Option
from kinema.schema import BadRequest, plain_number
from kinema.values import is_loopback, number

if TYPE_CHECKING:
    from kinema.server.settings import Limits, Settings

ABOUT = (
    "Run a video service over HTTP, with the endpoints of OpenAI's videos and more: a queue that survives a restart, "
    "live progress and previews, all seven verbs. `kinema generate … --server URL` and `kinema.connect` use it."
)
EXAMPLE = "kinema serve"
NEEDED = ("fastapi", "uvicorn", "sse_starlette", "python_multipart", "prometheus_client")
"""What the extra `serve` installs."""
TOKEN = "KINEMA_TOKEN"
LEAST_MEMORY = 2**20
"""Less is a slip, such as 8 in place of 8GiB: every job would be refused."""
SERVICE = [
    Option(
        "folder",
        Path | None,
        None,
        "folder of jobs, clips and uploads (default: kinema/service in the user's data folder)",
    ),
    Option(
        "host", str, "127.0.0.1", "address to listen on; any but this machine's own needs a token", metavar="ADDRESS"
    ),
    Option("port", int, 8000, "port to listen on; 0 takes a free one"),
    Option(
        "token",
        str | None,
        None,
        "secret that clients must send; other users of this machine can read it in the list of processes, so prefer "
        "--token-file or the environment variable KINEMA_TOKEN",
    ),
    Option("token_file", Path | None, None, "file that holds the token"),
    Option(
        "allow_host",
        list[str],
        [],
        "host name under which clients reach the service, besides its address and localhost; may be repeated",
        metavar="NAME",
    ),
]
MODELS = [
    Option("model", str, "zoetrope", "model of requests that name none", short="-m", metavar="NAME"),
    Option(
        "models", list[str], [], "folder whose model files are offered; may be repeated", metavar="FOLDER", path=True
    ),
    Option("lora_folder", Path | None, None, "folder whose LoRAs are offered", metavar="FOLDER"),
    Option(
        "alias",
        list[str],
        [],
        "another name for a model, such as sora-2=zoetrope; may be repeated",
        metavar="NAME=MODEL",
    ),
    Option("allow_downloads", bool, False, "let clients download published models; otherwise nothing is ever fetched"),
]
MACHINE = [
    Option(
        "device",
        list[str],
        [],
        "device of a worker: cpu, cuda:0, mps, …; may be repeated; by default all CUDA devices, or the first other "
        "accelerator, or the CPU",
        metavar="NAME",
    ),
    Option(
        "dtype",
        Literal["auto", "fp32", "bf16", "fp16"] | None,
        None,
        "compute precision, as of the verbs",
    ),
    Option("threads", int | None, None, "CPU threads of each worker"),
    Option(
        "memory",
        str | None,
        None,
        "memory of each worker for loaded models and a job, such as 8GiB; by default most of the free memory",
        metavar="SIZE",
    ),
    Option(
        "offload",
        Literal["auto", "none", "model", "block", "sequential"],
        "auto",
        "which weights to load only while they run",
    ),
    Option("compile", bool, False, "compile the networks' blocks: slow first steps, then faster ones"),
    Option("preview_rate", float, 4.0, "most previews per second of a job"),
]
SIGNING = [
    Option("c2pa_certificate", Path | None, None, "certificate chain (PEM) that signs clips; needs the extra c2pa"),
    Option("c2pa_key", Path | None, None, "private key (PEM) of that certificate"),
]
LIMITS = [
    Option("max_frames", int, 512, "most frames of a request"),
    Option("max_job_pixels", int, 2**27, "most pixels of a request: clips × frames × height × width"),
    Option("max_steps", int, 500, "most steps of a request"),
    Option("max_queue", int, 1000, "most waiting jobs"),
    Option("max_upload", str, "256MiB", "largest upload", metavar="SIZE"),
    Option("max_assets", str, "20GiB", "most bytes of all uploads together", metavar="SIZE"),
    Option("max_streams", int, 256, "most event streams open at the same time"),
]
OPTIONS = [*SERVICE, *MODELS, *MACHINE, *SIGNING, *LIMITS]
GROUPS = {
    "service": tuple(o.name for o in SERVICE),
    "models": tuple(o.name for o in MODELS),
    "device and memory": tuple(o.name for o in MACHINE),
    "signed clips": tuple(o.name for o in SIGNING),
    "limits": tuple(o.name for o in LIMITS),
}
RANGES: Mapping[str, tuple[float, float]] = {
    "port": (0, 65535),
    "threads": (1, 1024),
    "preview_rate": (0.1, 60),
    "max_frames": (1, 4096),
    "max_job_pixels": (1, 2**31),
    "max_steps": (1, 10_000),
    "max_queue": (1, 1_000_000),
    "max_streams": (1, 100_000),
}
"""Lowest and highest value of options that are numbers."""


def serve(argv: Sequence[str]) -> int:
    """Run the service until Ctrl-C (exit code 130) or SIGTERM (143)."""
    settings = settings_of(parse(OPTIONS, argv, "kinema serve", ABOUT, EXAMPLE, GROUPS))
    check(settings)
    if sys.platform != "win32" and settings.folder.stat().st_mode & 0o077:
        _say(_open_to_others(settings.folder))
    os.environ.pop(TOKEN, None)  # workers have no use for it
    from kinema.server.app import serve as run

    stopped = run(settings, on_ready=lambda url: _say(_welcome(url, settings)), on_note=_say)
    for job in stopped.interrupted:
        _say(f"{job} was running and is interrupted; retry it with POST /v1/videos/{job}/retry")
    _say("stopped")
    return 128 + (stopped.signal or signal.SIGINT)


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The settings of these options. Raises BadRequest for values out of range."""
    from kinema.server.settings import Settings

    values = with_defaults(OPTIONS, given)
    for o in OPTIONS:
        least, most = RANGES.get(o.name, (None, None))
        if least is not None and most is not None and values[o.name] is not None:
            if not least <= values[o.name] <= most:
                raise BadRequest(
                    f"{o.flag} is {plain_number(values[o.name])}; expected {number(least)} to {number(most)}"
                )
    return Settings(
        folder=values["folder"] or data_folder() / "service",
        host=values["host"],
        port=values["port"],
        token=_token(values["token"], values["token_file"]),
        allowed_hosts=tuple(values["allow_host"]),
        model=values["model"],
        model_folders=tuple(map(Path, values["models"])),
        lora_folder=values["lora_folder"],
        devices=tuple(dict.fromkeys(values["device"])),
        dtype=values["dtype"],
        threads=values["threads"],
        memory=None if values["memory"] is None else _memory(values["memory"]),
        offload=values["offload"],
        compile=values["compile"],
        offline=not values["allow_downloads"],
        preview_rate=values["preview_rate"],
        aliases=_aliases(values["alias"]),
        c2pa_certificate=values["c2pa_certificate"],
        c2pa_key=values["c2pa_key"],
        limits=_limits(values),
    )


def _limits(values: Mapping[str, Any]) -> Limits:
    from kinema.server.settings import Limits

    return Limits(
        upload_bytes=_bytes("--max-upload", values["max_upload"]),
        frames=values["max_frames"],
        pixels=values["max_job_pixels"],
        steps=values["max_steps"],
        queue=values["max_queue"],
        assets_bytes=_bytes("--max-assets", values["max_assets"]),
        streams=values["max_streams"],
    )


def check(settings: Settings) -> None:
    """Refuse, before anything is started, what cannot work. Raises BadRequest."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise BadRequest(f"kinema serve needs {missing[0]}; pip install 'kinema[serve]'")
    if settings.token is None and not is_loopback(settings.host):
        raise BadRequest(
            f"--host {printable(settings.host, 80)} can be reached from other machines; give a token with --token-file "
            f"or the environment variable {TOKEN}"
        )
    for name, folder in [("--models", each) for each in settings.model_folders] + [
        ("--lora-folder", settings.lora_folder)
    ]:
        if folder is not None and not folder.is_dir():
            raise BadRequest(f"{name} {printable(str(folder), 200)} is not a folder")
    if (settings.c2pa_certificate is None) != (settings.c2pa_key is None):
        raise BadRequest("--c2pa-certificate and --c2pa-key belong together; give both")
    if settings.c2pa_certificate is not None and settings.c2pa_key is not None:
        from kinema.server.signing import Signer

        Signer(settings.c2pa_certificate, settings.c2pa_key).check()
    _check_folder(settings.folder)
    _check_port(settings.host, settings.port)


def data_folder() -> Path:
    """Where programs of this user keep data: ``$XDG_DATA_HOME/kinema`` or what the system uses."""
    if given := os.environ.get("XDG_DATA_HOME"):
        return Path(given) / "kinema"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "kinema"
    return Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".local/share") / "kinema"


def _check_folder(folder: Path) -> None:
    """Create the folder, for this user only, and refuse one in which no file can be written."""
    where = printable(str(folder), 200)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_folder(folder / "jobs.sqlite")
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"kinema")
    except FileExistsError:
        kind = "a file" if folder.exists() else "a link to nothing"
        raise BadRequest(f"--folder {where} is {kind}; expected a folder") from None
    except OSError as error:
        raise BadRequest(f"cannot write in --folder {where} ({error.strerror}); choose another") from None


def _check_port(host: str, port: int) -> None:
    """Refuse an address that is taken or is not this machine's."""
    shown = printable(host, 80)
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        raise BadRequest(f"--host {shown} is not an address of this machine") from None
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":  # there, the option would share the port with another program
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise BadRequest(
                f"cannot listen on {shown} port {port} ({error.strerror}); choose another --port, or stop what uses it"
            ) from None


def _token(given: str | None, file: Path | None) -> str | None:
    """The token of the option, the file or the environment. It is never part of a message."""
    from kinema.server.settings import LEAST_TOKEN, MAX_TOKEN, is_token

    if given is not None and file is not None:
        raise BadRequest("--token and --token-file both set the token; give one of them")
    if file is not None:
        where, given = printable(str(file), 200), read_bytes(file, 4096, "a token").decode("utf-8", "replace").strip()
    else:
        where, given = ("--token", given) if given is not None else (TOKEN, os.environ.get(TOKEN) or None)
    if given is None:
        return None
    if not is_token(given):
        raise BadRequest(
            f"the token of {where} cannot be used; expected {LEAST_TOKEN} to {MAX_TOKEN} ASCII characters without "
            "spaces, such as those of `openssl rand -hex 32`"
        )
    return given


def _aliases(values: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in values:
        name, equals, model = text.partition("=")
        if not (name and equals and model) or name in found:
            raise BadRequest(
                f"--alias {printable(text, 80)}: expected NAME=MODEL, each name once, such as sora-2=zoetrope"
            )
        found[name] = model
    return found


def _bytes(flag: str, text: str) -> int:
    from kinema.memory.free import parse_bytes

    try:
        return parse_bytes(text)
    except BadRequest:
        raise BadRequest(f"{flag} is {printable(repr(text), 40)}; expected a size such as 8GiB or 512MiB") from None


def _memory(text: str) -> int:
    memory = _bytes("--memory", text)
    if memory < LEAST_MEMORY:
        raise BadRequest(f"--memory is {number(memory)} bytes, in which no model fits; expected a size such as 8GiB")
    return memory


def _welcome(url: str, settings: Settings) -> str:
    guarded = "clients need the token" if settings.token else "no token is needed on this machine"
    return f"serving on {url} ({guarded}); jobs are kept in {printable(str(settings.folder), 200)}; Ctrl-C stops"


def _open_to_others(folder: Path) -> str:
    where = printable(str(folder), 200)
    return f"other users may read or change --folder {where}, which keeps its permissions; use chmod 700"


def _say(text: str) -> None:
    sys.stderr.write(f"kinema: {printable(text)}\n")
    sys.stderr.flush()
