"""Models by name: those that come with the package, those in folders, those on the hub. Nothing is loaded here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from vqvdm.errors import InputError

DEFAULT = "toy"
_FOLDER = Path(__file__).parent  # one pipeline in each folder below
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def bundled(name: str = DEFAULT) -> str:
    """The folder of a bundled pipeline, for `VQVDMPipeline.from_pretrained`; trained on one of our own worlds.

    Raises:
        InputError: there is none of that name.
    """
    if name not in (there := names()):
        raise InputError(f"no model {name!r} comes with this package; there are: {', '.join(there) or 'none'}")
    return str(_FOLDER / name)


def names() -> list[str]:
    """What there is."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/model_index.json"))


def find_pipeline(model: str | os.PathLike[str]) -> Path | None:
    """The folder of a pipeline, which may be a run's; None for a name on the hub.

    Raises:
        InputError: there is none.
    """
    return find_folder(model, ("", "pipeline"), "model_index.json", "a pipeline (train a denoiser first)")


def find_folder(model: str | os.PathLike[str], places: Sequence[str], marker: str, what: str) -> Path | None:
    """The first of the places below `model` that holds the marker; None if `model` looks like a name on the hub.

    A folder comes before a bundled model of its name.

    Raises:
        InputError: none of them does, or there is no such folder.
    """
    if not Path(model).exists() and os.fspath(model) in names():
        model = bundled(os.fspath(model))
    if Path(model).is_dir():
        found = [Path(model) / place for place in places if (Path(model) / place / marker).is_file()]
        if not found:
            looked = ", ".join(str(Path(model) / place / marker) for place in places)
            raise InputError(f"{model} holds no {what.removeprefix('a ')}: there is none of {looked}")
        return found[0]
    beside = Path(model).parent
    if not Path(model).exists() and beside.name and beside.is_dir():  # runs/toi: nobody means the hub
        there = sorted(path.name for path in beside.iterdir() if path.is_dir() and path.name[0] != ".")
        likely = ", ".join(get_close_matches(Path(model).name, there, n=5, cutoff=0))
        raise InputError(f"there is no {model}; {beside} holds {likely or 'no folders'}")
    if Path(model).exists() or not _HUB_ID.fullmatch(os.fspath(model)):
        ours = ", ".join(names())
        there = f"the model of the package is {ours}" if ours else "this package came without its own model"
        raise InputError(f"{model} is neither a folder nor a name on the hub (owner/name); {there}")
    return None


def model_name(model: str) -> str:
    """By what name to call a model of a folder, of the hub or of the package; of a run the run's."""
    if not Path(model).exists():
        return model
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "pipeline" else folder.name
