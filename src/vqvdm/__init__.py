"""vqvdm: from a folder of videos to generated videos.

A 3D VQGAN (`VideoTokenizer`) makes videos small, a latent video diffusion model (`VideoDenoiser`) makes new small ones,
and `VQVDMPipeline` joins the two. The names below are the front door; each is imported when it is first asked for, so
that `import vqvdm` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import ModelMixin as ModelMixin
    from diffusers import SchedulerMixin as SchedulerMixin

    from vqvdm.data import open_dataset
    from vqvdm.denoiser import VideoDenoiser
    from vqvdm.errors import InputError
    from vqvdm.models import bundled
    from vqvdm.pipeline import VQVDMPipeline
    from vqvdm.recipe import Recipe
    from vqvdm.tokenizer import VideoTokenizer
    from vqvdm.train.denoiser import train_denoiser
    from vqvdm.train.tokenizer import train_tokenizer

__version__ = "0.1.0"

__all__ = [
    "VideoTokenizer",
    "VideoDenoiser",
    "VQVDMPipeline",
    "Recipe",
    "bundled",
    "open_dataset",
    "train_tokenizer",
    "train_denoiser",
    "InputError",
    "__version__",
]

_HOMES = {
    "VideoTokenizer": "vqvdm.tokenizer",
    "VideoDenoiser": "vqvdm.denoiser",
    "VQVDMPipeline": "vqvdm.pipeline",
    "Recipe": "vqvdm.recipe",
    "bundled": "vqvdm.models",
    "open_dataset": "vqvdm.data",
    "train_tokenizer": "vqvdm.train.tokenizer",
    "train_denoiser": "vqvdm.train.denoiser",
    "InputError": "vqvdm.errors",
    # diffusers loads a pipeline's part by comparing it with the base classes that the part's own package exposes.
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
}


def __getattr__(name: str) -> Any:
    """Import the public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, also before they are imported."""
    return sorted({*globals(), *__all__})
