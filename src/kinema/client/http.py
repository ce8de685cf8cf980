"""Requests to a service over HTTP. What the service sends is read within limits, like a stranger's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from kinema.bounds import from_json, printable
from kinema.schema import BadRequest, JobFailed
from kinema.values import is_loopback

if TYPE_CHECKING:
    import httpx2

MAX_JSON = 2**24
"""Bytes of an answer in JSON."""
MAX_EVENT = 2**23
"""Bytes of one server-sent event."""
MAX_LINE = 200
"""Characters of the service's sentence in an error message."""
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120.0
"""Longest silence of an answer. A service that settles a request may take a minute."""
STOP_SECONDS = 900.0
"""Longest wait for a worker to stop: one step or one chunk of decoding of a large model."""
PING_SECONDS = 45.0
"""Longest silence of an event stream; services send a comment at least every 15 seconds."""


@dataclass(frozen=True)
class Message:
    """A server-sent event: its kind and its data as JSON."""

    kind: str
    data: Mapping[str, Any]


class Http:
    """Requests to one service. Methods raise BadRequest with the service's sentence for what it refuses, and
    `JobFailed` if it cannot be reached.
    """

    def __init__(self, url: str, token: str | None = None, transport: Any = None) -> None:
        import httpx2

        self.url = _checked(url)
        host = httpx2.URL(self.url).host
        here = is_loopback(host) or host.endswith(".localhost")
        self.client = httpx2.Client(
            base_url=self.url,
            # A compressed answer could be larger than what arrives.
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {}),
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            trust_env=not here,  # a proxy for the internet cannot reach this machine
            transport=transport,
        )

    def close(self) -> None:
        self.client.close()

    def json(self, method: str, path: str, *, seconds: float = ANSWER_SECONDS, **options: Any) -> dict[str, Any]:
        """The answer as a JSON object. ``options`` are httpx2's: json, files, params."""
        with self._answer(method, path, seconds, **options) as answer:
            data = from_json(_read(answer, MAX_JSON, self.url), f"the answer of {self.url}", infinite=True)
        if not isinstance(data, dict):
            raise BadRequest(f"{self.url} is not a kinema service: its answer is not a JSON object")
        return data

    def download(self, path: str, file: IO[bytes], most: int, **options: Any) -> None:
        """Write a content of at most ``most`` bytes into ``file``."""
        count = 0
        with self._answer("GET", path, ANSWER_SECONDS, **options) as answer:
            for piece in answer.iter_bytes():
                count += len(piece)
                if count > most:
                    raise BadRequest(f"{self.url} sent more than {most:,} bytes for {path}, more than its job says")
                file.write(piece)

    def messages(self, path: str, **options: Any) -> Iterator[Message]:
        """The events of a stream until it ends."""
        headers = {"Accept": "text/event-stream"}
        with self._answer("GET", path, PING_SECONDS, headers=headers, **options) as answer:
            yield from parse_events(_lines(answer, self.url), self.url)

    @contextmanager
    def _answer(self, method: str, path: str, seconds: float, **options: Any) -> Iterator[httpx2.Response]:
        import httpx2

        timeout = httpx2.Timeout(seconds, connect=CONNECT_SECONDS)
        try:
            with self.client.stream(method, path, timeout=timeout, **options) as answer:
                if answer.status_code >= 300:
                    raise BadRequest(self._refusal(answer))
                yield answer
        except httpx2.TransportError as error:
            raise JobFailed(self._unreachable(error)) from error
        except httpx2.HTTPError as error:
            raise JobFailed(f"{self.url} sent a damaged answer: {printable(str(error), MAX_LINE)}") from error

    def _refusal(self, answer: httpx2.Response) -> str:
        """The service's sentence, or what its status says."""
        if answer.status_code == 401:
            what = "does not accept this token" if "authorization" in self.client.headers else "asks for a token"
            return f"{self.url} {what}; set KINEMA_TOKEN to that of the service, or in Python: connect(URL, token=…)"
        try:
            data = from_json(_read(answer, MAX_JSON, self.url), "the answer")
            sentence = data["error"]["message"]
        except (BadRequest, KeyError, TypeError):
            sentence = None
        if isinstance(sentence, str) and sentence:
            return printable(sentence, MAX_LINE * 2)
        return f"{self.url} answered {answer.status_code}; is it the address of a kinema service?"

    def _unreachable(self, error: Exception) -> str:
        import httpx2

        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            reason = printable(str(error), MAX_LINE) or "no answer"
            return f"cannot reach a service at {self.url} ({reason}); start one with `kinema serve`"
        if isinstance(error, httpx2.TimeoutException):
            return f"{self.url} does not answer; the job may still run there"
        return f"the connection to {self.url} broke ({printable(str(error), MAX_LINE) or type(error).__name__})"


def parse_events(lines: Iterator[str], url: str) -> Iterator[Message]:
    """Server-sent events from lines: kinds and JSON data; comments and other fields are left out."""
    kind, size = "", 0
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                value = from_json("\n".join(data), f"an event of {url}")
                if isinstance(value, dict):
                    yield Message(kind or "message", value)
            kind, data, size = "", [], 0
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            size += len(value)
            if size > MAX_EVENT:
                raise BadRequest(f"{url} sent an event of more than {MAX_EVENT:,} bytes")
            data.append(value)


def _lines(answer: httpx2.Response, url: str) -> Iterator[str]:
    """Lines of a stream, each of at most `MAX_EVENT` bytes."""
    left = b""
    for piece in answer.iter_bytes():
        left += piece
        *whole, left = left.split(b"\n")
        if len(left) > MAX_EVENT:
            raise BadRequest(f"{url} sent an event of more than {MAX_EVENT:,} bytes")
        for line in whole:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")


def _read(answer: httpx2.Response, most: int, url: str) -> bytes:
    parts, count = [], 0
    for piece in answer.iter_bytes():
        parts.append(piece)
        count += len(piece)
        if count > most:
            raise BadRequest(f"{url} sent an answer of more than {most:,} bytes")
    return b"".join(parts)


def _checked(url: str) -> str:
    """The address without a slash at its end. Raises BadRequest unless it is http or https, without a password."""
    import httpx2

    expected = "expected an address such as http://127.0.0.1:8000"
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        raise BadRequest(f"the service's address cannot be read; {expected}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadRequest(f"the service's address is {printable(url, 80)}; {expected}")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise BadRequest(f"the service's address holds more than a host, a port and a path; {expected}")
    return url.rstrip("/").removesuffix("/v1")
