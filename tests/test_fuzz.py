"""No parser of what comes from outside does anything but succeed or raise `InputError`, whatever it is given.

`scripts/fuzz.py` feeds the same parsers for hours; the inputs with which one failed, there or here, stand below.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz_parsers import PARSERS
from fuzz_weights import header_of
from fuzzing import Finding, Parser, any_bytes, mutated, watched
from vqvdm.errors import InputError

_SLOW = {"recipe", "override", "networks", "model-index", "denoiser-config", "tokenizer-config", "model-weights"}


@cache
def _seeds(name: str) -> Sequence[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return tuple(PARSERS[name].seeds(Path(folder)))


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    (tmp_path / "sandbox").mkdir()
    return tmp_path / "sandbox"


@pytest.mark.parametrize("name", PARSERS)
def test_the_first_seed_is_taken(name: str, sandbox: Path) -> None:
    """Else nothing beyond the first check would be fuzzed."""
    if name == "package-index":  # whose package's sum is never right
        pytest.skip("it is always refused")
    assert any(watched(PARSERS[name], seed, sandbox) for seed in _seeds(name))


@pytest.mark.parametrize("name", PARSERS)
def test_any_change_of_a_valid_input_is_taken_or_refused(name: str, sandbox: Path) -> None:
    @settings(
        max_examples=3 if name in _SLOW else 12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.sampled_from(_seeds(name)), number=st.integers(0, 2**32), junk=st.none() | st.binary(max_size=64))
    def check(seed: bytes, number: int, junk: bytes | None) -> None:
        rng = random.Random(number)
        data = mutated(PARSERS[name], seed, rng, lambda content: any_bytes(content, rng)) if junk is None else junk
        watched(PARSERS[name], data, sandbox)

    check()


def _states(**changes: object) -> bytes:
    """A row of a log, and one with changes."""
    row = {"stage": "tokenizer", "step": 1, "loss": 1.0}
    return f"{json.dumps(row)}\n{json.dumps({**row, **changes})}".encode()


FOUND: Sequence[tuple[str, bytes]] = (
    ("recipe", b"? [name]\n: x"),  # TypeError: a list as a key
    ("recipe", b"name: 2024-99-99"),  # ValueError: a date of no calendar
    ("recipe", b"name: !!int 0b_"),  # ValueError: a number of no digits
    ("recipe", b"data: {fps: " + b"9" * 400 + b"}"),  # OverflowError: beyond a float
    ("recipe", b"data: {size: 0x" + b"f" * 5000 + b"}"),  # ValueError: beyond what Python writes
    ("recipe", b"data: {size: 1e300}"),  # a whole number beyond 64 bits
    ("recipe", b"base: " + b"9" * 300),  # OSError: a name that no system can have
    ("recipe", b"name: &a [*a]"),  # RecursionError: in itself
    ("recipe", b"[" * 40_000),  # RecursionError, after seconds
    ("recipe", b"tokenizer: {loss: {adversarial: {weight: 1, start: 0, layers: 1000000000000000}}}"),  # 2**layers
    ("override", b"name=2024-99-99"),
    ("networks", b'[{"channels": [1, 1], "strides": [[1, 1, 1]], "blocks": 1000000000}, {}]'),  # built without end
    ("networks", b'[{}, {"channels": [1000000000000000000]}]'),  # RuntimeError: a size beyond 64 bits
    ("manifest-csv", b"file\n" + b"x" * 5000),  # OSError: a name that no system can have
    ("manifest-csv", b"file\n" + b"x" * 140_000),  # csv.Error: a field beyond its limit
    ("manifest-jsonl", b"[" * 100_000),  # RecursionError
    ("manifest-jsonl", b'{"file": "a.mp4", "start": ' + b"9" * 400 + b"}"),  # OverflowError
    ("splits", b"A/v.avi\n===B/v.avi\n===\xc2\xb2 A"),  # ValueError: a digit that is no number
    ("splits", b"===\r\n"),  # IndexError: lists of no videos
    ("index", b'{"version": 2, "entries": []}'),  # AttributeError
    ("index", b"[" * 100_000),  # RecursionError
    ("latents", b"[" * 100_000),
    ("latents", b'{"classes": 1}'),
    ("pickle", b"\x96\0\x95\x03\x1e\x01" + b"\0" * 10),  # MemoryError: room for a bytearray of 2**48 bytes
    ("torch", b"\x80\x02\x96" + b"\0\0\0\0\x02\0\0\0" + b"."),  # seconds, and 8 GiB, of a bytearray
    ("package-index", b'{"files": [{}]}'),  # KeyError
    ("log", b"[" * 100_000),
    ("log", _states(loss=10**400)),  # OverflowError
    ("log", _states(step=10**400)),
    ("log", b'{"stage": "x", "step": 1, "loss": 1e20}'),  # ValueError: an axis of no length
    ("log", b'{"stage": "x", "step": 10000000000000000, "loss": 1}'),  # ZeroDivisionError: likewise
    ("checkpoint", b'{"step": 1, "architecture": 0}'),  # TypeError
    ("checkpoint", b'{"step": 1e400, "architecture": {}}'),  # OverflowError
    ("checkpoint", b'{"step": "x", "architecture": {}}'),  # ValueError
    ("reference", b"[" * 100_000),
    ("report", b"[" * 100_000),
    ("report", b'{"metrics": {"fvd": {"value": "x"}}, "protocol": {"line": "x"}, "counts": {"real": 1, "fake": 1}}'),
    ("tokenizer-config", b'"x"'),  # asked the hub for a model of that name
    ("model-index", b'{"_class_name": "VQVDMPipeline"}'),  # TypeError: parts are missing
    ("settings", b'{"seed": NaN}'),
    ("images", b"P6\n8 8\n25\xab\n"),  # ValueError of Pillow
    ("images", b"P6\n8 88 8\n255\n" + b"\0" * 200),
)


@pytest.mark.parametrize(("name", "data"), FOUND, ids=[f"{name}-{number}" for number, (name, _) in enumerate(FOUND)])
def test_what_once_failed(name: str, data: bytes, sandbox: Path) -> None:
    _seeds(name)  # some parsers need what they are made of, which is made once, outside of a sandbox
    watched(PARSERS[name], data, sandbox)


@pytest.mark.parametrize(
    "key", ["videos", "windows", "shard_size", "latent_shape", "classes", "flips", "tokenizer", "complete", "path"]
)
@pytest.mark.parametrize("value", [-1, 0, 2**80, 1e400, float("nan"), "x", None, {}, [-1]])
def test_strange_numbers_in_the_index_of_a_latent_cache(key: str, value: object, sandbox: Path) -> None:
    if (key, value) == ("tokenizer", "x"):
        pytest.skip("any text names a tokenizer")
    (seed,) = _seeds("latents")
    taken = watched(PARSERS["latents"], json.dumps({**json.loads(seed), key: value}).encode(), sandbox)
    assert not taken


@pytest.mark.parametrize("key", ["frames", "fps", "height", "start", "times", "keys", "seekable"])
@pytest.mark.parametrize("value", [-1, 2**80, 1e400, 10**400, float("nan"), "x", {}, [-1], [2, 1], [10**400] * 6])
def test_strange_numbers_in_the_index_of_a_folder(key: str, value: object, sandbox: Path) -> None:
    """The cache is then made anew: clips are cut as before."""
    stored = json.loads(_seeds("index")[0])
    stored["entries"]["a.gif"]["info"][key] = value
    assert watched(PARSERS["index"], json.dumps(stored).encode(), sandbox)


@pytest.mark.parametrize(
    "place",
    [("samples", 0, "start"), ("samples", 0, "fps"), ("videos", 0, "info", "start"), ("videos", 0, "info", "fps")],
)
def test_whole_numbers_beyond_a_float_in_the_index_of_shards(place: tuple[str | int, ...], sandbox: Path) -> None:
    stored = json.loads(_seeds("shards")[1])
    table = stored
    for name in place[:-1]:
        table = table[name]
    table[place[-1]] = 10**400
    assert not watched(PARSERS["shards"], json.dumps(stored).encode(), sandbox)


def test_a_shard_of_other_shapes_is_refused(sandbox: Path) -> None:
    header = json.loads(_seeds("latents-shard")[0])
    assert watched(PARSERS["latents-shard"], json.dumps(header).encode(), sandbox)
    header["latents"]["shape"] = [4, 2, 2, 2, 4]
    assert not watched(PARSERS["latents-shard"], json.dumps(header).encode(), sandbox)
    assert header_of(b"\x02" + b"\0" * 7 + b"{}x") == b"{}"


# ---------------------------------------------------------------------------------------------------- the watch watches


def _parser(run: object) -> Parser:
    return Parser(run, lambda folder: [], "")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]


def _refuse(data: bytes, folder: Path) -> None:
    raise InputError("no")


def _fail(data: bytes, folder: Path) -> None:
    raise KeyError("x")


def _spin(data: bytes, folder: Path) -> None:
    while True:
        pass


def test_findings_are_found(sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import subprocess

    monkeypatch.setattr("fuzzing.SECONDS", 0.2)
    monkeypatch.setattr("fuzzing.MEMORY", 2**26)
    kept: list[bytearray] = []
    for run, words in (
        (_fail, "KeyError"),
        (_spin, "more than 0.2 s"),
        (lambda data, folder: (tmp_path / "outside").write_text("x"), "open outside the sandbox"),
        (lambda data, folder: os.remove(tmp_path / "outside"), "os.remove outside the sandbox"),
        (lambda data, folder: subprocess.run(["true"], check=True), "subprocess.Popen outside the sandbox"),
        (lambda data, folder: kept.append(bytearray(b"x") * 2**31), "memory beyond the bound"),
    ):
        with pytest.raises(Finding, match=words):
            watched(_parser(run), b"", sandbox)
        kept.clear()
    assert watched(_parser(lambda data, folder: (folder / "inside").write_text("x")), b"", sandbox)
    assert not watched(_parser(_refuse), b"", sandbox)
