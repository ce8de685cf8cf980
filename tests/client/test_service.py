"""The methods of a model over a service: requests, events, cancelling, files and errors."""

from __future__ import annotations

import base64
import io
import json
import math
import subprocess
import sys
from hashlib import sha256

import httpx2
import numpy as np
import pytest
from PIL import Image

import kinema
from kinema.api import Model
from kinema.cancel import Cancel
from kinema.client.inputs import Sent
from kinema.client.service import Service
from kinema.events import Memory, Note, Phase, Preview, Step
from kinema.media.colour import to_uint8
from kinema.schema import TASK_FIELDS, BadRequest, Cancelled, JobFailed, Request
from kinema.verbs import Verbs

from .conftest import RECIPE, SETTLED, VIDEO, event, frames, npz


def test_connecting_loads_neither_torch_nor_anything_of_the_server():
    code = "import sys, kinema; kinema.connect('http://127.0.0.1:1'); print([m for m in sys.modules if m in "
    code += "('torch', 'numpy', 'fastapi') or m.startswith('kinema.server')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_model_and_a_service_have_a_method_for_each_task():
    assert all(callable(getattr(Verbs, task)) for task in TASK_FIELDS)
    assert issubclass(Service, Verbs)
    assert issubclass(Model, Verbs)


def test_a_clip_has_the_frames_the_sound_and_the_recipe_that_the_service_sends(fake):
    fake.content["frames"] = npz(frames=frames(), sound=np.frombuffer(b"sound", np.uint8), fps=np.array(8.0))
    clip = fake.service().generate("a ball", seed=7)
    assert np.array_equal(to_uint8(clip.video), frames())
    assert (clip.fps, clip.sound, clip.recipe) == (8.0, b"sound", RECIPE)
    assert fake.orders == [{"request": {"task": "generate", "prompt": "a ball", "seed": 7}}]


def test_a_batch_arrives_whole(fake):
    fake.job["settled"]["clips"] = 2
    fake.content["frames"] = npz(frames=frames(2))
    assert np.array_equal(to_uint8(fake.service().generate("a ball", clips=2).video), frames(2))


def test_the_model_is_named_in_the_order_and_the_token_is_sent(fake):
    fake.service(model="svd", token="secret-secret-secret").generate("a ball")
    assert fake.orders[0]["model"] == "svd"
    assert {headers["authorization"] for headers in fake.headers} == {"Bearer secret-secret-secret"}


def test_the_token_of_the_environment_is_used_and_no_other_is_sent(fake, monkeypatch):
    fake.service().generate("a ball")
    assert not [headers for headers in fake.headers if "authorization" in headers]
    monkeypatch.setenv("KINEMA_TOKEN", "of-the-environment")
    assert kinema.connect("http://x").http.client.headers["authorization"] == "Bearer of-the-environment"


def test_the_size_is_reported_before_the_clip_and_a_refusal_of_it_removes_the_job(fake):
    sizes = []
    fake.service().run(Request(prompt="a ball"), on_settled=lambda r: sizes.append((r.shape.bcthw, r.fps)))
    assert sizes == [((1, 3, 3, 4, 6), 8.0)]

    def refuse(_request):
        raise BadRequest("too large for a gif")

    with pytest.raises(BadRequest, match="too large for a gif"):
        fake.service().run(Request(prompt="a ball"), on_settled=refuse)
    assert fake.seen[-1] == ("DELETE", f"/v1/videos/{VIDEO}")


# ----------------------------------------------------------------------------------------- events


def strip(count=2) -> tuple[np.ndarray, str]:
    frames_THWC = np.random.default_rng(1).integers(0, 256, (count, 3, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames_THWC), axis=1)).save(file, "png")
    return frames_THWC, base64.b64encode(file.getvalue()).decode()


