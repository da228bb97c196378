"""How close a clip is to another one of the same scene, frame by frame: squared error, PSNR and SSIM.

The perceptual distance is `vqvdm.perceptual.LPIPS`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vqvdm.errors import InputError

SSIM_LEAST_SIDE = 11  # pixels: the Gaussian window of Wang et al. 2004
_BEST = 100.0  # dB given to frames that are equal, whose ratio is infinite


def squared_errors(real: NDArray[np.uint8], made: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean squared error of each frame, in squared grey levels: uint8 (t, h, w, 3) twice -> (t,)."""
    assert real.shape == made.shape, (real.shape, made.shape)
    return np.mean((real.astype(np.float64) - made) ** 2, axis=(1, 2, 3))


def psnr(squared_error: ArrayLike) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of mean squared errors: 10 log10(255^2 / error), at most 100; the same shape."""
    error = np.maximum(np.asarray(squared_error, np.float64), 255**2 / 10 ** (_BEST / 10))
    return 10 * np.log10(255**2 / error)


def ssim(real: NDArray[np.uint8], made: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Structural similarity of each frame (Wang et al. 2004, eq. 13; torchmetrics): uint8 (t, h, w, 3) twice -> (t,).

    Over the three colours, with a Gaussian window of 11 pixels and deviation 1.5, mirrored edges, K = 0.01 and 0.03.

    Raises:
        InputError: a side of fewer than 11 pixels.
    """
    assert real.shape == made.shape, (real.shape, made.shape)
    if min(real.shape[1:3]) < SSIM_LEAST_SIDE:
        raise InputError(f"SSIM needs frames of at least {SSIM_LEAST_SIDE} pixels a side, not {real.shape[1:3]}")
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes a second to import

    x, y = (torch.from_numpy(np.array(video)).permute(0, 3, 1, 2).float() for video in (made, real))  # (t, 3, h, w)
    found = structural_similarity_index_measure(x, y, data_range=255.0, reduction="none")
    assert isinstance(found, torch.Tensor)
    return found.reshape(-1).numpy()
