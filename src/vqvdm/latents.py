"""The latent cache: every clip encoded once, then read as a data set.

A cache is a folder of safetensors shards and an `index.json` that says which tokenizer and which data made it. Each
video contributes `windows` clips and, if asked, the mirror image of each; the position of an entry follows from the
video, the window and the flip, so that nothing but numbers is stored.

A cache may also hold what a model made of noise, for distillation: then each entry names the seed of its noise, and has
the states on the way from it.

Latents are kept as float16 unless asked otherwise. They are normalised (deviation 1), so rounding moves them by about
2e-4, far below the smallest noise the denoiser is trained with, and the files and the page cache shrink by half.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vqvdm.context import encode_stills
from vqvdm.data.workers import leave_signals_to_parent, loading
from vqvdm.errors import InputError, logger_of, reason_of
from vqvdm.files import sha256_of, write_bytes
from vqvdm.latent_index import GRIDS, INDEX, Plan, read_index, shard_name, sums_in
from vqvdm.processes import this_process

logger = logger_of(__name__)

_DTYPES = {"float16": torch.float16, "float32": torch.float32}

StorageType = Literal["float16", "float32"]


def write_latents(
    tokenizer: Any,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    windows: int = 1,
    flips: bool = False,
    stills: bool = False,
    batch_size: int = 16,
    shard_size: int = 1024,
    data: Mapping[str, Any] | None = None,
    digest: str | None = None,
    dtype: StorageType = "float16",
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Path:
    """Encode a data set into a latent cache and return its folder.

    Called again after an interruption it keeps every complete shard and goes on with the next; called again on a
    complete cache it does nothing. A cache of another tokenizer, data recipe, digest or shape is replaced, which is
    logged. One that has no digest, as older versions wrote them, is taken for that of the present data.

    Args:
        tokenizer: a `VideoTokenizer`; `encode(clip (b, c, t, h, w))` gives normalised latents and
            `latents_fingerprint()` their key.
        dataset: map-style data set of clips with `classes`; `dataset[(index, draw)]` gives a dict of `clip`,
            `class_label` and `fps`. Window w of a video is its draw w.
        folder: where the cache goes; made if absent.
        windows: clips taken from each video.
        flips: also store the mirror image of each clip (left and right exchanged).
        stills: also store what the first and the last frame of each clip encode to when held still.
        batch_size: clips encoded at a time.
        shard_size: entries per file.
        data: JSON-able description of the data, kept in the index and compared when resuming.
        digest: changes when what lies behind `data` does, such as the content of the files; kept and compared as well.
        dtype: storage type, "float16" or "float32".
        workers: loader processes; 0 loads in this process.
        device: where to encode; the tokenizer's own device by default.
        progress: show a progress bar with the remaining time.

    Raises:
        InputError: the data set is empty, a number is out of range, or the disk has no room.
    """
    folder = Path(folder)
    plan = Plan(len(dataset), windows, flips, shard_size)  # type: ignore[arg-type]
    _check_plan(plan, batch_size, dtype)
    example = dataset[(0, 0)]
    clip = example["clip"]
    device = torch.device(device) if device is not None else tokenizer.device
    tokenizer = tokenizer.to(device).eval()
    index = {
        "format": 1,
        "tokenizer": tokenizer.latents_fingerprint(),
        "data": json.loads(json.dumps(data or {})),
        "digest": digest,
        "classes": list(dataset.classes),  # type: ignore[attr-defined]
        "clip_shape": list(clip.shape),
        "latent_shape": list(tokenizer.latent_shape(*clip.shape[1:])),
        "dtype": dtype,
        **({"stills": True} if stills else {}),
        **plan.facts,
    }

    def encoded(batches: list[list[tuple[int, int]]]) -> Iterator[dict[str, Tensor]]:
        return _encoded(tokenizer, dataset, plan, stills, batches, workers, device)

    _write(folder, index, plan, batch_size, encoded, "encoding", progress)
    return folder


def write_pairs(
    make: Callable[[list[int]], dict[str, Tensor]],
    number: int,
    folder: str | os.PathLike[str],
    facts: Mapping[str, Any],
    *,
    batch_size: int,
    shard_size: int,
) -> Path:
    """Write a cache of what a model makes of noise, and return its folder; goes on where it was interrupted.

    Args:
        make: for the numbers of some entries gives `latents` (b, c, t, h, w), `path` (b, n - 1, c, t, h, w), the states
            between them and their noise, and `class_label`, `fps` and `seed`, (b,) each; `noise_of(seed, (c, t, h, w))`
            is the noise.
        number: of entries.
        folder: where the cache goes; made if absent.
        facts: `tokenizer` (its fingerprint), `classes`, `latent_shape`, `data`, `path` (n, the steps of each), and
            `digest`, which names the maker.
        batch_size: entries made at a time.
        shard_size: entries per file.

    Raises:
        InputError: the disk has no room, or a file of the cache is damaged.
    """
    folder, plan = Path(folder), Plan(number, 1, False, shard_size)
    _check_plan(plan, batch_size, "float16")
    index = {"format": 1, **json.loads(json.dumps(dict(facts))), "dtype": "float16", **plan.facts}

    def made(batches: list[list[tuple[int, int]]]) -> Iterator[dict[str, Tensor]]:
        return (make([entry for entry, _ in batch]) for batch in batches)

    _write(folder, index, plan, batch_size, made, "pairs", progress=True)
    return folder


def noise_of(seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise (c, t, h, w), as a pipeline draws it from a generator with that seed."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _write(
    folder: Path,
    index: Mapping[str, Any],
    plan: Plan,
    batch_size: int,
    make: Callable[[list[list[tuple[int, int]]]], Iterator[dict[str, Tensor]]],
    what: str,
    progress: bool,
) -> None:
    """Write the shards that are not there yet; no batch reaches from one into the next.

    Of n processes each writes every n-th shard; the first one sees to the rest.
    """
    here = this_process()
    if here.is_main_process:
        _check_room(folder, index, plan, _prepare(folder, index, plan))
    here.wait_for_everyone()
    own = range(here.process_index, plan.shards, here.num_processes)
    todo = [shard for shard in own if not (folder / shard_name(shard)).exists()]
    sums: dict[str, str] = {}
    if todo:
        shards = [plan.shard_pairs(shard) for shard in todo]
        batches = [pairs[i : i + batch_size] for pairs in shards for i in range(0, len(pairs), batch_size)]
        quiet = not (progress and here.is_main_process)
        with tqdm(total=sum(map(len, shards)), desc=what, unit="clip", disable=quiet) as bar:
            sums = _write_shards(folder, plan, todo, make(batches), _DTYPES[index["dtype"]], bar)
    if here.num_processes > 1:
        sums = dict(pair for part in gather_object([sums]) for pair in part.items())
    names = [shard_name(shard) for shard in range(plan.shards)]
    absent: list[str] = []
    if here.is_main_process:
        seen = set(os.listdir(folder))  # asked anew, where one file's absence may be remembered by a network's disk
        absent = [name for name in names if name not in seen]
    if here.num_processes > 1:
        (absent,) = broadcast_object_list([absent])
    if absent:
        raise InputError(
            f"{folder} lacks {absent[0]}, which was written: it was deleted, or a host has a run folder of its own. "
            "All hosts must see the same one"
        )
    if here.is_main_process:
        sums = {**sums_in(read_index(folder) or {}), **sums}  # what `_prepare` has compared, and what is new
        sums = {name: sums.get(name) or sha256_of(folder / name) for name in names}
        write_bytes(folder / INDEX, json.dumps({**index, "complete": True, "sha256": sums}, indent=2).encode())
    here.wait_for_everyone()


def _check_plan(plan: Plan, batch_size: int, dtype: str) -> None:
    if plan.videos < 1:
        raise InputError("the data set has no clips to encode")
    for name, number in (("windows", plan.windows), ("batch", batch_size), ("shard", plan.shard_size)):
        if number < 1:
            raise InputError(f"latents.{name} must be at least 1, not {number}")
    if dtype not in _DTYPES:
        raise InputError(f"latents are stored as float16 or float32, not {dtype!r}")


def _prepare(folder: Path, index: Mapping[str, Any], plan: Plan) -> list[int]:
    """Make the folder fit for this cache; the numbers of the shards still to be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} for the latents cannot be made: {error.strerror}") from error
    for part in folder.glob(".*.part"):  # of a writer that was killed
        part.unlink(missing_ok=True)
    found = read_index(folder)
    changed = [] if found is None else _changes(found, index)
    if changed:
        logger.warning("%s: encoded again, as this has changed since: %s", folder, ", ".join(changed))
    for name, wanted in sums_in(found or {}).items():
        if not changed and (folder / name).exists() and sha256_of(folder / name) != wanted:
            logger.warning("%s: encoded again, as it is not what was written", folder / name)
            (folder / name).unlink()
    if found is None or changed:
        for stale in [folder / INDEX, *folder.glob("shard-*.safetensors")]:
            stale.unlink(missing_ok=True)
        write_bytes(folder / INDEX, json.dumps({**index, "complete": False}, indent=2).encode())
    return [shard for shard in range(plan.shards) if not (folder / shard_name(shard)).exists()]


