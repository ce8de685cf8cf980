"""Tone mapping: convert video of any tagged transfer and primaries to SDR BT.709.

Missing or undefined tags mean BT.709. Transfers that differ from it only on paper (BT.601, SMPTE 240M, gamma 2.2 and
2.8, graded on the same displays) and the similar primaries of SD video are not converted. Mastering-display metadata is
ignored: one curve for all clips keeps white where BT.2408 puts it, whatever display a clip was graded on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

PQ, HLG, LINEAR, SRGB = 16, 18, 8, 13
"""AVColorTransferCharacteristic, as in ITU-T H.273."""
BT709, BT2020, P3_DCI, P3_D65 = 1, 9, 11, 12
"""AVColorPrimaries, as in ITU-T H.273."""

WHITE_NITS = 203.0
"""Diffuse white of PQ, and of HLG (75 % signal) on its 1000-nit display: BT.2408."""
_HLG_NITS, _HLG_GAMMA = 1000.0, 1.2
_DISPLAY_GAMMA = 2.4  # BT.1886
_KNEE = 0.7
"""Light, relative to white, above which the curve rolls off: white maps to level 238, and 1000 nits to 253."""
_XY = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    P3_DCI: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3140, 0.3510)),
    P3_D65: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),
}
"""Chromaticities of red, green, blue and white."""
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_LMS_TO_2020 = np.linalg.inv(np.array([[1688, 2146, 262], [683, 2951, 462], [99, 309, 3688]]) / 4096)
"""BT.2100: R'G'B' to the L'M'S' of ICtCp."""
_BAND = 2**17
"""Pixels converted per step, so that their floats stay in the cache."""


@dataclass(frozen=True)
class Look:
    """How a 16-bit signal maps to light: ``transfer`` and ``primaries`` are H.273 code points.

    ``lms`` means that the signal is L'M'S' instead of R'G'B'; ``black`` and ``white`` are signal levels in 0..1.
    """

    transfer: int = BT709
    primaries: int = BT709
    lms: bool = False
    black: float = 0.0
    white: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether R'G'B' needs no conversion."""
        return self == Look() or self == Look(SRGB)

    @property
    def note(self) -> str:
        """Note for the user, to follow the file name; empty for SDR."""
        if self.transfer not in (PQ, HLG):
            return ""
        kind, white = ("PQ", "203 nits") if self.transfer == PQ else ("HLG", "75 % signal")
        return f"is HDR ({kind}) and was tone-mapped to SDR: white is at {white}; brighter values are compressed"


def to_sdr(signal_HWC: np.ndarray, look: Look) -> np.ndarray:
    """Convert full-range uint16 H×W×3 signal to uint8 H×W×3 for a BT.709 SDR display."""
    light, matrix, luma, levels = _tables(look)
    flat_NC = signal_HWC.reshape(-1, 3)
    sdr_NC = np.empty(flat_NC.shape, np.uint8)
    for at in range(0, len(flat_NC), _BAND):
        band_NC = light[flat_NC[at : at + _BAND]]
        if look.transfer == HLG:  # BT.2100 OOTF: scene light to display light, by luminance
            band_NC *= (np.maximum(band_NC @ luma, 0) ** np.float32(_HLG_GAMMA - 1))[:, None]
        sdr_NC[at : at + _BAND] = levels[_bins(band_NC @ matrix)]
    return sdr_NC.reshape(signal_HWC.shape)


def _bins(light: np.ndarray) -> np.ndarray:
    """Index of a float32 value in a table of 2¹⁸: sign, exponent and nine mantissa bits (steps of 0.2 %)."""
    return np.ascontiguousarray(light, np.float32).view(np.uint32) >> 14


@lru_cache(maxsize=16)
def _tables(look: Look) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tables and matrices: signal to light (2¹⁶), light to BT.709, luminance weights, light to levels (2¹⁸)."""
    to_light, to_signal = _curves(look.transfer)
    signal = np.clip((np.arange(2**16) / 65535 - look.black) / (look.white - look.black), 0, 1)
    to_rgb = _LMS_TO_2020 if look.lms else np.eye(3)
    matrix = np.linalg.inv(_to_xyz(BT709)) @ _to_xyz(look.primaries) @ to_rgb
    luma = _to_xyz(look.primaries)[1] @ to_rgb
    middles = ((np.arange(2**18, dtype=np.uint32) << 14) | (1 << 13)).view(np.float32)
    with np.errstate(invalid="ignore"):
        light = np.nan_to_num(middles.astype(np.float64), nan=0, posinf=2, neginf=0)
    levels = (to_signal(np.maximum(light, 0)) * 255).round().clip(0, 255).astype(np.uint8)
    return to_light(signal).astype(np.float32), matrix.T.astype(np.float32), luma.astype(np.float32), levels


Curve = Callable[[np.ndarray], np.ndarray]


def _curves(transfer: int) -> tuple[Curve, Curve]:
    """Signal to light with SDR white at 1 (HLG: scene light, scaled for the OOTF), and light to SDR signal."""

    def display(light: np.ndarray) -> np.ndarray:
        return light ** (1 / _DISPLAY_GAMMA)

    def rolled(light: np.ndarray) -> np.ndarray:
        over = np.maximum(light - _KNEE, 0) / (1 - _KNEE)
        return display(np.minimum(light, _KNEE) + (1 - _KNEE) * over / (1 + over))

    if transfer == PQ:
        return lambda signal: pq_nits(signal) / WHITE_NITS, rolled
    if transfer == HLG:
        # The OOTF is homogeneous of degree gamma, so this scales display light to SDR white.
        factor = (_HLG_NITS / WHITE_NITS) ** (1 / _HLG_GAMMA)
        return lambda signal: factor * hlg_scene(signal), rolled
    if transfer == LINEAR:
        return lambda signal: signal, srgb_signal
    if transfer == SRGB:
        return srgb_light, srgb_signal
    return lambda signal: signal**_DISPLAY_GAMMA, display


def pq_nits(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084 EOTF: signal in 0..1 to 0..10,000 nits."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = signal ** (1 / m2)
    return 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def hlg_scene(signal: np.ndarray) -> np.ndarray:
    """ARIB STD-B67 inverse OETF: signal in 0..1 to scene light in 0..1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def srgb_light(signal: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: signal in 0..1 to light in 0..1."""
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def srgb_signal(light: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: light in 0..1 to signal in 0..1."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _to_xyz(primaries: int) -> np.ndarray:
    """Matrix from linear RGB to XYZ, adapted to D65 (Bradford)."""
    red, green, blue, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in _XY[primaries])
    columns = np.stack([red, green, blue], axis=1)
    source, target = _BRADFORD @ white, _BRADFORD @ np.array([0.3127 / 0.3290, 1, 0.3583 / 0.3290])
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(target / source) @ _BRADFORD
    return adapted @ columns @ np.diag(np.linalg.solve(columns, white))
