"""What a latent cache's `index.json` says, and which clips lie in which of its files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vqvdm.errors import InputError
from vqvdm.structure import convert, parse_json

INDEX = "index.json"
_KEYS: Mapping[str, Any] = {  # of an index, at least, and what they are
    "tokenizer": str,
    "classes": tuple[str, ...],
    "latent_shape": tuple[int, int, int, int],
    "videos": int,
    "windows": int,
    "flips": bool,
    "shard_size": int,
    "complete": bool,
}
GRIDS = ("latents", "stills", "path")  # what is large: read when it is wanted
_SHARD = re.compile(r"shard-\d{5,}\.safetensors")


@dataclass(frozen=True)
class Plan:
    """Which clips go into which shard. A pair is one decoded clip: (video, window)."""

    videos: int
    windows: int
    flips: bool
    shard_size: int  # entries per file, as asked

    @property
    def copies(self) -> int:
        """Entries per pair: the clip and, with flips, its mirror image."""
        return 2 if self.flips else 1

    @property
    def pairs(self) -> int:
        return self.videos * self.windows

    @property
    def pairs_per_shard(self) -> int:
        return max(1, self.shard_size // self.copies)

    @property
    def shards(self) -> int:
        return math.ceil(self.pairs / self.pairs_per_shard)

    @property
    def facts(self) -> dict[str, Any]:
        """What an index says of it."""
        return {
            "videos": self.videos,
            "windows": self.windows,
            "flips": self.flips,
            "shard_size": self.shard_size,
            "shards": self.shards,
        }

    def shard_pairs(self, shard: int) -> list[tuple[int, int]]:
        """The (video, window) pairs of one file, in order."""
        first = shard * self.pairs_per_shard
        last = min(first + self.pairs_per_shard, self.pairs)
        return [divmod(pair, self.windows) for pair in range(first, last)]


def shard_name(shard: int) -> str:
    """File name of the shard of this number, from 0."""
    return f"shard-{shard:05d}.safetensors"


def sums_in(index: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each shard by its file's name, as far as an index says; those of older versions do not."""
    sums = index.get("sha256")
    return {name: str(sums[name]) for name in sums if _SHARD.fullmatch(name)} if isinstance(sums, dict) else {}


def read_index(folder: Path) -> dict[str, Any] | None:
    """What `index.json` of a cache says; None where there is none. Raises InputError where it is damaged."""
    path = folder / INDEX
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:  # not JSON, or not even text
        raise InputError(f"{path} is damaged ({error}); delete the folder and encode again") from error
    absent = _KEYS.keys() - set(found) if isinstance(found, dict) else _KEYS.keys()
    if absent:
        raise InputError(f"{path} is damaged (it lacks {min(absent)}); delete the folder and encode again")
    where = {"": f"{path} is damaged; delete the folder and encode again"}
    found |= {name: convert(kind, found[name], where, name) for name, kind in _KEYS.items()}
    found |= {name: list(found[name]) for name in ("classes", "latent_shape")}  # as they were: it is compared
    counts = {name: found[name] for name in ("videos", "windows", "shard_size")}
    if "path" in found:
        found["path"] = counts["path"] = convert(int, found["path"], where, "path")
    if "sigmas" in found:
        sigmas = convert(tuple[float, ...], found["sigmas"], where, "sigmas")
        if len(sigmas) != found.get("path") or not all(a > b for a, b in pairwise((*sigmas, 0.0))) or sigmas[0] != 1:
            raise InputError(f"{where['']}: sigmas are {list(sigmas)}, but must fall from 1, one for each step of path")
        found["sigmas"] = list(sigmas)
    for name, count in {**counts, "latent_shape": min(found["latent_shape"])}.items():
        if count < 1:
            raise InputError(f"{where['']}: {name} is {found[name]}, but must be at least 1")
    return found
