"""`kinema serve`, the command line and `kinema.connect` together: clips, files, events and exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from PIL import Image

import kinema
from kinema.cancel import Cancel
from kinema.cli.main import main
from kinema.events import Phase, Preview, Step
from kinema.media.colour import to_uint8
from kinema.media.metadata import read_recipe
from kinema.media.read import read_video
from kinema.schema import BadRequest, Cancelled, Clip

TOKEN = "a-token-of-the-tests-0123"
MODEL = "zoetrope/tiny"
STARTED = re.compile(r"serving on (http://127\.0\.0\.1:\d+) ")


class Server:
    """A service of its own; what it prints is collected."""

    def __init__(self, folder: Path, *words: str) -> None:
        command = [sys.executable, "-m", "kinema", "serve", "--folder", str(folder), "--port", "0", "-m", MODEL]
        environment = {**os.environ, "KINEMA_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, "--threads", "1", *words], stderr=subprocess.PIPE, text=True, env=environment
        )
        self.lines: list[str] = []
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        assert self.started.wait(120), self.lines
        self.url = STARTED.search(self.lines[-1])[1]

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if STARTED.search(line):
                self.started.set()
        self.started.set()

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.thread.join(10)
        return code


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("service") / "store")
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINEMA_TOKEN", TOKEN)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return kinema.load(MODEL)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip of mine.mp4"
    torch.manual_seed(0)
    Clip((torch.rand(1, 3, 8, 16, 16) * 2 - 1).cumsum(2).clamp(-1, 1), 8.0).save(path)
    return path


def test_saved_files_equal_those_of_a_local_run_byte_for_byte(server, model):
    options = {"steps": 2, "seed": 7, "clips": 2, "negative_prompt": "a box"}
    here = model.generate("a red ball", **options)
    there = kinema.connect(server.url).generate("a red ball", **options)
    assert there.recipe == {**here.recipe, "threads": there.recipe["threads"]}
    assert there.recipe["frames_hash"] == here.recipe["frames_hash"]
    for suffix in (".mp4", ".gif", ".png"):
        ours = [Path(path) for path in here.save(f"here{suffix}")]
        others = [Path(path) for path in there.save(f"there{suffix}")]
        for one, other in zip(ours, others, strict=True):
            for a, b in zip(sorted(one.glob("*")) or [one], sorted(other.glob("*")) or [other], strict=True):
                assert a.read_bytes() == b.read_bytes(), (a, b)


def test_a_clip_with_an_add_on_equals_a_local_one_and_is_not_that_of_the_model_alone(server, tmp_path, capsys):
    torch.set_num_threads(1)
    words = ["generate", "a red ball rolls right", "-m", "animatediff-pocket", "--steps", "2", "--seed", "7"]
    add = ["--add", "style=animatediff-pocket-night"]
    files = {}
    for name, more in {"plain": [], "night": add, "again": []}.items():
        for place, to in {"here": ["--threads", "1"], "there": ["--server", server.url]}.items():
            files[name, place] = tmp_path / f"{name}-{place}.mp4"
            assert kinema_(capsys, *words, *more, *to, "-o", str(files[name, place]))[0] == 0
        assert files[name, "here"].read_bytes() == files[name, "there"].read_bytes()
    assert files["plain", "there"].read_bytes() == files["again", "there"].read_bytes()
    assert files["plain", "there"].read_bytes() != files["night", "there"].read_bytes()
    assert "style" in {each["slot"] for each in read_recipe(files["night", "there"])["stages"][0]["added"]}
    code, out, _ = kinema_(capsys, "plan", *words[1:], *add, "--server", server.url)
    assert (code, "animatediff-pocket" in out) == (0, True)
    code, _, err = kinema_(capsys, *words, "--add", "style=animatediff-pocket-nigt", "--server", server.url)
    assert (code, "there is no add-on 'animatediff-pocket-nigt'" in err) == (2, True)


def test_an_extended_clip_names_its_input_and_equals_a_local_one(server, model, source):
    options = {"steps": 2, "seed": 7, "frames": 12, "keep": 4, "prompt": "a ball"}
    here = model.extend(source, **options)
    there = kinema.connect(server.url).extend(source, **options)
    assert np.array_equal(to_uint8(there.video), to_uint8(here.video))
    assert there.recipe == here.recipe
    assert there.recipe["stages"][0]["request"]["video"] == "clip of mine.mp4"


def test_an_edited_clip_keeps_its_sound(server, model, with_sound, beep, tmp_path):
    path = with_sound(tmp_path / "beep.mp4", frames=8)
    there = kinema.connect(server.url).edit(path, "a ball", steps=2, seed=1)
    here = model.edit(path, "a ball", steps=2, seed=1)
    assert there.sound == here.sound
    assert beep(there.sound) is not None


def test_events_are_those_of_a_local_run(server, model):
    def run(by):
        heard = []
        by.generate("a red ball", steps=3, seed=7, on_event=heard.append, preview=True)
        return heard

    here, there = run(model), run(kinema.connect(server.url))

    def steps(heard):
        return [(each.index, each.total, each.share, each.log_snr) for each in heard if isinstance(each, Step)]

    def phases(heard):
        return [each.name for each in heard if isinstance(each, Phase) and each.name not in ("queue", "download")]

    assert steps(there) == steps(here)
    assert phases(there) == phases(here)
    last = [[each for each in heard if isinstance(each, Preview)][-1] for heard in (here, there)]
    assert (last[0].index, last[0].total, last[0].stage) == (last[1].index, last[1].total, last[1].stage)
    assert torch.equal(last[0].picture, last[1].picture)


def test_a_cancelled_run_keeps_its_partial_clip(server):
    token = Cancel(keep_partial=True)

    def hear(event):
        if isinstance(event, Step) and event.index >= 2:
            token.cancel()

    with pytest.raises(Cancelled) as caught:
        kinema.connect(server.url).generate("a red ball", steps=400, seed=7, cancel=token, on_event=hear)
    assert caught.value.clip is not None
    assert caught.value.clip.recipe["partial"]["steps"] == 400


def test_errors_are_the_packages_own_sentences(server, model):
    with pytest.raises(BadRequest) as here:
        model.generate("a ball", sampler="none such")
    with pytest.raises(BadRequest) as there:
        kinema.connect(server.url).generate("a ball", sampler="none such")
    assert str(there.value) == str(here.value)


def test_a_wrong_token_is_refused(server):
    with pytest.raises(BadRequest, match="token"):
        kinema.connect(server.url, token="another-token-of-others").models()


def test_the_service_lists_models_and_jobs(server):
    service = kinema.connect(server.url)
    service.generate("a ball", steps=1)
    assert MODEL in {row["id"] for row in service.models()}
    assert service.jobs(1)[0]["status"] == "completed"


def test_the_example_runs(server, tmp_path):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "service.py"))
    assert [read_video(path).shape.frames for path in example["main"](server.url, str(tmp_path / "clips"))] == [8, 16]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_openai_sdk_creates_downloads_changes_and_deletes_videos(server):
    quick = {"num_inference_steps": 2}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0) as client:
        videos = client.videos
        source = videos.create_and_poll(prompt="a red ball", seconds="1", extra_body=quick)
        assert (source.status, source.seconds, source.progress) == ("completed", "1", 100)
        files = {name: videos.download_content(source.id, variant=name).read() for name in ("thumbnail", "spritesheet")}
        assert {name: Image.open(io.BytesIO(data)).format for name, data in files.items()} == {
            "thumbnail": "WEBP", "spritesheet": "JPEG",
        }  # fmt: skip
        mp4 = videos.download_content(source.id).read()
        assert mp4[4:8] == b"ftyp"
        changed = [
            videos.remix(source.id, prompt="a blue ball"),
            videos.edit(prompt="at night", video=("clip.mp4", mp4), extra_body=quick),
            videos.extend(
                prompt="it stops", seconds="1", video=openai.omit, extra_body={"video": {"id": source.id}, **quick}
            ),
            videos.create(prompt="it rolls", input_reference=("clip.mp4", mp4), extra_body=quick),
        ]
        ended = [videos.poll(video.id) for video in changed]
        assert [(video.status, video.error) for video in ended] == [("completed", None)] * 4
        assert [float(video.seconds) for video in ended] == [1, 1, 2, 1]
        assert [video.id for video in videos.list(limit=2)][:5] == [video.id for video in (*changed[::-1], source)]
        assert videos.delete(source.id).deleted
        with pytest.raises(openai.NotFoundError):
            videos.retrieve(source.id)


# --------------------------------------------------------------------------------- the command line


def kinema_(capsys, *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    return code, *capsys.readouterr()


def test_a_verb_with_server_writes_the_file_of_a_local_run(server, capsys, source, tmp_path):
    words = ["edit", str(source), "a ball", "--steps", "2", "--seed", "3", "--quiet"]
    there = ["--server", server.url, "-o", "there.mp4", "--preview", "preview.png"]
    assert kinema_(capsys, *words, *there) == (0, "there.mp4\n", "")
    assert kinema_(capsys, *words, "-m", MODEL, "-o", "here.mp4", "--threads", "1")[0] == 0
    assert (tmp_path / "there.mp4").read_bytes() == (tmp_path / "here.mp4").read_bytes()
    assert (tmp_path / "preview.png").exists()


def test_json_events_of_a_service_end_with_the_saved_file(server, capsys):
    words = ["generate", "a ball", "--steps", "2", "--server", server.url, "--json-events", "-o", "x.gif"]
    code, out, _ = kinema_(capsys, *words)
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [each["index"] for each in events if each["event"] == "step"] == [1, 2]
    assert events[-1] == {"event": "saved", "paths": ["x.gif"]}
    assert read_recipe("x.gif")["stages"][0]["request"]["prompt"] == "a ball"


def test_a_plan_of_the_service_has_the_form_of_a_local_one(server, capsys):
    code, out, err = kinema_(capsys, "plan", "a ball", "--steps", "2", "--server", server.url)
    assert (code, err) == (0, "")
    assert re.search(r"^fits: .*\n  model +zoetrope/tiny on cpu in float32", out)
    assert "2 steps" in out


@pytest.mark.parametrize(
    "words",
    [
        ["--device", "cpu"],
        ["--dtype", "fp32"],
        ["--memory", "8GiB"],
        ["--offload", "none"],
        ["--threads", "1"],
        ["--compile"],
        ["--variant", "fp16"],
        ["--offline"],
        ["--record-paths"],
        ["--lora-folder", "."],
        ["--embeddings", "."],
        ["--chunk-tokens", "8"],
    ],
)
def test_an_option_of_this_machine_is_refused_by_name(words, capsys):
    code, _, err = kinema_(capsys, "generate", "a ball", "--server", "http://127.0.0.1:1", *words)
    assert code == 2
    assert err == f"kinema: {words[0]} applies to this machine; leave it out with --server, which runs on another\n"


def test_a_prompt_file_is_refused_with_server(capsys, tmp_path):
    (tmp_path / "p.txt").write_text("a ball\n")
    code, _, err = kinema_(capsys, "generate", "--prompts", "p.txt", "--server", "http://127.0.0.1:1")
    assert code == 2
    assert "--prompts is read by a model on this machine" in err


def test_ctrl_c_cancels_the_job_of_the_service(server, capsys, monkeypatch):
    monkeypatch.setattr("kinema.cli.progress.Lines.__call__", interrupting)
    words = ["generate", "a ball", "--steps", "400", "--server", server.url, "-o", "ball.mp4"]
    assert kinema_(capsys, *words)[0] == 130
    jobs = kinema.connect(server.url).jobs(100)
    assert not [job for job in jobs if job["status"] in ("queued", "in_progress", "cancelling")]
    code, out, err = kinema_(capsys, *words, "--keep-partial")
    assert (code, out) == (130, "ball.partial.mp4\n")
    assert "the partial clip is ball.partial.mp4" in err


def interrupting(_self, event):
    if isinstance(event, Step) and event.index == 2:
        signal.raise_signal(signal.SIGINT)


# -------------------------------------------------------------------------------------------- the end


def test_ctrl_c_ends_the_service_and_names_the_job_that_it_interrupts(server):
    """The last test of this module, since it stops the module's service."""
    job = kinema.connect(server.url).http.json(
        "POST", "/v1/videos", json={"request": {"prompt": "a ball", "steps": 400, "task": "generate"}}
    )
    for event in kinema.connect(server.url).http.messages(f"/v1/videos/{job['id']}/events"):
        if event.kind == "step":
            break
    assert server.stop() == 130
    assert server.lines[-2].startswith(f"kinema: {job['id']} was running and is interrupted; retry it with POST /v1/")
    assert server.lines[-1] == "kinema: stopped"
    assert TOKEN not in "\n".join(server.lines)
