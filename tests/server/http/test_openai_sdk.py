"""The `openai` SDK, unchanged, against a listening service."""

from __future__ import annotations

import asyncio

import openai
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def videos(service):
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        yield client.videos


def done(videos, **values):
    return videos.create_and_poll(prompt="a red ball rolls right", **values)


def test_create_answers_a_waiting_video_and_poll_returns_it_completed(videos):
    created = videos.create(prompt="a red ball", model="zoetrope", seconds="2", size="64x48")
    assert (created.object, created.model, created.seconds, created.size) == ("video", "zoetrope", "2", "64x48")
    assert created.status in ("queued", "in_progress")
    finished = videos.poll(created.id)
    assert (finished.status, finished.progress, finished.error) == ("completed", 100, None)
    assert finished.completed_at >= finished.created_at


def test_create_and_poll_takes_a_reference_image_as_a_file(videos, png):
    video = done(videos, input_reference=("ball.png", png, "image/png"))
    assert (video.status, video.verb) == ("completed", "animate")
    assert video.request["image"].startswith("asset-")


def test_the_extensions_of_other_servers_arrive_through_extra_body(videos):
    video = videos.create(
        prompt="a red ball",
        extra_body={
            "num_frames": 9, "fps": 12.5, "seed": 3, "num_inference_steps": 5, "guidance_scale": 2.5,
            "negative_prompt": "blur", "lora": {"name": "ball", "scale": 0.5}, "extra_params": {"motion_bucket": 127},
            "loop": True, "free_init_stop": [0.25, 0.5], "prompt_spans": {"4-8": "a blue ball"},
        },
    )  # fmt: skip
    assert video.request == {
        "task": "generate", "prompt": "a red ball", "frames": 9, "fps": 12.5, "seed": 3, "steps": 5, "guidance": 2.5,
        "negative_prompt": "blur", "loras": {"ball": 0.5}, "extra": {"motion_bucket": 127}, "loop": True,
        "free_init_stop": [0.25, 0.5], "prompt_spans": {"4-8": "a blue ball"},
    }  # fmt: skip


def test_json_bodies_give_the_same_order_as_forms(service, videos):
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any") as client:
        body = {"prompt": "a red ball", "seconds": 2, "size": "64x48", "fps": 6}
        as_json = client.post("/videos", body=body, cast_to=openai.types.Video)
    as_form = videos.create(prompt="a red ball", seconds="2", size="64x48", extra_body={"fps": 6})
    assert as_json.request == as_form.request
    assert as_json.num_frames == 12


def test_list_pages_through_all_videos_newest_first(videos):
    made = [videos.create(prompt=f"ball {number}").id for number in range(5)]
    first = videos.list(limit=2)
    assert [video.id for video in first.data] == made[:2:-1]
    assert first.has_more
    every = [video.id for video in videos.list(limit=2)]
    assert every[:5] == made[::-1]
    assert len(every) == len(set(every))
    assert every == [video.id for video in videos.list(limit=2, order="asc")][::-1]


def test_retrieve_says_when_to_ask_again(videos):
    video = videos.create(prompt="a red ball")
    answer = videos.with_raw_response.retrieve(video.id)
    assert int(answer.headers["openai-poll-after-ms"]) >= 100
    assert answer.parse().id == video.id


@pytest.mark.parametrize(
    ("variant", "start"), [("video", b"\0\0\0\x18ftyp"), ("thumbnail", b"RIFF"), ("spritesheet", b"\xff\xd8\xff")]
)
def test_download_content_returns_each_variant(videos, variant, start):
    assert videos.download_content(done(videos).id, variant=variant).read().startswith(start)


def test_a_remix_keeps_the_seed_and_the_size_and_names_its_source(videos):
    source = done(videos, size="64x48")
    remixed = videos.remix(source.id, prompt="a blue ball")
    assert (remixed.prompt, remixed.remixed_from_video_id) == ("a blue ball", source.id)
    assert (remixed.seed, remixed.size) == (source.seed, source.size)
    assert remixed.request["seed"] == source.seed


def test_an_edit_takes_an_upload_or_the_identifier_of_a_video(videos, mp4):
    uploaded = videos.edit(prompt="at night", video=("clip.mp4", mp4, "video/mp4"))
    assert (uploaded.verb, uploaded.request["video"][:6]) == ("edit", "asset-")
    source = done(videos)
    # SDK 3.57 refuses {"id": …} for video before it sends anything, although its types permit it.
    edited = videos.edit(prompt="at night", video=openai.omit, extra_body={"video": {"id": source.id}})
    assert (edited.verb, edited.request["video"]) == ("edit", source.id)


def test_an_extension_adds_its_seconds_to_the_clip(videos, mp4):
    source = done(videos, extra_body={"num_frames": 12})
    extended = videos.extend(prompt="it stops", seconds="2", video=openai.omit, extra_body={"video": {"id": source.id}})
    assert (extended.verb, extended.num_frames) == ("extend", 12 + 2 * 8)
    uploaded = videos.extend(prompt="it stops", seconds="2", video=("clip.mp4", mp4))
    assert uploaded.num_frames == 10 + 2 * 8


def test_delete_confirms_and_the_video_is_gone(videos):
    video = done(videos)
    answer = videos.delete(video.id)
    assert (answer.id, answer.deleted, answer.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError) as error:
        videos.retrieve(video.id)
    assert (error.value.code, error.value.type) == ("not_found", "invalid_request_error")


def test_errors_carry_the_sentence_and_the_field(videos):
    with pytest.raises(openai.BadRequestError, match="seed is -1; expected 0 to") as error:
        videos.create(prompt="a red ball", extra_body={"seed": -1})
    assert (error.value.param, error.value.type) == ("seed", "invalid_request_error")


def test_characters_are_refused_in_a_sentence(videos, mp4):
    with pytest.raises(openai.BadRequestError, match="no characters"):
        videos.create_character(name="ball", video=mp4)
    with pytest.raises(openai.BadRequestError, match="no characters"):
        videos.get_character("char_1")


def test_the_asynchronous_client_creates_polls_and_downloads(service):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any") as client:
            video = await client.videos.create_and_poll(prompt="a red ball")
            return (await client.videos.download_content(video.id)).read()

    assert b"ftyp" in asyncio.run(run())


def test_lists_of_tables_survive_the_forms_of_the_sdk(videos):
    loras = [{"name": "ball", "scale": 0.5}, {"name": "zoetrope", "scale": -1.5}]
    assert videos.create(prompt="x", extra_body={"lora": loras}).request["loras"] == {"ball": 0.5, "zoetrope": -1.5}
    with pytest.raises(openai.BadRequestError, match="send the body as JSON"):
        videos.create(prompt="x", extra_body={"lora": [{"name": "ball"}, {"name": "zoetrope", "scale": 1.0}]})