def _changes(found: Mapping[str, Any], index: Mapping[str, Any]) -> list[str]:
    """What the index of a cache says otherwise than that of the one to write."""
    adopted = {"digest": index["digest"], **found, "complete": None, "sha256": None}
    wanted = {**index, "complete": None, "sha256": None}
    names = [name for name in {**wanted, **adopted} if name not in adopted or adopted[name] != wanted.get(name)]
    return ["content of the data" if name == "digest" else name for name in names]


def _check_room(folder: Path, index: Mapping[str, Any], plan: Plan, todo: Sequence[int]) -> None:
    entries = plan.copies * sum(len(plan.shard_pairs(shard)) for shard in todo)
    c, t, h, w = index["latent_shape"]
    grids = t * index.get("path", 1) + (2 if index.get("stills") else 0)
    size = entries * (c * grids * h * w * _DTYPES[index["dtype"]].itemsize + 12)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(f"{folder}: the latents need {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left")


@torch.inference_mode()
def _encoded(
    tokenizer: Any,
    dataset: Dataset,
    plan: Plan,
    stills: bool,
    batches: list[list[tuple[int, int]]],
    workers: int,
    device: torch.device,
) -> Iterator[dict[str, Tensor]]:
    """Encoded batches, in order."""
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, worker_init_fn=leave_signals_to_parent)
    with loading(loader) as loads:
        for batch in loads:
            clip = batch["clip"].to(device, tokenizer.dtype)  # (b, c, t, h, w)
            views = [clip, clip.flip(-1)] if plan.flips else [clip]
            # Each is (b, copies, c, t, h, w).
            encoded = {"latents": torch.stack([tokenizer.encode(view) for view in views], dim=1)}
            if stills:
                encoded["stills"] = torch.stack([encode_stills(tokenizer, view) for view in views], dim=1)
            yield {
                **{name: latents.flatten(0, 1).cpu() for name, latents in encoded.items()},
                "class_label": batch["class_label"].repeat_interleave(plan.copies),
                "fps": batch["fps"].float().repeat_interleave(plan.copies),
            }


