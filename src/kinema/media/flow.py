"""Optical flow between frames of a clip (OpenCV's dense inverse search), and painted masks carried along it.

H×W×2 flows are in pixels, x first. Frames are grey, uint8 T×H×W; masks are booleans.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinema.schema import BadRequest

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

LEAST = 16
"""Smallest side of frames for OpenCV's search, which crashes the process for smaller ones."""
_LUMA = (0.2126, 0.7152, 0.0722)  # BT.709


class Flows:
    """Grey frames of one clip, uint8 T×H×W, and cached optical flow between pairs of them.

    Dense inverse search (Kroeger et al. 2016), H×W×2 in pixels: I_i(x) = I_j(x + flow(x)). Raises `BadRequest` without
    OpenCV.
    """

    def __init__(self, grey_THW: Grey) -> None:
        try:
            import cv2
        except ImportError as error:
            raise BadRequest("optical flow requires OpenCV; install it with: pip install 'kinema[eval]'") from error
        self.cv2: Any = cv2
        self.search = self.cv2.DISOpticalFlow_create(self.cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.grey_THW = grey_THW
        self.found: dict[tuple[int, int], Floats] = {}
        self.y, self.x = np.mgrid[0 : grey_THW.shape[1], 0 : grey_THW.shape[2]].astype(np.float32)

    def between(self, i: int, j: int) -> Floats:
        """Return the flow from frame i to frame j, cached."""
        if (i, j) not in self.found:
            self.found[i, j] = self.computed(i, j)
        return self.found[i, j]

    def computed(self, i: int, j: int) -> Floats:
        """Return the flow from frame i to frame j without caching it."""
        height, width = self.grey_THW.shape[1:]
        flow: Floats = self.search.calc(self._padded(i), self._padded(j), None)
        return flow[:height, :width]

    def _padded(self, frame: int) -> Grey:
        """Return a frame, whose edges are repeated up to the smallest sides that the search takes."""
        grey = self.grey_THW[frame]
        down, right = (max(0, LEAST - side) for side in grey.shape)
        return np.pad(grey, ((0, down), (0, right)), "edge") if down or right else grey

    def sample(self, values: NDArray[Any], flow: NDArray[Any]) -> Floats:
        """Sample ``values`` H×W or H×W×2 at every pixel displaced by ``flow``, bilinear, edges replicated."""
        sampled: Floats = self.cv2.remap(
            values.astype(np.float32),
            self.x + flow[..., 0],
            self.y + flow[..., 1],
            self.cv2.INTER_LINEAR,
            borderMode=self.cv2.BORDER_REPLICATE,
        )
        return sampled


def carried(painted: Mapping[int, Mask], video_THWC: NDArray[np.uint8]) -> Mask:
    """Carry masks H×W, painted for some frames, to all frames of a clip: T×H×W.

    A painted frame keeps its mask. Between two of them, both masks are carried along the flow and mixed by distance in
    time; before the first and after the last, only that one is carried.
    """
    grey_THW = np.rint(video_THWC.astype(np.float32) @ np.asarray(_LUMA, np.float32)).astype(np.uint8)
    frames, last = sorted(painted), len(grey_THW) - 1
    if len(frames) == len(grey_THW):
        return np.stack([painted[frame] for frame in frames])
    flows = Flows(grey_THW)
    share_THW = np.zeros(grey_THW.shape, np.float32)
    for frame in frames:
        share_THW[frame] = painted[frame]
    for frame, share in _walk(flows, painted[frames[0]], range(frames[0], -1, -1)):
        share_THW[frame] = share
    for frame, share in _walk(flows, painted[frames[-1]], range(frames[-1], last + 1)):
        share_THW[frame] = share
    for first, second in pairwise(frames):
        for frame, share in _walk(flows, painted[first], range(first, second)):
            share_THW[frame] += share * (second - frame) / (second - first)
        for frame, share in _walk(flows, painted[second], range(second, first, -1)):
            share_THW[frame] += share * (frame - first) / (second - first)
    return share_THW >= 0.5


def _walk(flows: Flows, mask: Mask, order: range) -> list[tuple[int, Floats]]:
    """Carry a mask from the first frame of ``order`` to each other one.

    Positions are followed instead of the mask, which would blur a little more at every frame.
    """
    place_HW2 = np.stack([flows.x, flows.y], -1)
    found = []
    for before, frame in pairwise(order):
        place_HW2 = flows.sample(place_HW2, flows.computed(frame, before))
        found.append((frame, flows.sample(mask, place_HW2 - np.stack([flows.x, flows.y], -1))))
    return found
