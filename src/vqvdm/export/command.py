"""`vqvdm export`: a pipeline as programs that run without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vqvdm import models
from vqvdm.errors import InputError, logger_of
from vqvdm.export.programs import write_programs
from vqvdm.files import check_writable
from vqvdm.loading import load_pipeline, pick_device, pick_dtype
from vqvdm.request import doubts

logger = logger_of(__name__)


def main(
    model: str = models.DEFAULT,
    *,
    out: Path = Path("exported"),
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "float32",
) -> None:
    """Write denoiser and decoder as programs of torch.export, and a script that samples with torch alone.

    Args:
        model: a pipeline folder, a run folder, a name on the hub (owner/name), or the model that comes with the
            package, of moving shapes.
        out: folder for the files; made if absent.
        frames: of the videos; the model's own by default, as for the next three.
        height: pixels.
        width: pixels.
        steps: of Euler's method.
        device: on which the programs will run: cpu, cuda, mps or auto.
        dtype: in which they compute.
    """
    check_writable(out)
    pipeline = load_pipeline(model, device, pick_dtype(dtype, pick_device(device)))
    asked = {"num_frames": frames, "height": height, "width": width, "num_inference_steps": steps}
    for name, value in asked.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    for doubt in doubts(pipeline, None, steps):
        logger.warning("%s", doubt)
    pipeline.register_to_config(**{name: value for name, value in asked.items() if value is not None})
    for path in write_programs(pipeline, out):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