def test_events_arrive_as_those_of_a_local_run(fake):
    frames_THWC, text = strip()

    def stream():
        yield event("status", **{**fake.job, "notes": ["the size is 4×6"], "queue_position": 2})
        yield event("status", **{**fake.job, "queue_position": 2})
        yield b": ping\n\n"
        yield event("phase", name="load", detail="zoetrope", stage="base")
        yield event("note", message="the size is 4×6")
        yield event("note", message="another")
        yield event("step", index=1, total=2, log_snr=None, share=0.5, stage="base")
        yield event("step", index=2, total=2, log_snr=-1.5, share=None)
        yield event("preview", index=2, total=2, stage="base", frames=2, mime="image/png", data=text)
        yield event("memory", peak_bytes=5)
        yield event("phase", name="write", detail="")
        yield event("unknown", anything=1)
        yield fake.finish()

    fake.streams = [stream]
    heard = []
    fake.service().generate("a ball", on_event=heard.append, preview=True)
    preview = next(each for each in heard if isinstance(each, Preview))
    assert np.array_equal(preview.picture.numpy(), frames_THWC)
    assert (preview.index, preview.total, preview.stage) == (2, 2, "base")
    rest = [each for each in heard if not isinstance(each, Preview)]
    assert math.isnan(rest[4].log_snr)
    assert [*rest[:4], *rest[5:]] == [
        Note("the size is 4×6"),
        Phase("queue", "position 2"),
        Phase("load", "zoetrope"),
        Note("another"),
        Step(2, 2, -1.5),
        Memory(5),
        Phase("download"),
    ]
    assert (rest[4].index, rest[4].share) == (1, 0.5)


@pytest.mark.parametrize("preview", [False, True])
def test_previews_are_asked_for_only_if_wanted(fake, preview):
    fake.service().generate("a ball", preview=preview)
    assert ("GET", f"/v1/videos/{VIDEO}/events?previews={str(preview).lower()}") in fake.seen


def test_a_broken_stream_is_opened_again(fake):
    def broken():
        yield event("step", index=1, total=2)
        raise httpx2.ReadError("reset by peer")

    fake.streams = [broken, fake.completed]
    heard = []
    fake.service().generate("a ball", on_event=heard.append)
    assert [each.index for each in heard if isinstance(each, Step)] == [1]
    assert sum(path.endswith("previews=false") for _, path in fake.seen) == 2


def test_without_streams_the_state_is_asked_for(fake):
    polled = []

    def state(_request):
        polled.append(1)
        if len(polled) == 3:
            fake.finish()
        return httpx2.Response(200, json=fake.job)

    refusal = httpx2.Response(429, json={"error": {"message": "256 event streams are open"}})
    fake.answers = {("GET", f"/v1/videos/{VIDEO}/events"): lambda _: refusal, ("GET", f"/v1/videos/{VIDEO}"): state}
    assert fake.service().generate("a ball").shape.frames == 3
    assert len(polled) == 3


def test_a_question_that_fails_once_is_asked_again(fake):
    asked = []

    def state(_request):
        asked.append(1)
        if len(asked) == 1:
            raise httpx2.ConnectError("refused")
        fake.finish()
        return httpx2.Response(200, json=fake.job)

    fake.streams = [lambda: iter([event("step", index=1, total=2)])]
    fake.answers["GET", f"/v1/videos/{VIDEO}"] = state
    assert fake.service().generate("a ball").shape.frames == 3
    assert len(asked) == 2


def test_a_service_that_is_lost_ends_the_run_with_a_sentence(fake, monkeypatch):
    monkeypatch.setattr("kinema.client.following.PATIENCE", 0.05)

    def lost(_request):
        raise httpx2.ConnectError("refused")

    def stream():
        yield event("step", index=1, total=2)
        fake.answers = {("GET", f"/v1/videos/{VIDEO}{end}"): lost for end in ("", "/events")}
        fake.answers["DELETE", f"/v1/videos/{VIDEO}"] = lost

    fake.streams = [stream]
    with pytest.raises(JobFailed, match=r"cannot reach a service at http://service:8000 \(refused\)"):
        fake.service().generate("a ball")


# -------------------------------------------------------------------------------------- cancelling


def cancelling(fake, *, keep: bool):
    token = Cancel(keep_partial=keep)
    fake.streams = [fake.until_deleted]
    return token, lambda each: token.cancel() if isinstance(each, Step) else None


def test_a_cancelled_run_removes_its_job(fake):
    token, hear = cancelling(fake, keep=False)
    with pytest.raises(Cancelled) as caught:
        fake.service().generate("a ball", cancel=token, on_event=hear)
    assert caught.value.clip is None
    assert fake.seen[-2:] == [("POST", f"/v1/videos/{VIDEO}/cancel"), ("DELETE", f"/v1/videos/{VIDEO}")]


def kept(fake, status, count):
    def answer(_request):
        fake.finish(status, error={"code": "cancelled", "message": "cancelled after step 1 of 2"})
        fake.job["result"]["frames"] = count
        fake.content["frames"] = npz(frames=frames(count=count))
        fake.deleted.set()
        return httpx2.Response(200, json=fake.job)

    fake.answers["POST", f"/v1/videos/{VIDEO}/cancel"] = answer


def test_a_partial_clip_comes_with_the_exception(fake):
    token, hear = cancelling(fake, keep=True)
    kept(fake, "cancelled", 2)
    with pytest.raises(Cancelled, match="after step 1 of 2") as caught:
        fake.service().generate("a ball", cancel=token, on_event=hear)
    assert caught.value.clip.shape.frames == 2
    assert ("POST", f"/v1/videos/{VIDEO}/cancel?keep_partial=true") in fake.seen
    assert ("DELETE", f"/v1/videos/{VIDEO}") not in fake.seen


@pytest.mark.parametrize("keep", [False, True])
def test_a_clip_that_is_finished_first_beats_the_cancel(fake, keep):
    token, hear = cancelling(fake, keep=keep)
    kept(fake, "completed", 3)
    assert fake.service().generate("a ball", cancel=token, on_event=hear).shape.frames == 3
    assert ("DELETE", f"/v1/videos/{VIDEO}") not in fake.seen


def test_a_token_that_is_set_before_sends_nothing(fake):
    token = Cancel()
    token.cancel()
    with pytest.raises(Cancelled):
        fake.service().generate("a ball", cancel=token)
    assert not fake.seen


@pytest.mark.parametrize("partial", [False, True])
def test_a_job_that_another_client_cancels_raises_cancelled(fake, partial):
    def stream():
        yield fake.finish("cancelled") if partial else fake.finish("cancelled", result=None)

    fake.streams = [stream]
    with pytest.raises(Cancelled) as caught:
        fake.service().generate("a ball")
    assert caught.value.clip is None
    assert not [path for method, path in fake.seen if method == "DELETE"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_of_the_listener_removes_the_job(fake, error):
    def hear(each):
        if isinstance(each, Step):
            raise error

    fake.streams = [fake.until_deleted]
    with pytest.raises(error):
        fake.service().generate("a ball", on_event=hear)
    assert fake.deleted.is_set()


# ------------------------------------------------------------------------------------------ errors


def test_the_services_sentence_is_the_message(fake):
    answer = httpx2.Response(400, json={"error": {"message": "frames is 9999; expected 1 to 512", "code": "invalid"}})
    fake.answers["POST", "/v1/videos"] = answer
    with pytest.raises(BadRequest, match=r"^frames is 9999; expected 1 to 512$"):
        fake.service().generate("a ball")


def test_an_answer_of_something_else_names_the_address(fake):
    fake.answers["POST", "/v1/videos"] = httpx2.Response(502, content=b"<html>bad gateway</html>")
    with pytest.raises(BadRequest, match=r"http://service:8000 answered 502; is it the address of a kinema service\?"):
        fake.service().generate("a ball")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("failed", "invalid_request", BadRequest),
        ("failed", "worker_died", JobFailed),
        ("interrupted", "interrupted", JobFailed),
    ],
)
def test_a_job_that_fails_raises_its_sentence(fake, status, code, kind):
    def stream():
        yield fake.finish(status, error={"code": code, "message": "it did not work"}, result=None)

    fake.streams = [stream]
    with pytest.raises(kind, match=r"^it did not work$"):
        fake.service().generate("a ball")
    assert not fake.deleted.is_set()


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://a:b@c", "http://x/?a=b", "http://x:port"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(BadRequest, match="the service's address .*expected an address such as"):
        kinema.connect(url)


def test_an_address_with_the_path_of_the_sdk_is_accepted():
    assert kinema.connect("https://host/kinema/v1/").http.url == "https://host/kinema"


def test_nothing_at_the_address_is_a_sentence():
    with pytest.raises(JobFailed, match="cannot reach a service at http://127.0.0.1:1 .*start one with `kinema serve`"):
        kinema.connect("http://127.0.0.1:1").models()


# -------------------------------------------------------------------------------------------- files


