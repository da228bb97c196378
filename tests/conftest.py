"""What all tests share: real clips where there are any, an index cache of their own, one thread."""

from __future__ import annotations

import os
import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tiny_evaluation import Projection, stored, videos
from tiny_pipeline import tiny_pipeline
from vqvdm.files import cache_folder
from vqvdm.weights.folder import FILES

torch.set_num_threads(1)  # tests run side by side
if "VQVDM_TEST_GPU" not in os.environ:
    # Tests compare with what a processor computes, and commands take a GPU where there is one, also those in a process
    # of their own.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips (ucf101-mini, asl, sky-mini); tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("VQVDM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "ucf101-mini").is_dir():
        pytest.skip(f"no real clips in {folder}: set VQVDM_TEST_DATA")
    return folder


FETCHED = cache_folder() / "weights"  # before tests have a cache of their own


@pytest.fixture(scope="session")
def fetched_weights() -> Path:
    """The user's folder with the weights of I3D and LPIPS, only read; tests that need it are skipped without it."""
    if not all((FETCHED / FILES[name]).is_file() for name in ("i3d", "lpips-vgg", "lpips-alex")):
        pytest.skip(f"no weights in {FETCHED}: run `vqvdm weights i3d` and `vqvdm weights lpips`")
    return FETCHED


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees or changes the user's cache."""
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path_factory.mktemp("cache")))


class NumberedVideo:
    """Videos whose frame k shows the bits of k as black and white bars, so that any frame read tells which it is."""

    bits = 8

    def make(self, frames: int, height: int = 48, width: int = 64) -> np.ndarray:
        """uint8 (t, h, w, 3)."""
        shown = (np.arange(frames)[:, None] >> np.arange(self.bits)) & 1  # (t, bits)
        bars = np.repeat(shown, -(-height // self.bits), axis=1)[:, :height]  # (t, h)
        return np.broadcast_to(bars[:, :, None, None] * 255, (frames, height, width, 3)).astype(np.uint8)

    def read(self, video: np.ndarray) -> list[int]:
        """The numbers that the frames show."""
        height = video.shape[1]
        bar = height / self.bits
        rows = ((np.arange(self.bits) + 0.5) * bar).astype(int)
        shown = video[:, rows].mean(axis=(2, 3)) > 127  # (t, bits)
        return (shown * (1 << np.arange(self.bits))).sum(axis=1).tolist()

    def write(
        self,
        path: Path,
        frames: int = 20,
        fps: float = 25.0,
        codec: str = "mpeg4",
        size: tuple[int, int] = (48, 64),
        stamps: list[int] | None = None,
        options: dict[str, str] | None = None,
        pix_fmt: str = "yuv420p",
    ) -> Path:
        """Encode with PyAV alone (not the package's writer); `stamps` are times of the frames in units of 1 / fps."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rate = Fraction(fps).limit_denominator(1001)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.height, stream.width = size
            stream.pix_fmt = pix_fmt
            for number, image in enumerate(self.make(frames, *size)):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = number if stamps is None else stamps[number]
                frame.time_base = 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path


@pytest.fixture(scope="session")
def numbered() -> NumberedVideo:
    return NumberedVideo()


@pytest.fixture
def commands(tmp_path, monkeypatch, fetched_weights):
    """The command line in an own folder, with the stand-in for I3D and a saved pipeline of twelve frames."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(fetched_weights)
    monkeypatch.setenv("VQVDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vqvdm.verbs.evaluate.load_i3d", lambda epsilon: Projection())
    monkeypatch.chdir(tmp_path)
    pipeline = tiny_pipeline()
    pipeline.register_to_config(num_frames=12, about={**pipeline.config["about"], "data": "toy"})
    pipeline.save_pretrained("model")
    stored(tmp_path / "real.npy", videos(1, 20, frames=12))
    return tmp_path


@pytest.fixture
def harmless(tmp_path, monkeypatch):
    """In an own folder; nothing runs there (it would leave a file `ran`), and memory stays."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert not (tmp_path / "ran").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes
