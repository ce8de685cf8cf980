"""`--server` on the command line, with a service in memory."""

from __future__ import annotations

import json

import httpx2
import pytest

from kinema.cli.main import main
from kinema.client.http import Http
from kinema.media.metadata import read_recipe

from .conftest import VIDEO, event

SERVER = ("--server", "http://service:8000")


@pytest.fixture(autouse=True)
def _service(fake, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    connect = lambda url, token: Http(url, token, httpx2.MockTransport(fake))  # noqa: E731
    monkeypatch.setattr("kinema.client.service.Http", connect)


def test_loras_and_the_model_are_named_as_the_service_lists_them(fake, capsys):
    words = ["generate", "a ball", "--lora", "style:0.5", "--lora", "other", "-m", "svd", "-o", "x.mp4", *SERVER]
    assert main(words) == 0
    assert capsys.readouterr().out == "x.mp4\n"
    assert fake.orders == [
        {"model": "svd", "request": {"task": "generate", "prompt": "a ball", "loras": {"style": 0.5, "other": 1.0}}}
    ]
    assert read_recipe("x.mp4")["stages"][0]["request"] == {"prompt": "a ball"}


def test_an_output_that_exists_is_refused_before_the_service_is_asked(fake, capsys, tmp_path):
    (tmp_path / "x.mp4").write_text("mine")
    assert main(["generate", "a ball", "-o", "x.mp4", *SERVER]) == 2
    assert "x.mp4 exists; choose another name" in capsys.readouterr().err
    assert not fake.seen


def test_a_clip_that_the_format_cannot_hold_removes_the_job(fake, capsys):
    fake.job["settled"] |= {"height": 4000, "width": 4000}
    assert main(["generate", "a ball", "-o", "x.mp4", "--zoom", "64", *SERVER]) == 2
    assert "choose a smaller zoom" in capsys.readouterr().err
    assert fake.seen[-1] == ("DELETE", f"/v1/videos/{VIDEO}")


def test_a_job_that_the_service_fails_at_exits_with_1_and_its_sentence(fake, capsys):
    def stream():
        yield event(
            "status", **{**fake.job, "status": "failed", "error": {"code": "worker_died", "message": "it died"}}
        )

    fake.streams = [stream]
    assert main(["generate", "a ball", "-o", "x.mp4", "--quiet", *SERVER]) == 1
    assert capsys.readouterr().err == "kinema: it died\n"


def test_progress_of_the_queue_and_the_steps_is_shown(fake, capsys):
    def stream():
        yield event("status", **{**fake.job, "queue_position": 1})
        yield event("phase", name="sample", detail="2 steps")
        yield event("step", index=2, total=2, share=1.0)
        yield event("phase", name="write")
        yield fake.finish()

    fake.streams = [stream]
    assert main(["generate", "a ball", "-o", "x.gif", *SERVER]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "kinema: waiting in the service's queue (position 1) …",
        "kinema: sampling (2 steps) …",
        "kinema: step 2/2, 0 s left",
        "kinema: fetching the clip …",
        "kinema: writing …",
    ]


def test_a_plan_of_an_unknown_form_is_refused(fake, capsys):
    fake.answers["POST", "/v1/videos/plan"] = httpx2.Response(200, json={"frames": 3, "forecast": {"task": 1}})
    assert main(["plan", "a ball", *SERVER]) == 2
    assert "sent an unknown kind of forecast" in capsys.readouterr().err


def test_a_plan_has_the_durations_of_earlier_jobs_and_the_services_reasons(fake, capsys):
    forecast = {
        "task": "generate",
        "model": "svd",
        "device": "cuda:0",
        "dtype": "float16",
        "size": "s",
        "latent": "l",
        "steps": 2,
        "sampling": "euler, 2 steps",
        "sampler": "euler",
        "guidance": 1.0,
        "parameters": 7,
        "weight_bytes": 1,
        "free_bytes": 100,
        "budget_bytes": 90,
        "needed_bytes": None,
        "offload": "none",
        "chunk_tokens": None,
        "compiled": False,
        "fits": True,
        "missing": [],
        "stages": [],
        "reasons": ["time: not measured (--no-measure)"],
    }
    plan = {"forecast": forecast, "notes": ["snapped"], "seconds": 4.5, "measured": "the median of 2 finished jobs"}
    fake.answers["POST", "/v1/videos/plan"] = httpx2.Response(200, json=plan)
    assert main(["plan", "a ball", "--json", *SERVER]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["seconds"], found["reasons"]) == (4.5, ["snapped", "time: the median of 2 finished jobs"])
    assert main(["plan", "a ball", *SERVER]) == 0
    assert capsys.readouterr().out.startswith("fits: about 4.5 s, 0.00 GiB of weights, ")
