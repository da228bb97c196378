"""The latent cache: its entries against the tokenizer itself; interruption, other tokenizers, full disks."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tiny_pipeline import tiny_tokenizer
from vqvdm import latents
from vqvdm.errors import InputError
from vqvdm.latents import LatentCache, write_latents

torch.set_num_threads(1)


class Noise(Dataset):
    """Clips that are noise seeded by (index, draw); fails at one index if asked to."""

    classes = ("a", "b")

    def __init__(self, length: int = 7, fail_at: int | None = None) -> None:
        self.length, self.fail_at, self.read = length, fail_at, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        index, draw = key
        if index == self.fail_at:
            raise KeyboardInterrupt
        self.read += 1
        clip = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(100 * index + draw)) * 2 - 1
        return {"clip": clip, "class_label": torch.tensor(index % 2), "fps": torch.tensor(8.0 + index)}


def write(folder: Path, dataset: Dataset | None = None, **options) -> Path:
    options = {"windows": 2, "flips": True, "batch_size": 3, "shard_size": 6, "progress": False, **options}
    return write_latents(
        options.pop("tokenizer", tiny_tokenizer()), Noise() if dataset is None else dataset, folder, **options
    )


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("float16", 2e-3)])
def test_entries_are_what_the_tokenizer_says(tmp_path, dtype, error):
    tokenizer, dataset = tiny_tokenizer(), Noise()
    tokenizer.set_latent_statistics(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.5, 0.6, 0.7, 0.8]))
    cache = LatentCache(write(tmp_path, tokenizer=tokenizer, dtype=dtype), tokenizer.latents_fingerprint())
    assert len(cache) == 7 and cache.classes == ("a", "b") and cache.variants == 4
    assert len(list(tmp_path.glob("*.safetensors"))) == 5  # 28 entries, 6 to a shard
    for index in range(7):
        for window in range(2):
            clip = dataset[(index, window)]["clip"][None]
            for flip, view in enumerate([clip, clip.flip(-1)]):
                item = cache[(index, 2 * window + flip)]
                torch.testing.assert_close(item["latents"], tokenizer.encode(view)[0], atol=error, rtol=error)
                assert item["latents"].dtype == torch.float32
                assert item["class_label"] == index % 2 and item["fps"] == 8.0 + index
    assert torch.equal(cache[3]["latents"], cache[(3, 0)]["latents"])
    assert torch.equal(cache[(3, 6)]["latents"], cache[(3, 2)]["latents"])  # draws count round
    assert not torch.equal(cache[(3, 1)]["latents"], cache[(3, 0)]["latents"])
    with pytest.raises(IndexError):
        cache[7]


def test_stills_are_first_and_last_frames_held(tmp_path):
    tokenizer, dataset = tiny_tokenizer(), Noise()
    cache = LatentCache(write(tmp_path, tokenizer=tokenizer, stills=True, dtype="float32"))
    for draw, flip in ((0, False), (1, True)):
        clip = dataset[(4, 0)]["clip"][None]
        clip = clip.flip(-1) if flip else clip
        stills = cache[(4, draw)]["stills"]
        for still, frame in zip(stills, (clip[:, :, :1], clip[:, :, -1:]), strict=True):
            held = tokenizer.encode(frame.repeat(1, 1, tokenizer.factors[0], 1, 1))
            torch.testing.assert_close(still, held[0, :, 0], atol=1e-5, rtol=1e-5)
    assert "stills" not in LatentCache(write(tmp_path, tokenizer=tokenizer))[0]  # encoded again without


def test_workers_read_the_same(tmp_path):
    cache = LatentCache(write(tmp_path))
    here = [cache[index]["latents"] for index in range(7)]
    loader = DataLoader(pickle.loads(pickle.dumps(cache)), batch_size=4, num_workers=2)
    assert torch.equal(torch.cat([batch["latents"] for batch in loader]), torch.stack(here))


def test_a_batch_is_its_entries_in_their_order(tmp_path):
    cache = LatentCache(write(tmp_path, windows=2, flips=True, stills=True, shard_size=3))
    asked = [(5, 1), 0, (2, 7), (5, 1), (6, 2), 3]  # of several shards, out of order, one of them twice
    entries = [cache[index] for index in asked]
    batch = cache.batch(asked)
    assert set(batch) == {"latents", "stills", "class_label", "fps"}
    for name, values in batch.items():
        assert torch.equal(values, torch.stack([entry[name] for entry in entries])), name
    assert not torch.equal(batch["latents"][0], batch["latents"][1])
    with pytest.raises(IndexError):
        cache.batch([0, 7])


def test_interrupted_cache_is_refused_then_completed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", Noise(fail_at=5))
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.safetensors")}
    assert len(kept) == 3  # videos 0 to 4 are ten decoded clips, three to a shard
    with pytest.raises(InputError, match="unfinished; run `vqvdm encode` again"):
        LatentCache(tmp_path / "a")
    dataset = Noise()
    write(tmp_path / "a", dataset)
    assert dataset.read == 1 + 14 - 9  # the example, and what was missing
    assert all((tmp_path / "a" / name).stat().st_mtime_ns == time for name, time in kept.items())
    write(tmp_path / "b")
    for path in sorted((tmp_path / "b").iterdir()):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name
    assert write(tmp_path / "a", dataset) == tmp_path / "a" and dataset.read == 1 + 5 + 1  # nothing left to do


def test_ctrl_c_is_left_to_the_main_process(tmp_path):
    """A terminal sends it to the loader processes too; they must not die of it, nor say so."""

    class Interrupted(Noise):
        def __getitem__(self, key):
            if get_worker_info() is not None:
                assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(key)

    write(tmp_path, Interrupted(), workers=1)
    assert len(LatentCache(tmp_path)) == 7


def test_ctrl_c_waits_until_the_loader_has_started(tmp_path, monkeypatch):
    """In the midst of a fork Python would print it and go on."""
    done = []

    class Loader(DataLoader):
        def __iter__(self):
            signal.raise_signal(signal.SIGINT)
            done.append("started")
            return super().__iter__()

    monkeypatch.setattr(latents, "DataLoader", Loader)
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path)
        assert done == ["started"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)


def test_killed_writer_leaves_no_part_under_a_shard_s_name(tmp_path):
    write(tmp_path)
    shard = tmp_path / "shard-00002.safetensors"
    whole = shard.read_bytes()
    shard.unlink()
    (tmp_path / ".shard-00002.safetensors.123.part").write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"lacks shard-00002\.safetensors"):
        LatentCache(tmp_path)
    write(tmp_path)
    assert shard.read_bytes() == whole
    assert not list(tmp_path.glob(".*.part"))


def test_a_shard_that_another_host_wrote_on_its_own_disk_is_missed(tmp_path, monkeypatch):
    def elsewhere(folder, plan, todo, *_: object) -> dict[str, str]:
        return {latents.shard_name(shard): "0" * 64 for shard in todo}

    with monkeypatch.context() as patched:
        patched.setattr("vqvdm.latents._write_shards", elsewhere)
        with pytest.raises(InputError, match=r"lacks shard-00000\.safetensors, .* All hosts must see the same one"):
            write(tmp_path)
    with pytest.raises(InputError, match="unfinished"):
        LatentCache(tmp_path)
    LatentCache(write(tmp_path))[0]


def test_another_tokenizer_is_refused_and_replaced(tmp_path):
    first, second = tiny_tokenizer(0), tiny_tokenizer(1)
    write(tmp_path, tokenizer=first)
    with pytest.raises(InputError) as error:
        LatentCache(tmp_path, second.latents_fingerprint())
    assert first.latents_fingerprint() in str(error.value) and second.latents_fingerprint() in str(error.value)
    write(tmp_path, tokenizer=second, windows=1, flips=False)
    cache = LatentCache(tmp_path, second.latents_fingerprint())
    assert cache.variants == 1 and len(list(tmp_path.glob("*.safetensors"))) == 2
    expected = second.encode(Noise()[(6, 0)]["clip"][None])[0]
    torch.testing.assert_close(cache[6]["latents"], expected, atol=2e-3, rtol=2e-3)


def test_another_data_recipe_replaces(tmp_path):
    write(tmp_path, data={"path": "a", "betas": (1, 2)})
    dataset = Noise()
    write(tmp_path, dataset, data={"path": "a", "betas": (1, 2)})
    assert dataset.read == 1
    write(tmp_path, dataset, data={"path": "b"})
    assert dataset.read == 1 + 15
    assert json.loads((tmp_path / "index.json").read_text())["data"] == {"path": "b"}


def test_another_digest_replaces_and_an_old_cache_without_one_is_kept(tmp_path, caplog):
    write(tmp_path, digest="one")
    dataset = Noise()
    write(tmp_path, dataset, digest="one")
    assert dataset.read == 1 and not caplog.text
    write(tmp_path, dataset, digest="two")
    assert dataset.read == 1 + 15
    assert "encoded again, as this has changed since: content of the data" in caplog.text
    index = json.loads((tmp_path / "index.json").read_text())
    del index["digest"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert len(LatentCache(tmp_path)) == 7
    write(tmp_path, dataset, digest="three")
    assert dataset.read == 1 + 15 + 1
    assert json.loads((tmp_path / "index.json").read_text())["digest"] == "three"  # noticed from now on


def test_full_disk_while_writing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # the index fits, a shard does not
        with pytest.raises(InputError, match=r"no room on the disk for .*shard-00000"):
            write(tmp_path, shard_size=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
    write(tmp_path)
    assert len(LatentCache(tmp_path)) == 7


def test_full_disk_is_seen_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 1, 1))
    with pytest.raises(InputError, match=r"the disk has 0\.00 GB left"):
        write(tmp_path)


def test_wrong_input(tmp_path):
    with pytest.raises(InputError, match="holds no latent cache"):
        LatentCache(tmp_path)
    with pytest.raises(InputError, match="no clips to encode"):
        write(tmp_path, Noise(0))
    with pytest.raises(InputError, match=r"latents\.windows must be at least 1, not 0"):
        write(tmp_path, windows=0)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        LatentCache(tmp_path)


def test_damaged_caches_are_named(tmp_path):
    folder = write(tmp_path / "latents")
    shard = folder / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"shard-00001.safetensors is damaged .*encode"):
        LatentCache(folder)
    for content in ("{}", "[]", '{"complete": true}', "{"):
        (folder / "index.json").write_text(content)
        with pytest.raises(InputError, match=r"index.json is damaged .*encode again"):
            LatentCache(folder)
        with pytest.raises(InputError, match=r"index.json is damaged .*encode again"):
            write(folder)


def test_a_shard_on_a_failing_disk_is_named(tmp_path, monkeypatch):
    def failing(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = write(tmp_path / "latents")
    monkeypatch.setattr("vqvdm.latents.safe_open", failing)
    with pytest.raises(InputError, match=r"shard-00000.safetensors: cannot be read \(Input/output error\)"):
        LatentCache(folder)


def test_a_shard_that_is_not_what_was_written_is_refused_and_encoded_again(tmp_path, caplog):
    folder = write(tmp_path / "latents")
    shard = folder / "shard-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    cache = LatentCache(folder)
    cache[0]
    with pytest.raises(InputError, match=r"shard-00001.safetensors is damaged .*encode"):
        [cache[index] for index in range(len(cache))]
    write(folder)
    assert "shard-00001.safetensors: encoded again" in caplog.text
    assert shard.read_bytes() == whole
    [LatentCache(folder)[index] for index in range(len(cache))]


def test_caches_from_before_there_were_sums_are_read(tmp_path, caplog):
    folder = write(tmp_path / "latents")
    index = json.loads((folder / "index.json").read_text())
    del index["sha256"]
    (folder / "index.json").write_text(json.dumps(index))
    LatentCache(folder)[0]
    write(folder)
    assert not caplog.text


def test_a_file_in_the_place_of_the_cache(tmp_path):
    (tmp_path / "latents").write_text("")
    with pytest.raises(InputError, match="latents for the latents cannot be made"):
        write(tmp_path / "latents")
    with pytest.raises(InputError, match="holds no latent cache"):
        LatentCache(tmp_path / "latents")
