"""The arguments of one sampling call, checked and brought into one form."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvdm.errors import InputError

_SHOWN_CLASSES = 30  # named at most in a message
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def number(name: str, value: Any) -> float:
    """A finite number from Python, NumPy or torch; truth values and text are none."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    with suppress(OverflowError):  # a whole number of hundreds of digits
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    raise InputError(f"{name} must be a number, not {value!r}")


def count(name: str, value: Any) -> int:
    """A whole number of at least 1; 4.0 is one, 3.5 and "4" are not."""
    whole = number(name, value)
    if whole != int(whole):
        raise InputError(f"{name} must be a whole number, not {value!r}")
    if whole < 1:
        raise InputError(f"{name} must be at least 1, not {value!r}")
    return int(whole)


def _several(value: Any) -> bool:
    """Whether it is a list of values; arrays and tensors of no axis are not, and have no length."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def label_ids(class_labels: Any, names: Mapping[int, str], num_classes: int) -> list[int]:
    """Class ids of names or ids; `names` are those of the ids, as far as they have any.

    Raises:
        InputError: there are no classes, a name is unknown (with the nearest one), an id is out of range.
    """
    if isinstance(class_labels, Tensor | np.ndarray):
        class_labels = class_labels.tolist()
    asked = class_labels if _several(class_labels) else [class_labels]
    if not asked:
        raise InputError("no class is named; name one, or leave classes out for unconditional videos")
    if num_classes == 0:
        raise InputError(f"this model is unconditional, it cannot make the class {asked[0]!r}; leave it out")
    ids = {name: key for key, name in names.items()}
    return [_label_id(label, ids, names, num_classes) for label in asked]


def _label_id(label: Any, ids: Mapping[str, int], names: Mapping[int, str], num_classes: int) -> int:
    if isinstance(label, str):
        if label in ids:
            return ids[label]
        near = difflib.get_close_matches(label, ids, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown class {label!r}; {hint}{_known_classes(names, num_classes)}")
    try:
        number = operator.index(label)
    except TypeError:
        raise InputError(f"{label!r} is neither the name nor the id of a class") from None
    if isinstance(label, bool) or not 0 <= number < num_classes:
        raise InputError(f"the class id {label} is out of range; {_known_classes(names, num_classes)}")
    return number


def _known_classes(names: Mapping[int, str], num_classes: int) -> str:
    """The ids and names there are, in words; of many classes the first."""
    named = [f"{key} {name}" for key, name in names.items()]
    more = [f"and {len(named) - _SHOWN_CLASSES} more"] if len(named) > _SHOWN_CLASSES else []
    listed = ": " + ", ".join(named[:_SHOWN_CLASSES] + more) if named else ""
    return f"the ids are 0 to {num_classes - 1}{listed}"


def check_forms(output_type: str, tensor_inputs: Sequence[str], known_inputs: Sequence[str]) -> None:
    """Refuse an output type or callback tensors that do not exist."""
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}")
    unknown = set(tensor_inputs) - set(known_inputs)
    if unknown:
        raise InputError(
            f"callback_on_step_end_tensor_inputs: there are {', '.join(known_inputs)}, not {', '.join(sorted(unknown))}"
        )


def noise_interval(interval: Any) -> tuple[float, float]:
    """(lowest, highest) noise level at which guidance acts."""
    problem = InputError(f"guidance_interval is (lowest, highest) noise level within 0..1, not {interval}")
    if not _several(interval) or len(interval) != 2:
        raise problem
    low, high = (number("guidance_interval", level) for level in interval)
    if not 0 <= low <= high <= 1:
        raise problem
    return low, high


def check_weaker(weaker: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `InputError` if the config of a `weaker_denoiser` has other latents or classes than the model's own."""
    for name in ("in_channels", "num_classes"):
        if weaker[name] != own[name]:
            raise InputError(f"weaker_denoiser has {name} {weaker[name]}, this model has {own[name]}: they must agree")


def check_null_class(label_ids: list[int] | None, scale: float) -> None:
    """Refuse what needs the null class, for a model that never met it."""
    if label_ids is None:
        raise InputError("this model was trained with class_dropout 0 and makes nothing without a class")
    if scale > 1:
        raise InputError(
            f"guidance_scale must be 1, not {scale:g}: this model was trained with class_dropout 0, so there is "
            "nothing that guidance could compare with"
        )


def frame_rates(fps: Any, prompts: int | None, videos: int) -> list[float]:
    """One frame rate for each video of the batch, in its order; `prompts` is the number of class labels, if any."""
    rates = [number("fps", rate) for rate in (fps if _several(fps) else [fps] * (prompts or 1))]
    if not rates:
        raise InputError("fps is an empty list; give a frame rate, or leave it out for the model's own")
    if prompts and len(rates) != prompts:
        raise InputError(f"fps names {len(rates)} frame rates for {prompts} class labels")
    wrong = [rate for rate in rates if rate <= 0]
    if wrong:
        raise InputError(f"fps must be a frame rate above 0, not {wrong[0]}")
    return [rate for rate in rates for _ in range(videos)]


def one_generator_each(
    generator: torch.Generator | list[torch.Generator] | None, batch: int
) -> tuple[list[torch.Generator], list[int]]:
    """A generator and its seed for each video: those given, or ones whose seeds the given one draws in order.

    Drawn generators live on the CPU, so that a seed means the same video on every device.
    """
    if isinstance(generator, list | tuple):
        if len(generator) != batch:
            raise InputError(f"generator holds {len(generator)} generators for {batch} videos; give one, or one each")
        return list(generator), [each.initial_seed() for each in generator]
    device = "cpu" if generator is None else generator.device
    # Below 2**53, so that a seed survives JSON readers that know only floating-point numbers.
    seeds = [int(torch.randint(2**53, (1,), generator=generator, device=device)) for _ in range(batch)]
    return [torch.Generator().manual_seed(seed) for seed in seeds], seeds
