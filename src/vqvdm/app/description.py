"""What a form must know of a model, from the model's configurations: the page is up before the model is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqvdm.app.settings import Settings
from vqvdm.errors import InputError
from vqvdm.request import learnt_rates
from vqvdm.structure import parse_json

_MOST_CLASSES = 10**6
# By what the denoiser predicts, what `Objective.make_scheduler` takes.
_FLOW, _DISCRETE = ("dpm++", "unipc", "euler", "heun", "ddim"), ("dpm++", "unipc", "euler", "ddim", "ddpm")


@dataclass(frozen=True)
class Description:
    """What a form must know of a model; all of it stands in the model's configurations."""

    name: str
    classes: tuple[str, ...]  # names; ids in the place of names that the model does not know
    window: int  # frames that it makes at a time
    step: int  # of what number of frames it makes multiples
    schedulers: tuple[str, ...]
    reconstructs: bool  # whether there is a tokenizer
    rates: str | None  # frame rates that it was trained at, "8 to 16"; None if it does not say
    defaults: Settings


def of_configs(
    name: str, pipeline: Mapping[str, Any], denoiser: Mapping[str, Any], tokenizer: Mapping[str, Any] | None
) -> Description:
    """What a form must know, from the configurations of a pipeline, its denoiser and its tokenizer.

    Raises:
        InputError: no page can show such a model.
        LookupError, TypeError, ValueError, ArithmeticError, AttributeError: they are not such configurations.
    """
    names, frames, classes = pipeline["id2label"], int(pipeline["num_frames"]), int(denoiser["num_classes"])
    strides = [] if tokenizer is None else [tokenizer["patch"], *tokenizer["strides"]]
    step = math.prod(int(stride[0]) for stride in (denoiser["patch"], *strides))
    if not 0 < step <= frames:
        raise InputError(f"{name}: num_frames is {frames}; it must be {step} at least, which its networks make at once")
    if not 0 <= classes <= _MOST_CLASSES:
        raise InputError(f"{name}: num_classes is {classes}; {_MOST_CLASSES} are the most that the page shows")
    return Description(
        name=name,
        classes=tuple(str(names.get(str(label), label)) for label in range(classes)),
        window=frames,
        step=step,
        schedulers=_FLOW if pipeline["diffusion"]["prediction"] == "flow" else _DISCRETE,
        reconstructs=tokenizer is not None,
        rates=learnt_rates(pipeline.get("about", {})),
        defaults=Settings(
            fps=float(pipeline["fps"]),
            frames=frames,
            steps=int(pipeline["num_inference_steps"]),
            guidance=float(pipeline["guidance_scale"]),
        ),
    )


def of_folder(name: str, folder: Path) -> Description | None:
    """What the files of a pipeline say, without loading it; None if they are not as this version writes them."""

    def read(part: str) -> Any:
        return parse_json((folder / part).read_bytes())

    try:
        index = read("model_index.json")
        tokenizer = read("tokenizer/config.json") if index["tokenizer"][0] is not None else None
        return of_configs(name, index, read("denoiser/config.json"), tokenizer)
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None
