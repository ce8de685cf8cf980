"""Motion scores of clips, and their mapping to the motion buckets of Stable Video Diffusion.

The score is the mean speed of a pixel, in shorter sides of the frame per second: for flow f (pixels) between
frames 1/fps apart and a shorter side s,

    motion = mean over frames and pixels of |f| · fps / s.

It does not depend on size, length or (for constant motion) frame rate. The flow is Farnebäck's, at 8 frames per second
and a shorter side of 64 pixels. Unchanged pixels count as 0, since flow there is only smoothed over from elsewhere.
Blattmann et al. 2023 (§3, appendix C) score clips by the mean of the same flow, at 2 frames per second and 16 pixels;
they did not publish their mapping to buckets. Kinema uses ``bucket = 255 · motion / (motion + middle)``: increasing,
invertible, within 0..255, and 127.5 at ``middle``.

Limits. The buckets of published weights follow their authors' mapping, so Kinema's order clips similarly but may
differ in value. Flow detects no motion on flat surfaces, follows at most about a fifth of the frame between two
frames, and reads flicker and fades as slight motion; camera shake counts. A pan of known speed is measured at 70 to
85 % of it; on rendered clips, against their scene graphs, the rank correlation is 0.87 and the median ratio 1.1
(tests/data/test_motion.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kinema.schema import BadRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from kinema.data.playroom.scene import Scene

MIDDLE = 0.1
"""Motion score of the middle bucket for filmed clips: a pan that crosses the shorter side in ten seconds."""
RATE = 8.0
"""Frame rate at which flow is computed: motion between frames is then small enough to follow."""
SHORT = 64
"""Shorter side to which frames are resized before flow is computed."""
WINDOW = 9
UNCHANGED = 2
"""Difference (of 255) up to which a pixel counts as unchanged."""


_Number = TypeVar("_Number", float, "Tensor")


def bucket(motion: _Number, middle: float = MIDDLE) -> _Number:
    """The bucket of a motion score, 0 to 255; for a float or a tensor."""
    return 255 * motion / (motion + middle)


def motion_of(bucket_: float, middle: float = MIDDLE) -> float:
    """The motion score of a bucket (below 255); the inverse of `bucket`."""
    return middle * bucket_ / (255 - bucket_)


def of_frames(frames_HWC: Iterable[NDArray[np.uint8]], fps: float) -> float:
    """The motion score of uint8 frames 1/fps apart, by Farnebäck's optical flow; 0 for a single frame.

    Raises BadRequest if OpenCV is missing or frames differ in size.
    """
    try:
        import cv2
    except ImportError:
        raise BadRequest("measuring motion by optical flow needs OpenCV: pip install 'kinema[eval]'") from None
    cv2.setNumThreads(1)  # threads slow down frames this small
    near = np.ones((3, 3), np.uint8)

    def small(frame_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = frame_HWC.shape[:2]
        scale = SHORT / min(height, width)
        size = (max(round(width * scale), SHORT), max(round(height * scale), SHORT))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(frame_HWC, size, interpolation=how))

    speeds = []
    for before, after in pairwise(map(small, frames_HWC)):
        if before.shape != after.shape:
            raise BadRequest("its frames differ in size")
        grey, then = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after))
        flow_HW2 = cv2.calcOpticalFlowFarneback(grey, then, None, 0.5, 3, WINDOW, 3, 5, 1.1, 0)
        changed = (cv2.absdiff(before, after).max(-1) > UNCHANGED).astype(np.uint8)
        speeds.append(float((np.linalg.norm(flow_HW2, axis=-1) * cv2.dilate(changed, near)).mean()))
    return float(np.mean(speeds)) * fps / SHORT if speeds else 0.0


def of_scene(scene: Scene, height: int, width: int) -> NDArray[np.float64]:
    """The motion score between neighbouring frames of a rendered clip, [T - 1], with outlines approximated as discs.

    A disc of radius r that moves at v, turns at w and grows at g (of its size per second) has the root-mean-square
    speed sqrt(v² + (w² + g²) r² / 2), weighted by its visible area and opacity. The camera's motion counts over the
    rest of the frame.
    """
    short = min(height, width)
    frames = len(scene.objects[0].size_T)
    motion, covered = np.zeros(max(frames - 1, 0)), np.zeros(max(frames - 1, 0))
    for track in scene.objects:
        place = track.position_T2 * np.array([width, height]) / short
        radius = (track.size_T[1:] + track.size_T[:-1]) / 4
        change = np.square(np.diff(place, axis=0)).sum(-1)
        inside = np.square(np.diff(track.angle_T)) * radius**2 / 2 + np.square(np.diff(track.size_T)) / 8
        area = math.pi * radius**2 * short**2 / (height * width)
        share = area * (track.visible_T * track.opacity_T)[:-1]
        motion += share * np.sqrt(change + inside)
        covered += share
    return (motion + (1 - covered).clip(0) * _camera(scene.camera, frames, height, width)) * scene.fps


def _camera(name: str, frames: int, height: int, width: int) -> NDArray[np.float64]:
    """The displacement of the background from frame to frame, in shorter sides."""
    from kinema.data.playroom.scene import View, make_camera

    camera = make_camera(name if name != "still" else None, View(frames, height, width, 1.0))
    y, x = (np.square(np.linspace(-0.5, 0.5, n) * n / min(height, width)).mean() for n in (height, width))
    pan = np.diff(camera.pan_T) * camera.zoom_T[:-1] * width / min(height, width)
    zoom = np.square(np.diff(np.log(camera.zoom_T))) * (x + y)
    return np.sqrt(np.square(pan) + zoom)
