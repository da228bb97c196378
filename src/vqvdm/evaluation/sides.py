"""The two sides of a comparison: videos from which clips are drawn, or a reference that was measured and stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

import vqvdm
from vqvdm.data.clips import ClipTiming
from vqvdm.errors import InputError, reason_of
from vqvdm.evaluation.features import Extractor, Features, features_of
from vqvdm.evaluation.models import GeneratedVideos
from vqvdm.evaluation.sources import FileVideos, Videos, check_enough, in_8_bits, read_clips
from vqvdm.files import write_bytes, write_json
from vqvdm.metrics.protocol import Draw, Protocol, draw_clips
from vqvdm.processes import this_process
from vqvdm.structure import convert, parse_json, structure
from vqvdm.video import Video, shrunk

SHOWN = 6  # clips of a side in a report's picture
SHOWN_SIDE = 96  # pixels of their height at most
_FORM = 1  # of stored references


class Side(Interface):
    """What is compared: some numbered draws of clips, measured."""

    def count(self, repeat: int) -> int:
        """Clips of this draw."""
        ...

    def features(self, repeat: int, count: int) -> Features:
        """Of its first `count` clips."""
        ...

    def shown(self) -> list[Video]:
        """A few clips of the first draw, uint8 (t, h, w, 3)."""
        ...

    def description(self) -> dict[str, Any]:
        """What a report says of it: name, split, number of videos, which were skipped, digest."""
        ...


class DrawnVideos:
    """Clips of videos, drawn as the protocol says and measured when they are asked for."""

    def __init__(
        self, videos: Videos, protocol: Protocol, timing: ClipTiming, extractor: Extractor, *, everything: bool = False
    ) -> None:
        """Draw; read nothing yet.

        Args:
            everything: take all videos, not the protocol's number.

        Raises:
            InputError: fewer than two videos are long enough.
        """
        self.videos, self.protocol, self.timing, self.extractor = videos, protocol, timing, extractor
        starts = videos.starts(timing)
        check_enough(videos, starts, timing)
        self._too_short = int((starts == 0).sum())
        wanted = len(starts) if everything else protocol.clips
        if isinstance(videos, GeneratedVideos):  # each draw is generated anew
            numbers = range(len(videos.orders))
            parts = [numbers[r * wanted : (r + 1) * wanted] for r in range(protocol.repeats)]
            self._draws = [[Draw(number, 0) for number in part] for part in parts]
        else:
            self._draws = [draw_clips(starts, protocol, wanted, repeat) for repeat in range(protocol.repeats)]

    def count(self, repeat: int) -> int:
        return len(self._draws[repeat])

    def labels(self, repeat: int) -> list[str | None]:
        """The class of each clip."""
        return [self.videos.label(draw.video) for draw in self._draws[repeat]]

    def features(self, repeat: int, count: int) -> Features:
        draws: list[Draw] = self._draws[repeat][:count]
        return features_of(self.videos, draws, self.protocol, self.timing, self.extractor)

    def shown(self) -> list[Video]:
        draws = self._draws[0][:SHOWN]
        clips = islice(read_clips(self.videos, draws, self.timing), SHOWN)
        return [shrunk(in_8_bits(clip.frames), SHOWN_SIDE) for clip in clips]

    def description(self) -> dict[str, Any]:
        return {
            "name": self.videos.name,
            "split": self.videos.split,
            "videos": len(self.videos.lengths),
            "skipped": self.videos.skipped,
            "too_short": self._too_short,
            "digest": self.videos.digest,
            **self._rate(),
            **self.videos.facts,
        }

    def _rate(self) -> dict[str, float]:
        """Frames per second at which clips of files play, the median."""
        if not isinstance(self.videos, FileVideos):
            return {}
        rates = self.videos.rates
        asked = self.timing.fps
        return {"fps": float(np.median(rates / self.timing.stride if asked is None else rates.clip(max=asked)))}


# What of a protocol the features of a reference follow from; clips only says how many there can be.
_FREE = ("name", "clips", "fake_stride", "ddof", "splits")


@dataclass(frozen=True)
class StoredReference:
    """A reference that was measured once: reference.json and reference.safetensors in a folder."""

    folder: Path
    protocol: Protocol
    networks: Mapping[str, str]  # name -> identity of the weights
    about: Mapping[str, Any]
    digest: str  # of the features' file

    @staticmethod
    def is_at(folder: str | Path) -> bool:
        """Whether a stored reference lies there."""
        return (Path(folder).expanduser() / "reference.json").is_file()

    @classmethod
    def open(cls, folder: str | Path) -> StoredReference:
        """Read what it is.

        Raises:
            InputError: its files are damaged, or of another version.
        """
        folder = Path(folder).expanduser()
        path = folder / "reference.json"
        try:
            found = parse_json(path.read_text(encoding="utf-8"))
            if found["form"] != _FORM:
                raise InputError("it is of another version")
            protocol = structure(Protocol, found["protocol"], {})
            networks = convert(dict[str, str], found["networks"], {}, "networks")
            about = convert(dict[str, Any], found["about"], {}, "about")
            return cls(folder, protocol, networks, about, convert(str, found["features"], {}, "features"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no stored reference: {reason_of(error)}; write it anew") from error

    def check(self, protocol: Protocol, networks: Mapping[str, str]) -> None:
        """Raise `InputError` if its features do not follow from this protocol and these networks."""
        for field in fields(Protocol):
            own, asked = getattr(self.protocol, field.name), getattr(protocol, field.name)
            if field.name not in _FREE and own != asked:
                raise InputError(
                    f"{self.folder} was measured with {field.name} {own}, not {asked}; leave the option out, or store "
                    f"a reference that fits: vqvdm evaluate reference ... --{field.name.replace('_', '-')} {asked}"
                )
        for name, identity in networks.items():
            if name in self.networks and self.networks[name] != identity:
                raise InputError(f"{self.folder} was measured with other weights of {name}; store it anew")

    def count(self, repeat: int) -> int:
        return len(self._tensor(f"{repeat}.logits"))

    def features(self, repeat: int, count: int) -> Features:
        prefix = f"{repeat}."
        return {
            name.removeprefix(prefix): rows[:count] for name, rows in self._tensors().items() if name.startswith(prefix)
        }

    def shown(self) -> list[Video]:
        return list(self._tensor("shown"))

    def description(self) -> dict[str, Any]:
        return dict(self.about)

    def _tensor(self, name: str) -> NDArray:
        try:
            return self._tensors()[name]
        except KeyError:
            raise InputError(f"{self.folder}/reference.safetensors lacks {name}; store the reference anew") from None

    def _tensors(self) -> dict[str, NDArray]:
        return _stored_tensors(self.folder / "reference.safetensors", self.digest)


@lru_cache(maxsize=1)
def _stored_tensors(path: Path, digest: str) -> dict[str, NDArray]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}); store the reference anew") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"{path} does not belong to the reference.json beside it; store the reference anew")
    try:
        return load(content)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); store the reference anew") from error


def store_reference(side: DrawnVideos, folder: Path) -> None:
    """Measure all draws and write them with what they follow from; the files appear whole, the JSON last.

    All processes measure, one writes.
    """
    tensors = {
        f"{repeat}.{kind}": np.ascontiguousarray(rows)
        for repeat in range(side.protocol.repeats)
        for kind, rows in side.features(repeat, side.count(repeat)).items()
    }
    if not this_process().is_main_process:
        return
    tensors["shown"] = np.stack(side.shown())
    content = save(tensors)
    write_bytes(folder / "reference.safetensors", content)
    about = {
        "form": _FORM,
        "protocol": asdict(side.protocol),
        "networks": side.extractor.identities(),
        "about": side.description(),
        "features": hashlib.sha256(content).hexdigest(),
        "clips": [side.count(repeat) for repeat in range(side.protocol.repeats)],
        "versions": {"vqvdm": vqvdm.__version__},
    }
    write_json(folder / "reference.json", about)
