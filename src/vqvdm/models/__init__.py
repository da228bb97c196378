"""Models that come with the package, trained on its own worlds: they need neither network nor training."""

from __future__ import annotations

from pathlib import Path

from vqvdm.errors import InputError

DEFAULT = "toy"
_FOLDER = Path(__file__).parent  # one pipeline in each folder below


def bundled(name: str = DEFAULT) -> str:
    """The folder of a bundled pipeline, for `VQVDMPipeline.from_pretrained`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in (there := names()):
        raise InputError(f"no model {name!r} comes with this package; there are: {', '.join(there) or 'none'}")
    return str(_FOLDER / name)


def names() -> list[str]:
    """What there is."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/model_index.json"))