def _write_shards(
    folder: Path,
    plan: Plan,
    todo: Sequence[int],
    batches: Iterator[dict[str, Tensor]],
    dtype: torch.dtype,
    bar: tqdm,
) -> dict[str, str]:
    """Write them, and return the SHA-256 of each by its file's name."""
    sums: dict[str, str] = {}
    for shard in todo:
        entries = plan.copies * len(plan.shard_pairs(shard))
        parts: list[dict[str, Tensor]] = []
        while sum(len(part["fps"]) for part in parts) < entries:
            part = next(batches)
            part |= {name: part[name].to(dtype) for name in GRIDS if name in part}
            parts.append(part)
            bar.update(len(part["fps"]) // plan.copies)
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        content = save(tensors)
        write_bytes(folder / shard_name(shard), content)
        sums[shard_name(shard)] = hashlib.sha256(content).hexdigest()
    return sums


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else reason_of(error)
    return InputError(f"{path}: cannot be read ({reason}); run the same command again")


class LatentCache(Dataset):
    """A latent cache as a data set.

    `cache[index]` or `cache[(index, draw)]` is a dict of `latents` float32 (c, t, h, w), `class_label` int64 and `fps`
    float32; of one with stills also `stills` (2, c, h, w), of what a model made `path` (n + 1, c, t, h, w), from noise
    to the latents. `draw` picks one of the stored windows and flips of video `index`, counting round; without it the
    first. `cache.batch` reads many at a time, an entry in a twentieth of the time.
    The shards are mapped into memory, each opened once per process; a cache can be sent to loader workers.

    Attributes:
        classes: names of the classes, empty if the data has none.
        latent_shape: (c, t, h, w) of one entry.
        variants: entries per video, `windows` times 2 with flips.
        index: the whole of `index.json`.

    Raises:
        InputError: no cache in the folder, an unfinished one, a missing shard, or one of another tokenizer.
    """

    def __init__(self, folder: str | os.PathLike[str], fingerprint: str | None = None) -> None:
        self.folder = Path(folder)
        found = read_index(self.folder)
        if found is None:
            raise InputError(f"{self.folder} holds no latent cache ({INDEX} is missing); write one with `vqvdm encode`")
        if not found["complete"]:
            raise InputError(f"the latent cache {self.folder} is unfinished; run `vqvdm encode` again to complete it")
        if fingerprint is not None and found["tokenizer"] != fingerprint:
            raise InputError(
                f"the latent cache {self.folder} was written by tokenizer {found['tokenizer']}, "
                f"the tokenizer in use is {fingerprint}; run `vqvdm encode` again"
            )
        self.index: dict[str, Any] = found
        self.classes: tuple[str, ...] = tuple(found["classes"])
        self.latent_shape: tuple[int, ...] = tuple(found["latent_shape"])
        c, _, h, w = self.latent_shape
        between = (found.get("path", 1) - 1, *self.latent_shape)
        self._grid_shapes = {"latents": self.latent_shape, "stills": (2, c, h, w), "path": between}
        self._plan = Plan(found["videos"], found["windows"], found["flips"], found["shard_size"])
        self.variants: int = self._plan.windows * self._plan.copies
        self._sums = sums_in(found)  # compared where a shard is first used
        self._mapped: dict[int, dict[str, Tensor]] = {}  # what is large of each shard, read where it is used
        self._grids = tuple(name for name in GRIDS if name == "latents" or found.get(name))
        self._entries = self._read_entries()  # all but the latents, (n,) each
        if ("seed" in self._entries) != ("path" in found):
            raise InputError(
                f"{self.folder} lacks the paths of its noise, as in older versions; distil into a new folder"
            )

    @property
    def class_labels(self) -> Tensor:
        """Of every entry: int64 (n,)."""
        return self._entries["class_label"]

    @property
    def fps(self) -> Tensor:
        """Frame rate of every entry: float32 (n,)."""
        return self._entries["fps"]

    def _read_entries(self) -> dict[str, Tensor]:
        shards: list[dict[str, Tensor]] = []
        for shard in range(self._plan.shards):
            path = self.folder / shard_name(shard)
            try:
                with safe_open(path, "pt") as file:
                    self._check_shapes(file, shard)
                    names = [name for name in file.keys() if name not in GRIDS]  # noqa: SIM118  no mapping
                    shards.append({name: file.get_tensor(name) for name in names})
            except (SafetensorError, ValueError) as error:
                raise InputError(f"{path} is damaged ({error}); delete it and run `vqvdm encode` again") from error
            except FileNotFoundError as error:
                message = f"the latent cache {self.folder} lacks {path.name}; run `vqvdm encode` again"
                raise InputError(message) from error
            except OSError as error:
                raise _unreadable(path, error) from error
        return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}

    def _check_shapes(self, file: Any, shard: int) -> None:
        """Raise `ValueError` if an open shard holds other tensors than the index says."""
        plan = self._plan
        rows = min(plan.pairs_per_shard, plan.pairs - shard * plan.pairs_per_shard) * plan.copies
        grids = {name: [rows, *shape] for name, shape in self._grid_shapes.items()}
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  no mapping
        wanted = {name: [rows] for name in (*found, "class_label", "fps")}
        wanted |= {name: grids[name] for name in GRIDS if name in self._grids or name in found}
        for name, shape in wanted.items():
            if found.get(name) != shape:
                raise ValueError(f"{name} is of shape {found.get(name, 'none')}, not {shape}")

    def __len__(self) -> int:
        return self._plan.videos

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.batch([index]).items()}

    def batch(self, indices: Sequence[int | tuple[int, int]]) -> dict[str, Tensor]:
        """Several entries, stacked: faster by far than one by one."""
        entries = torch.tensor([self._entry(index) for index in indices])
        per_shard = self._plan.pairs_per_shard * self._plan.copies
        shards, rows = entries // per_shard, entries % per_shard
        items = {name: torch.empty(len(entries), *self._grid_shapes[name]) for name in self._grids}
        for shard in shards.unique().tolist():
            here = (shards == shard).nonzero().squeeze(1)
            for name in self._grids:
                items[name][here] = self._shard(shard)[name][rows[here]].float()
        items |= {"class_label": self.class_labels[entries], "fps": self.fps[entries]}
        if "seed" in self._entries:
            seeds = self._entries["seed"][entries].tolist()
            noise = torch.stack([noise_of(seed, self.latent_shape) for seed in seeds])
            items["path"] = torch.cat([noise[:, None], items["path"], items["latents"][:, None]], dim=1)
        return items

    def _entry(self, index: int | tuple[int, int]) -> int:
        video, draw = index if isinstance(index, tuple) else (index, 0)
        if not 0 <= video < len(self):
            raise IndexError(f"video {video} of {len(self)}")
        return video * self.variants + draw % self.variants

    def _shard(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._mapped:
            path = self.folder / shard_name(shard)
            wanted = self._sums.get(path.name)
            try:
                if wanted is not None and this_process().is_local_main_process and sha256_of(path) != wanted:
                    raise InputError(f"{path} is damaged (not what was written); run `vqvdm encode` again")
                with safe_open(path, "pt") as file:
                    self._mapped[shard] = {name: file.get_tensor(name) for name in self._grids}
            except FileNotFoundError:  # with the whole run folder perhaps, which a training tells
                raise
            except (OSError, SafetensorError) as error:
                raise _unreadable(path, error) from error
        return self._mapped[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}
