"""What a tokenizer adds to motion: flicker where nothing moves, and seams where one latent place ends.

A latent place stands for a cell of `factors` frames, rows and columns. If the decoder joins cells badly, the change
from one frame (or pixel) to the next is wrong more often where two cells meet than within them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AXES = {"time": 0, "rows": 1, "columns": 2}  # of a clip (t, h, w, 3)


def change_errors(real: NDArray[np.uint8], made: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """How wrong the changes between neighbours are, in grey levels: uint8 (t, h, w, 3) twice.

    Returns:
        By the names of `AXES` the mean of |difference of made - difference of real| for each of the (n - 1) borders
        between the n frames, rows or columns.
    """
    assert real.shape == made.shape, (real.shape, made.shape)
    error = made.astype(np.float32) - real
    found = {}
    for name, axis in AXES.items():
        others = tuple(other for other in range(4) if other != axis)
        found[name] = np.abs(np.diff(error, axis=axis)).mean(axis=others, dtype=np.float64)
    return found


def seam(errors: NDArray[np.float64], factor: int) -> float:
    """Error at the borders between cells over that within cells, 1 without seams; nan if there are none of either.

    Args:
        errors: (..., n - 1), of the borders between n places, as `change_errors` gives them.
        factor: places of a cell.
    """
    between = np.arange(1, errors.shape[-1] + 1) % factor == 0
    if between.all() or not between.any():
        return float("nan")
    within = float(errors[..., ~between].mean())
    return float(errors[..., between].mean()) / within if within > 0 else float("nan")


def frame_changes(clip: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean absolute change of the pixels from each frame to the next, in grey levels: (t, h, w, 3) -> (t - 1,)."""
    return np.abs(np.diff(clip.astype(np.float32), axis=0)).mean(axis=(1, 2, 3), dtype=np.float64)


def flicker(made: NDArray[np.uint8]) -> float:
    """Mean change from frame to frame of what is made of a still clip (t, h, w, 3), in grey levels: 0 is none."""
    return float(frame_changes(made).mean())