@pytest.fixture
def media(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["a.png", "b.png"]):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(name)
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "folder").mkdir()
    return tmp_path


def test_files_are_sent_once_by_content_and_named_by_identifier(fake, media):
    service = fake.service()
    phases = []
    options = {"keyframes": {2: "b.png"}, "last_image": "copy.png"}
    service.animate("a.png", "a ball", on_event=phases.append, **options)
    service.animate(media / "a.png", "a ball")
    assert fake.assets == {f"asset-{n:020d}": (media / name).read_bytes() for n, name in enumerate(["a.png", "b.png"])}
    first, second = (order["request"] for order in fake.orders)
    assert (first["image"], first["last_image"], first["keyframes"]) == (
        *[f"asset-{0:020d}"] * 2,
        {"2": f"asset-{1:020d}"},
    )
    assert second["image"] == first["image"]
    assert [each for each in phases if isinstance(each, Phase)][:2] == [
        Phase("upload", "a.png"),
        Phase("upload", "b.png"),
    ]


def test_notes_and_refusals_name_files_as_the_caller_does(fake, media):
    """The service knows `a.png` by its identifier only; another one's identifier stays."""
    asset, service, events = f"asset-{0:020d}", fake.service(), []
    fake.job["notes"] = [f"kept the first frame of {asset}, not of {VIDEO}"]
    service.animate("a.png", "a ball", on_event=events.append)
    assert Note(f"kept the first frame of a.png, not of {VIDEO}") in events
    error = {"error": {"message": f"{asset} is 64×64", "code": "invalid_request"}}
    for path, ask in (("/v1/videos", "run"), ("/v1/videos/plan", "plan")):
        fake.answers["POST", path] = httpx2.Response(400, json=error)
        with pytest.raises(BadRequest, match=r"^a\.png is 64×64$"):
            getattr(service, ask)(Request(task="animate", prompt="a ball", image="a.png"))


def test_a_failed_job_names_files_as_the_caller_does(fake, media):
    error = {"message": f"asset-{0:020d} is damaged", "code": "failed"}
    fake.streams = [lambda: iter([fake.finish("failed", error=error)])]
    with pytest.raises(JobFailed, match=r"^a\.png is damaged$"):
        fake.service().animate("a.png", "a ball")


@pytest.mark.parametrize(
    ("token", "what"), [(None, "asks for a token"), ("x" * 20, "does not accept this token")], ids=["none", "wrong"]
)
def test_a_missing_and_a_wrong_token_are_told_apart(fake, token, what):
    fake.answers["GET", "/v1/models"] = httpx2.Response(401, json={"error": {"message": "no"}})
    service = fake.service(token=token) if token else fake.service()
    with pytest.raises(BadRequest, match=f"{what}; set KINEMA_TOKEN"):
        service.models()


def test_files_that_are_gone_from_the_service_are_sent_again_once(fake, media):
    service = fake.service()
    options = {"keyframes": {2: "b.png"}}
    service.animate("a.png", "a ball", **options)
    gone = [f"asset-{n:020d}" for n in range(2)]

    def create(request):
        order = json.loads(request.read())
        text = json.dumps(order)
        fake.orders.append(order)
        for each in gone:
            if each in text:
                return httpx2.Response(404, json={"error": {"message": f"there is no asset {each!r}"}})
        return httpx2.Response(200, json=fake.job)

    fake.answers["POST", "/v1/videos"] = create
    service.animate("a.png", "a ball", **options)
    assert fake.orders[-1]["request"]["image"] == f"asset-{2:020d}"
    assert len(fake.assets) == 4
    gone += [f"asset-{n:020d}" for n in range(2, 6)]
    with pytest.raises(BadRequest, match="there is no asset"):  # a service that loses what was sent just now
        service.animate("a.png", "a ball")
    assert len(fake.assets) == 5


def test_a_video_of_the_service_needs_no_upload(fake, media):
    fake.service().extend(VIDEO, frames=8)
    assert fake.orders[0]["request"]["video"] == VIDEO
    assert not fake.assets


def test_a_file_named_like_an_identifier_is_sent(fake, media):
    (media / VIDEO).write_bytes((media / "a.png").read_bytes())
    fake.service().animate(VIDEO, "a ball")
    assert fake.orders[0]["request"]["image"] == f"asset-{0:020d}"


