"""Models that come with the package: found by name, loaded as any other, and good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tiny_pipeline import tiny_pipeline
from vqvdm import VQVDMPipeline, bundled, models
from vqvdm.errors import InputError
from vqvdm.generation import generate, make_orders
from vqvdm.judge import judge
from vqvdm.loading import load_pipeline, load_tokenizer
from vqvdm.verbs.sample import main as sample

LARGEST = 12_000_000  # bytes of weights

torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose model is an untrained one."""
    monkeypatch.setattr(models, "_FOLDER", tmp_path / "models")
    tiny_pipeline().save_pretrained(tmp_path / "models" / "toy")
    return tmp_path / "models" / "toy"


def test_names(tiny: Path) -> None:
    assert (models.names(), bundled(), bundled("toy")) == (["toy"], str(tiny), str(tiny))
    with pytest.raises(InputError, match="no model 'tory' comes with this package; there are: toy"):
        bundled("tory")


def test_a_bundled_model_is_loaded_by_its_name_but_a_folder_comes_first(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = VQVDMPipeline.from_pretrained(bundled()).fingerprint()
    assert load_pipeline("toy", "cpu").fingerprint() == expected
    assert load_tokenizer("toy", "cpu").factors == (2, 4, 4)
    (tmp_path / "toy").mkdir()
    with pytest.raises(InputError, match="toy holds no pipeline"):
        load_pipeline("toy", "cpu")
    with pytest.raises(InputError, match=r"nor a name on the hub \(owner/name\); the model of the package is toy"):
        load_pipeline("tory", "cpu")


def test_sampling_without_a_name_takes_it(tiny: Path, tmp_path: Path) -> None:
    sample(classes="up", out=tmp_path / "out", steps=2)
    assert (tmp_path / "out" / "up-00.mp4").is_file()


needs_model = pytest.mark.skipif(not models.names(), reason="no model lies in src/vqvdm/models: scripts/bundle.py")


@needs_model
def test_the_package_s_weights_are_small_and_half_precision() -> None:
    files = list(Path(bundled()).rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= LARGEST
    for file in files:
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118
        assert torch.float16 in kinds
    pipeline = VQVDMPipeline.from_pretrained(bundled())
    assert {p.dtype for p in (*pipeline.denoiser.parameters(), *pipeline.tokenizer.parameters())} == {torch.float32}


@needs_model
def test_the_package_s_model_needs_no_network(tmp_path: Path) -> None:
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('asked for the network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from vqvdm import VQVDMPipeline, bundled\n"
        "print(VQVDMPipeline.from_pretrained(bundled())('spin', num_inference_steps=2, output_type='np').frames.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "(1, 16, 64, 64, 3)\n", done.stderr


@needs_model
@pytest.mark.slow
def test_the_package_s_model_does_what_it_is_asked() -> None:
    pipeline = load_pipeline(bundled(), "cpu")
    orders = make_orders(pipeline, None, 4, seed=123)
    seen = [
        judge(video, fps).label == order.label for order, video, fps in generate(pipeline, orders, 10, {"fps": 12.0})
    ]
    assert sum(seen) >= 0.9 * len(seen)
