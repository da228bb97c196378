"""What a user names, loaded: a model on disk or on the hub; a device, a type."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.utils import logging
from safetensors import SafetensorError

from vqvdm.errors import InputError, reason_of
from vqvdm.models import find_folder, find_pipeline
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.processes import this_process
from vqvdm.processor import fast_bf16
from vqvdm.tokenizer import VideoTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # that networks can be asked to compute in
# What diffusers and a pipeline's constructor raise where a JSON file holds other kinds of values than they expect.
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is the best there is.

    Raises:
        InputError: this machine has no such device.
    """
    if name == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: {reason_of(error)}") from error
    return device


def own_device(name: str = "auto") -> torch.device:
    """That of this process where there are several (torchrun); a single one's is picked by name."""
    here = this_process()
    return pick_device(str(here.device) if here.num_processes > 1 else name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """One of `DTYPES` by name; "auto" is bfloat16 where the device is fast at it, else float32."""
    if name == "auto":
        name = "bfloat16" if fast_bf16(device) else "float32"
    return DTYPES[name]


def load_pipeline(
    model: str | os.PathLike[str], device: str = "auto", dtype: torch.dtype | None = None
) -> VQVDMPipeline:
    """A pipeline from its folder, from a run folder that holds `pipeline/`, bundled, or from the hub.

    Raises:
        InputError: there is none, or its files are damaged.
    """
    folder = find_pipeline(model)
    with _readable(model), _without_progress_bars():
        pipeline = VQVDMPipeline.from_pretrained(os.fspath(folder or model), dtype=dtype)
        _check_whole(pipeline.denoiser, *([] if pipeline.tokenizer is None else [pipeline.tokenizer]))
    return pipeline.to(pick_device(device))


def load_tokenizer(model: str | os.PathLike[str], device: str = "auto") -> VideoTokenizer:
    """A tokenizer from its folder, from a pipeline or run folder that holds `tokenizer/`, bundled, or from the hub.

    Raises:
        InputError: there is none, or its files are damaged.
    """
    with _readable(model):
        places, marker, what = ("tokenizer", "pipeline/tokenizer", ""), "config.json", "a tokenizer"
        folder = find_folder(model, places, marker, what)
        folder = folder or find_folder(VQVDMPipeline.download(model), places, marker, what)
        assert folder is not None  # what was downloaded is a folder
        tokenizer = VideoTokenizer.from_pretrained(os.fspath(folder), use_safetensors=True)
        _check_whole(tokenizer)  # pyrefly: ignore[bad-argument-type]
    return tokenizer.to(pick_device(device)).eval()  # pyrefly: ignore[bad-argument-type]


def _check_whole(*networks: torch.nn.Module) -> None:
    """Refuse weights of which some are missing, for which diffusers leaves a place without content."""
    for network in networks:
        absent = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
        if absent:
            raise ValueError(f"the weights of {type(network).__name__} lack {len(absent)} tensors, such as {absent[0]}")


@contextmanager
def _readable(model: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the hub and the readers of weights raise into one plain message."""
    try:
        yield
    except InputError:
        raise
    except (*_UNREADABLE, SafetensorError) as error:
        nor = "" if Path(model).exists() else f" (nor is there a folder {model} here)"
        raise InputError(f"{model} cannot be loaded: {reason_of(error)}{nor}") from error


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """diffusers draws a bar over the three parts it loads from disk; of a download, the bars are the hub's own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
