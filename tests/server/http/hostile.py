"""Malformed, oversized and hostile requests: name to the bytes that a client sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_args
from urllib.parse import quote

from kinema import values
from kinema.server.http import fields

BOUNDARY = "----x"
UNKNOWN = "video_" + "0" * 24
SECRET = "/etc/passwd"
PLACES = (
    *(
        SECRET,
        "file:///etc/passwd",
        "../../../etc/passwd",
        "..\\..\\secret",
        "C:\\secret.png",
        "\\\\host\\share\\x.png",
    ),
    *("http://169.254.169.254/latest/meta-data", "https://example.com/x.png", "gopher://localhost:70/x", "~/x.png"),
    *(
        "//host/x",
        "ball/../../x",
        "asset-../../x",
        "video_" + "0" * 24 + "/../../x",
        "asset-" + "z" * 24 + "\n",
        "x\0.png",
        "",
    ),
)
"""Paths and URLs that no field may lead the service to open."""


def http(method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"", host="127.0.0.1") -> bytes:
    head = {"Host": host, **({"Content-Length": str(len(body))} if body else {}), **(headers or {})}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def post(body: bytes | object, target: str = "/v1/videos", **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http("POST", target, {"Content-Type": "application/json", **headers}, data)


def form(parts: bytes, target: str = "/v1/videos", kind: str = f"multipart/form-data; boundary={BOUNDARY}") -> bytes:
    return http("POST", target, {"Content-Type": kind}, parts)


def part(name: str, value: bytes = b"x", filename: str | None = None) -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode("utf-8", "surrogateescape") + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def addresses() -> Iterator[tuple[str, bytes]]:
    ids = (
        *("../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e", UNKNOWN, "video_%00", "asset-%00"),
        *("a" * 5000, "..%5c..%5cwin.ini", "%c0%ae%c0%ae/", "video_x;id", "%0d%0aSet-Cookie:%20a=b", "%ff%fe", "*"),
        *("asset-" + "0" * 24, "video_" + "0" * 24 + "%0a", "characters"),
    )
    for number, each in enumerate(ids):
        yield f"video-{number}", http("GET", f"/v1/videos/{each}")
        yield f"content-{number}", http("GET", f"/v1/videos/{each}/content")
        yield f"events-{number}", http("GET", f"/v1/videos/{each}/events")
        yield f"delete-{number}", http("DELETE", f"/v1/videos/{each}")
        yield f"asset-{number}", http("GET", f"/v1/assets/{each}/content")
        yield f"model-{number}", http("POST", f"/v1/models/{each}/download")
    for number, each in enumerate(PLACES):
        yield f"variant-{number}", http("GET", f"/v1/videos/{UNKNOWN}/content?variant={quote(each)}")
        yield f"after-{number}", http("GET", f"/v1/videos?after={quote(each)}")
    for each in ("limit=0", "limit=101", "limit=1e9", "limit=-1", "limit=NaN", "limit=" + "9" * 400, "order=up"):
        yield each[:12], http("GET", f"/v1/videos?{each}")
    for each in ("status=x", "aftr=x", "limit=1&limit=2", "limit=%00", "order[]=asc", "x" * 5000, "after=%ff"):
        yield f"query-{each[:12]}", http("GET", f"/v1/videos?{each}")
    for each in (
        "/.env",
        "/v1/../etc/passwd",
        "/docs/../../etc/passwd",
        "/v1//videos",
        "/V1/videos",
        "/v1/videos/",
        "/%00",
    ):
        yield f"path-{each}", http("GET", each)
    for method in ("PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "HEAD", "DELETE", "BREW", "get"):
        yield f"method-{method}", http(method, "/v1/videos")
    yield "get-with-a-body", http("GET", "/v1/videos", {"Content-Type": "application/json"}, b"{}")
    yield "delete-with-a-body", http("DELETE", f"/v1/videos/{UNKNOWN}", {}, b'{"keep_partial": true}')


def sites() -> Iterator[tuple[str, bytes]]:
    hosts = ("evil.example", "127.0.0.1.evil.example", "localhost.evil:8000", "evil@127.0.0.1", "127.0.0.1/x", "[::2]")
    for each in (
        *hosts,
        "127.0.0.1:99999999",
        "",
        "10.0.0.1",
        "localhost:8000, evil.example",
        "0.0.0.0",
        "127.0.0.1 x",
    ):
        yield f"host-{each}", http("GET", "/v1/videos", host=each)
    ours = (
        "https://evil.example",
        "null",
        "http://127.0.0.1:3000",
        "http://localhost",
        "http://127.0.0.1@evil.example",
    )
    for each in (*ours, "file://", "http://127.0.0.1.evil.example", "chrome-extension://abc", "", "http://[::1]"):
        yield f"origin-{each}", post({"prompt": "x"}, Origin=each)
        yield f"origin-get-{each}", http("GET", "/v1/videos", {"Origin": each})
    for each in ("cross-site", "same-site", "nonsense"):
        yield f"fetch-{each}", http("GET", "/v1/videos", {"Sec-Fetch-Site": each})
    yield "fetch-image", http("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})
    kinds = ("text/plain", "application/x-www-form-urlencoded", "application/xml", "text/json", "application/jsonx", "")
    for each in (*kinds, "application/json, text/plain", "text/plain; application/json", "multipart/mixed; boundary=x"):
        yield f"type-{each}", http("POST", "/v1/videos", {"Content-Type": each}, b'{"prompt": "x"}')
    for each in ("gzip", "deflate", "br", "gzip, gzip"):
        yield f"encoding-{each}", post({"prompt": "x"}, **{"Content-Encoding": each})


def references() -> Iterator[tuple[str, bytes]]:
    bodies = {
        **{
            name: lambda each, name=name: post({"verb": "edit", "prompt": "x", name: each})
            for name in (
                "image",
                "last_image",
                "video",
                "mask",
                "image_model",
                "super_resolution",
                "model",
                "lora_folder",
            )
        },
        "keyframes": lambda each: post({"verb": "animate", "keyframes": {"3": each}}),
        "loras": lambda each: post({"loras": {each: 1.0}}),
        "lora": lambda each: post({"lora": {"name": each}}),
        "add": lambda each: post({"add": {"style": each}}),
        "add-slot": lambda each: post({"add": {each: "style"}}),
        "lora-path": lambda each: post({"lora": {"name": "ball", "path": each}}),
        "file_id": lambda each: post({"input_reference": {"file_id": each}}),
        "image_url": lambda each: post({"input_reference": {"image_url": each}}),
        "reference": lambda each: post({"input_reference": each or 0}),
        "video-object": lambda each: post({"video": {"id": each}, "prompt": "x"}, "/v1/videos/edits"),
        "request": lambda each: post({"request": {"task": "edit", "video": each}}),
        "request-lora": lambda each: post({"request": {"loras": {each: 1}}}),
        "before": lambda each: post({"before": each}, f"/v1/videos/{UNKNOWN}/move"),
        "model-download": lambda each: http("POST", f"/v1/models/{quote(each)}/download"),
        "form-image": lambda each: form(part("image", each.encode()) + END),
    }
    for field, (name, body) in enumerate(bodies.items()):
        for number in range(6):  # each place comes to a third of the fields
            place = (field + number * 3) % len(PLACES)
            yield f"{name}-{place}", body(PLACES[place])
    for each in (
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64,",
        "data:image/png;base64,%%",
    ):
        yield f"data-{each}", post({"input_reference": {"image_url": each}})
    yield "data-both", post({"input_reference": {"image_url": "data:image/png;base64,AAAA", "file_id": "asset-1"}})
    yield "data-no-image", post({"input_reference": {"image_url": "data:image/png;base64,PHN2Zz4="}})


def wrong(hint: object) -> list[object]:
    """Values that do not match an annotation."""
    several = [[[]], {"a": {"b": []}}, True, 1.5, "\x07", -(10**30), [1, 2, 3, 4, 5, 6]]
    return [each for each in several if not values.matches(each, hint)]


def typed() -> Iterator[tuple[str, bytes]]:
    for name, f in fields.table().items():
        if name in ("lora", "input_reference", "size", "seconds", "video"):
            continue
        for number, value in enumerate(wrong(f.type)[:2]):
            yield f"type-{name}-{number}", post({name: value})
        if f.most is not None:
            yield f"most-{name}", post({name: f.most * 2})
            yield f"least-{name}", post({name: f.least - 1})
            yield f"form-least-{name}", form(part(name, str(f.least - 1).encode()) + END)
        if str not in (f.type, *get_args(f.type)):
            yield f"form-{name}", form(part(name, b"\xc3\x28") + END)
    bad: dict[str, list[object]] = {
        "seconds": [0, -1, "", "4s", [], {}, True, 1e30, "9" * 40, "NaN", 100_000],
        "size": [720, "0x0", "99999x99999", "1280x", [], "1280x720x3x4", "-1x-1"],
        "lora": ["ball", 3, [3], {"scale": 1}, {"name": "ball", "scale": "x"}, {"name": "ball", "x": 1}, [[]]],
        "input_reference": [3, [], {}, {"file_id": 3}, {"x": 1}, True],
        "video": [3, [], {}, {"id": 3}, {"x": 1}, True],
        "seed": [2**63, 2**64, 10**23, -1, 1.5, "7"],
        "prompt": ["\0", "a\0b", 3, ["x"]],
        "extra": [{"unknown": 1}, {"__class__": "x"}, [1], "x", {"a": "\0"}],
        "region": [[0, 0], [0, 0, 2, 2], [1, 1, 0, 0], "0,0,1,1", [0, 0, 1, None]],
    }
    for name, each in bad.items():
        for number, value in enumerate(each):
            yield f"bad-{name}-{number}", post({name: value})
    pairs = ("num_frames frames", "steps num_inference_steps", "seconds frames", "guidance guidance_scale", "verb task")
    for pair in pairs:
        one, other = pair.split()
        value = "generate" if one == "verb" else 2
        yield f"both-{pair}", post({one: value, other: value})
    yield "both-sizes", post({"size": "64x64", "width": 64})
    yield "request-and-more", post({"request": {}, "prompt": "x"})
    for number, each in enumerate(([], 3, "x", {"unknown": 1}, {"frames": "x"}, {"task": "fly"})):
        yield f"request-{number}", post({"request": each})
    for number, each in enumerate(({}, {"before": 3}, {"after": None}, [], {"before": None, "x": 1})):
        yield f"move-{number}", post(each, f"/v1/videos/{UNKNOWN}/move")
    yield "cancel-with-values", post({"keep_partial": True}, f"/v1/videos/{UNKNOWN}/cancel")
    yield "edit-without-video", post({"prompt": "x"}, "/v1/videos/edits")
    yield "edit-of-another-verb", post({"prompt": "x", "video": UNKNOWN, "verb": "extend"}, "/v1/videos/edits")
    yield "extend-without-prompt", post({"video": UNKNOWN}, "/v1/videos/extensions")
    yield "remix-of-nothing", post({"prompt": "x"}, f"/v1/videos/{UNKNOWN}/remix")


def damaged() -> Iterator[tuple[str, bytes]]:
    deep = b'{"extra": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    bodies = {
        "nan": b'{"guidance": NaN}', "infinity": b'{"guidance": Infinity}', "minus": b'{"fps": -Infinity}',
        "exponent": b'{"guidance": 1e999}', "digits": b'{"seed": ' + b"9" * 5000 + b"}", "deep": deep,
        "tables": b'{"a":' * 5000 + b"1" + b"}" * 5000, "twice": b'{"prompt": "a", "prompt": "b"}',
        "bad-utf8": b'{"prompt": "\xff\xfe"}', "utf16": '{"prompt": "x"}'.encode("utf-16"), "cut": b'{"prompt": "x"',
        "more": b'{"prompt": "x"} {}', "list": b"[]", "number": b"3", "text": b'"x"', "null": b"null", "blank": b"   ",
        "surrogate": b'{"prompt": "\\ud800"}', "surrogate-name": b'{"extra": {"\\udfff": 1}}', "python": b"{'a': 1}",
        "comment": b"{/*x*/}", "control": b'{"prompt": "a\nb"}', "large": b'{"prompt": "' + b"x" * 2**20 + b'"}',
        "values": b'{"extra": {"a": [' + b"0," * 400_000 + b"0]}}", "proto": b'{"__proto__": {"a": 1}}',
        "bom": b'\xef\xbb\xbf{"prompt": "x"}',
    }  # fmt: skip
    for name, body in bodies.items():
        yield f"json-{name}", post(body)
    kind = "multipart/form-data"
    yield "form-no-boundary", form(part("prompt") + END, kind=kind)
    yield "form-empty-boundary", form(part("prompt") + END, kind=f'{kind}; boundary=""')
    yield "form-long-boundary", form(part("prompt") + END, kind=f"{kind}; boundary={'x' * 5000}")
    yield "form-other-boundary", form(part("prompt") + END, kind=f"{kind}; boundary=other")
    yield "form-cut", form(part("prompt"))
    yield "form-empty", form(b"")
    yield "form-garbage", form(b"\0" * 100)
    yield "form-no-name", form(f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nx\r\n".encode() + END)
    yield "form-empty-name", form(part("") + END)
    yield "form-long-name", form(part("x" * 1000) + END)
    yield (
        "form-many-headers",
        form(
            f"--{BOUNDARY}\r\n".encode()
            + b"X: y\r\n" * 500
            + b'Content-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
            + END
        ),
    )
    yield "form-long-header", form(f"--{BOUNDARY}\r\nX: {'y' * 20_000}\r\n\r\nx\r\n".encode() + END)
    yield "form-parts", form(part("prompt") * 300 + END)
    yield "form-files", form(b"".join(part(f"keyframes[{n}]", b"\x89PNG", "x") for n in range(40)) + END)
    yield "form-twice", form(part("prompt") * 2 + END)
    yield "form-file-twice", form(part("image", b"\x89PNG", "a") * 2 + END)
    yield "form-text-and-file", form(part("image", b"\x89PNG", "a") + part("image", b"asset") + END)
    yield "form-file-in-a-text", form(part("prompt", b"x", "../../prompt.txt") + END)
    yield "form-file-in-extra", form(part("extra[control]", b"\x89PNG", "x.png") + END)
    yield "form-file-of-nothing", form(part("file", b"\x89PNG", "x.png") + END)
    yield "form-empty-file", form(part("image", b"", "x.png") + END)
    yield "form-svg", form(part("image", b"<svg xmlns='x'><image href='file:///etc/passwd'/></svg>", "x.png") + END)
    yield "form-playlist", form(part("image", b"#EXTM3U\nfile:///etc/passwd\n", "x.m3u8") + END)
    yield "form-zip", form(part("image", b"PK\x03\x04" + b"\0" * 1000, "bomb.zip") + END)
    yield "form-then-refused", form(part("image", b"\x89PNG" + b"\0" * 64, "x.png") + part("seed", b"x") + END)
    yield "form-bad-utf8", form(part("prompt", b"\xff\xfe") + END)
    yield "form-zero", form(part("prompt", b"a\0b") + END)
    yield "form-long-text", form(part("prompt", b"x" * (2**20 + 1)) + END)
    yield "form-too-large", form(part("image", b"\x89PNG" + b"\0" * 2**21, "x.png") + END)
    for name in ("lora[", "lora]", "[x]", "lora[x]y", "lora[a][b][c][d][e][f]", "lora[][name]x", "a\r\nb", "é"):
        yield f"form-name-{name!r}", form(part(name) + END)
    mixed = (("extra[a]", "extra"), ("extra", "extra[a]"), ("extra[a]", "extra[]"), ("lora[]", "lora[][name]"))
    for one, other in (*mixed, ("lora[][name]", "lora[]"), ("extra[a][b]", "extra[a]"), ("seed[]", "seed")):
        yield f"form-{one}-{other}", form(part(one) + part(other) + END)
    yield (
        "form-uneven-list",
        form(part("lora[][name]", b"a") + part("lora[][name]", b"b") + part("lora[][scale]") + END),
    )
    for name, value in {"frames": "0x10", "seed": "1_000", "fps": "nan", "loop": "maybe", "clips": "１"}.items():
        yield f"form-value-{name}", form(part(name, value.encode()) + END)
    for name, value in {
        "guidance": "1e999",
        "seed": "9" * 5000,
        "frames": "",
        "region": "[" * 5000,
        "spacing": "x",
    }.items():
        yield f"form-number-{name}", form(part(name, value.encode()) + END)
    yield "asset-json", post({"file": "x"}, "/v1/assets")
    yield "asset-no-file", form(part("name") + END, "/v1/assets")
    yield "asset-two-files", form(part("file", b"\x89PNG", "a") * 2 + END, "/v1/assets")
    yield "asset-text-too", form(part("file", b"\x89PNG", "a") + part("x") + END, "/v1/assets")
    yield "asset-no-image", form(part("file", b"MZ", "a.png") + END, "/v1/assets")
    yield "asset-empty", http("POST", "/v1/assets")


def wire() -> Iterator[tuple[str, bytes]]:
    head = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    yield "no-host", b"GET /v1/videos HTTP/1.1\r\n\r\n"
    yield "http-1.0", b"GET /v1/videos HTTP/1.0\r\n\r\n"
    yield "two-hosts", b"GET /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n"
    yield "garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"
    yield "http-2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield "http-9", b"GET /v1/videos HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n"
    yield "absolute", b"GET http://evil.example/v1/videos HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    yield "space-in-name", b"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n"
    yield "zero-in-value", b"GET /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\0\r\n\r\n"
    yield "bare-cr", b"GET /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\rY: b\r\n\r\n"
    yield "folded", b"GET /v1/videos HTTP/1.1\r\nHost: evil\r\n .example\r\n\r\n"
    yield "control-in-target", b"GET /v1/\x01videos HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    yield "utf8-in-target", "GET /v1/vidéos HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    yield "long-header", b"GET /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"
    yield "many-headers", b"GET /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 200 + b"\r\n"
    yield "long-target", b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    yield "length-negative", head + b"Content-Length: -1\r\n\r\n{}"
    yield "length-huge", head + b"Content-Length: 99999999999999\r\n\r\n{}"
    yield "length-digits", head + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n{}"
    yield "length-text", head + b"Content-Length: 2x\r\n\r\n{}"
    yield "lengths-differ", head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
    yield "coding-unknown", head + b"Transfer-Encoding: gzip\r\n\r\n"
    yield "coding-twice", head + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"
    yield "chunk-no-number", head + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n"
    yield "chunk-huge", head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffffff\r\n{}\r\n0\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    yield "chunks-too-large", head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 20 + b"0\r\n\r\n"
    smuggled = b"2\r\n{}\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    yield "length-and-chunks", head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + smuggled
    yield (
        "upgrade",
        b"GET /v1/videos/x/events HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    )


GROUPS = {each.__name__: dict(each()) for each in (addresses, sites, references, typed, damaged, wire)}
