"""Settings of the service. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

GIB = 2**30
LEAST_TOKEN, MAX_TOKEN = 16, 256
"""Minimum and maximum length of the token."""


def is_token(text: str) -> bool:
    """Whether a text can be the service's token: ASCII without spaces, of a length that cannot be guessed."""
    return LEAST_TOKEN <= len(text) <= MAX_TOKEN and all("!" <= c <= "~" for c in text)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on what clients may ask for and send."""

    upload_bytes: int = 256 * 2**20
    json_bytes: int = 2**20
    frames: int = 512
    pixels: int = 2**27
    """clips × frames × height × width."""
    steps: int = 500
    queue: int = 1000
    assets_bytes: int = 20 * GIB
    streams: int = 256
    """Event streams open at the same time."""
    decode_seconds: float = 60.0
    decode_bytes: int = 3 * GIB
    plan_seconds: float = 60.0
    body_seconds: float = 30.0
    """Longest silence of a client within a request."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``kinema serve`` was started with."""

    folder: Path
    """The store: jobs.sqlite, jobs/, assets/."""
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    """Clients must send it as ``Authorization: Bearer TOKEN``; required unless ``host`` is a loopback address."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that clients may use besides ``host`` and the loopback names."""
    model: str = "zoetrope"
    """The model of requests that name none."""
    model_folders: tuple[Path, ...] = ()
    lora_folder: Path | None = None
    devices: tuple[str, ...] = ()
    """A worker each; empty: all CUDA devices, or the first other accelerator, or the CPU."""
    dtype: str | None = None
    threads: int | None = None
    memory: int | None = None
    """Bytes of weights that a worker keeps loaded, and the memory budget of a job; None: most of the free memory."""
    offload: str = "auto"
    compile: bool = False
    offline: bool = True
    """Never download while serving; ``--allow-downloads`` lets clients start one."""
    preview_rate: float = 4.0
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Names that clients may use for a model, such as sora-2=zoetrope."""
    c2pa_certificate: Path | None = None
    c2pa_key: Path | None = None
    limits: Limits = Limits()
