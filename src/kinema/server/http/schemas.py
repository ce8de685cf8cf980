"""What answers look like, for the OpenAPI page. Keys besides OpenAI's are the service's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kinema.server.jobs import Status


class Open(BaseModel):
    """An answer that may have more keys."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class VideoError(BaseModel):
    code: str
    message: str


class Video(Open):
    """A video, finished or not, as the OpenAI SDK reads it."""

    id: str
    object: Literal["video"]
    model: str
    add: dict[str, str] = Field(description="add-ons of the model by slot")
    status: Status
    progress: int = Field(ge=0, le=100)
    created_at: int
    started_at: int | None
    completed_at: int | None
    expires_at: int | None
    error: VideoError | None
    prompt: str
    remixed_from_video_id: str | None
    seconds: str
    size: str
    verb: str
    seed: int
    fps: float
    num_frames: int
    queue_position: int | None = Field(description="place in the queue, from 0; null unless queued")
    notes: list[str] = Field(description="choices made for the user")
    settled: dict[str, Any]
    result: dict[str, Any] | None


class VideoList(BaseModel):
    object: Literal["list"]
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    id: str
    object: Literal["video.deleted"]
    deleted: bool
    status: Status


class Plan(Open):
    """What a body would give, without running it."""

    object: Literal["video.plan"]
    frames: int
    fps: float
    height: int
    width: int
    clips: int
    steps: int
    seed: int
    task: str
    notes: list[str]
    seconds: float | None = Field(description="expected duration of the job, from earlier jobs")
    measured: str
    devices: list[str] = Field(description="devices that can run it, where others of the service cannot")
    forecast: dict[str, Any]


class Masks(BaseModel):
    """Masks of all frames, at a reduced size."""

    object: Literal["masks"]
    frames: int
    width: int = Field(description="of one mask, in pixels")
    height: int
    columns: int = Field(description="masks in a row of the image")
    image: str = Field(description="base64 of one png, white where new content is generated")


class Queue(Open):
    object: Literal["queue"]
    paused: bool
    queued: list[str]
    running: list[str]
    workers: list[dict[str, Any]]


class Asset(BaseModel):
    """An uploaded image or clip."""

    id: str
    object: Literal["asset"]
    kind: Literal["image", "video"]
    name: str
    bytes: int
    created_at: int
    frames: int
    fps: float | None
    height: int
    width: int


class AssetList(BaseModel):
    object: Literal["list"]
    data: list[Asset]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    id: str
    object: str
    deleted: bool


class Model(Open):
    id: str
    object: Literal["model"]
    kind: str
    here: bool


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]
    shared: dict[str, Any] = Field(
        description="the tables `extra` (options of the family, with their help) and `sizes` (named sizes) of "
        "`defaults`, which names them here: models have them in common"
    )
    downloads: bool = Field(description="whether clients may start downloads")


class Health(BaseModel):
    status: Literal["ok"]
