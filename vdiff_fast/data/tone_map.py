"""High dynamic range to what a screen of standard range shows: PQ or HLG in BT.2020 to BT.709.

Not by FFmpeg's filters: PyAV's wheels have no `zscale`, the colour management of their `scale` takes seconds to set up
and cuts highlights off, and sixteen bits of linear light between filters show as bands in the dark. The result is held
against `zscale` and `tonemap=mobius` of the ffmpeg program in the tests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch

Transfer = Literal["", "PQ", "HLG"]

# ITU-T H.273 transfer characteristics.
TRANSFERS: dict[int, Transfer] = {16: "PQ", 18: "HLG"}
# ITU-R BT.2408: the luminance of white paper, which becomes a standard screen's white, and the peak that is kept apart.
_REFERENCE_WHITE, _PEAK = 203.0, 1000.0
# Mobius is the identity up to here and reaches 1 at the peak.
_KNEE = 0.3
# ITU-R BT.1886, without its black level.
_GAMMA = 2.4
# ITU-R BT.2100: luma weights, and the gamma of HLG's display at 1000 cd/m2.
_LUMA, _HLG_SYSTEM_GAMMA = (0.2627, 0.6780, 0.0593), 1.2
# ITU-R BT.2087: linear BT.2020 to linear BT.709.
_TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))


def to_standard_range(pixels: np.ndarray, transfer: Transfer) -> np.ndarray:
    """uint16 (H, W, 3) RGB coded in PQ or HLG with BT.2020 primaries -> uint8 (H, W, 3) for a BT.709 screen.

    E = M * EOTF(v) / 203 cd/m2 in linear light, then 255 * (E * Mobius(max E) / max E)^(1/2.4): what is not brighter
    than 0.3 of white paper keeps its brightness, and lights up to 1000 cd/m2 stay apart below white.
    """
    light = torch.from_numpy(_linear_table(transfer)[pixels])
    if transfer == "HLG":
        # The system gamma acts on luminance alone (BT.2100, table 5): F_D = alpha Y^(gamma - 1) E.
        luminance = light @ torch.tensor(_LUMA)
        light = light * (luminance.clamp_min(1e-9) ** (_HLG_SYSTEM_GAMMA - 1.0)).unsqueeze(-1) * _PEAK
    light = (light / _REFERENCE_WHITE) @ torch.tensor(_TO_BT709).T
    # By the largest component, so that the three keep their ratios and colours their hue.
    largest = light.amax(-1, keepdim=True).clamp_min_(1e-6)
    light = light * (mobius(largest, _KNEE, _PEAK / _REFERENCE_WHITE) / largest)
    shown = light.clamp_(0.0, 1.0) ** (1.0 / _GAMMA)
    return (shown * 255.0).round_().to(torch.uint8).numpy()


def mobius(x: torch.Tensor, knee: float, peak: float) -> torch.Tensor:
    """x up to `knee`, above it s (x + a) / (x + b) with value and slope continuous and `peak` at 1."""
    denominator = knee * knee - 2.0 * knee + peak
    a = -knee * knee * (peak - 1.0) / denominator
    b = (knee * knee - 2.0 * knee * peak + peak) / (peak - 1.0)
    scale = (b * b + 2.0 * b * knee + knee * knee) / (b - a)
    return torch.where(x <= knee, x, scale * (x + a) / (x + b))


@lru_cache(maxsize=2)
def _linear_table(transfer: Transfer) -> np.ndarray:
    """Linear light of the 65536 codes in float32: cd/m2 for PQ (BT.2100, table 4), scene light in [0, 1] for HLG."""
    code = np.linspace(0.0, 1.0, 65536)
    if transfer == "PQ":
        m1, m2 = 2610 / 16384, 2523 / 4096 * 128
        c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        root = code ** (1.0 / m2)
        linear = 10_000.0 * (np.maximum(root - c1, 0.0) / (c2 - c3 * root)) ** (1.0 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        linear = np.where(code <= 0.5, code**2 / 3.0, (np.exp((code - c) / a) + b) / 12.0)
    return linear.astype(np.float32)