@pytest.mark.parametrize(
    ("name", "sentence"), [("c.png", "there is no file"), ("folder", "is a folder; a service takes")]
)
def test_a_missing_file_and_a_folder_are_refused_before_anything_is_sent(fake, media, name, sentence):
    with pytest.raises(BadRequest, match=sentence):
        fake.service().animate(name, "a ball")
    assert not fake.seen


@pytest.mark.parametrize("model", ["ad", None])
def test_files_in_the_options_of_a_family_are_sent_too(fake, media, model):
    rows = [{"id": "zoetrope", "family": "zoetrope"}, {"id": "ad", "family": "animatediff", "default": True}]
    fake.answers["GET", "/v1/models"] = httpx2.Response(200, json={"data": rows})
    fake.service(model=model).generate("a ball", extra={"control.depth": "a.png", "motion_scale": 1.0})
    assert fake.orders[0]["request"]["extra"] == {"control.depth": f"asset-{0:020d}", "motion_scale": 1.0}


def test_rows_of_models_have_the_tables_that_they_share(fake):
    help_ = {"motion_bucket": "how much moves"}
    rows = [
        {"id": "a", "defaults": {"fps": 8, "sampler": "extra-1", "extra": "extra-1", "sizes": "sizes-9"}},
        {"id": "b", "defaults": None},
    ]
    answer = {"data": rows, "shared": {"extra-1": help_}}
    fake.answers["GET", "/v1/models"] = httpx2.Response(200, json=answer)
    whole, other = fake.service().models()
    assert whole["defaults"] == {"fps": 8, "sampler": "extra-1", "extra": help_, "sizes": "sizes-9"}
    assert other == rows[1]


def test_the_fields_with_files_are_those_that_recipes_are_renamed_in(fake, media):
    request = Request(task="animate", prompt="a ball", image="a.png", last_image=VIDEO, keyframes={2: "b.png"})
    sent = fake.service().uploads.send(request, [].append)
    assert sent.fields == {"image": "a.png", "keyframes": {"2": "b.png"}}


def test_recipes_have_the_own_names_of_files_again():
    digest = sha256(b"x").hexdigest()
    sent = Sent(Request(), {"image": "a.png", "keyframes": {"2": "b.png"}}, {digest: "depth.mp4"})
    request = {"image": "asset-1.png", "keyframes": {"2": "asset-2.png"}, "extra": {"control": ["asset-3", "other"]}}
    recipe = {"stages": [{"request": {"prompt": "x"}}, {"request": request}], "extra_inputs": {"asset-3": digest}}
    renamed = sent.renamed(recipe)
    assert renamed["stages"][0]["request"] == {"prompt": "x"}
    assert renamed["stages"][1]["request"] == {
        "image": "a.png",
        "keyframes": {"2": "b.png"},
        "extra": {"control": ["depth.mp4", "other"]},
    }
    assert renamed["extra_inputs"] == {"depth.mp4": digest}


# -------------------------------------------------------------------------------------------- lists


def test_jobs_are_listed_over_pages(fake):
    def page(request):
        start = int(request.url.params.get("after", "0"))
        limit = int(request.url.params["limit"])
        rows = [{"id": str(number)} for number in range(start + 1, min(start + limit, 150) + 1)]
        return httpx2.Response(200, json={"data": rows, "has_more": start + limit < 150})

    fake.answers["GET", "/v1/videos"] = page
    assert [row["id"] for row in fake.service().jobs(120)] == [str(n) for n in range(1, 121)]
    fake.seen.clear()
    assert len(fake.service().jobs(500)) == 150
    assert len(fake.seen) == 2


def test_a_plan_is_what_the_service_answers(fake):
    def answer(request):
        fake.orders.append(json.loads(request.read()))
        return httpx2.Response(200, json={"object": "video.plan", **SETTLED})

    fake.answers["POST", "/v1/videos/plan"] = answer
    assert fake.service(model="svd").plan(Request(prompt="a ball"))["frames"] == 3
    assert fake.orders == [{"model": "svd", "request": {"task": "generate", "prompt": "a ball"}}]


def test_an_option_that_a_task_does_not_have_is_refused_by_name(fake):
    with pytest.raises(BadRequest, match="generate does not have this option: .*colour"):
        fake.service().generate("a ball", colour="red")
