"""What the page can do, without a browser: the studio, the gallery, inspection, and the server's addresses."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
import weakref
import zipfile
from concurrent.futures import Future
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tiny_pipeline import tiny_pipeline, tiny_studio
from vqvdm import VQVDMPipeline, bundled
from vqvdm.app import html
from vqvdm.app.description import of_folder
from vqvdm.app.gallery import Gallery, Item
from vqvdm.app.inspection import inspect, open_clip, picture_of_latents, picture_of_tokens
from vqvdm.app.maker import Maker
from vqvdm.app.settings import Progress, Settings
from vqvdm.app.studio import Studio
from vqvdm.diffusion import Objective
from vqvdm.errors import InputError
from vqvdm.generation import video_seed
from vqvdm.metrics.quality import psnr, squared_errors
from vqvdm.request import Request
from vqvdm.video import read_video, write_video

torch.set_num_threads(1)


def noise(frames: int = 4, side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


@pytest.fixture
def gallery():
    with Gallery() as gallery:
        yield gallery


@pytest.fixture
def studio(gallery) -> Studio:
    return tiny_studio(gallery)


def made(studio: Studio, *arguments, **named) -> list[str]:
    *_, tokens = studio.generate(*arguments, **named)
    return tokens


def test_videos_are_those_of_the_command_line(studio):
    tokens = made(studio, Settings(("up", "left"), count=2, fps=12, frames=4, steps=3, guidance=2, seed=5))
    items = [studio.gallery.get(token) for token in tokens]
    assert [item.name for item in items] == ["up-00", "up-01", "left-00", "left-01"]
    generator = [torch.Generator().manual_seed(video_seed(5, 2, 1))]
    (frames,) = tiny_pipeline()(
        "up", fps=12, num_inference_steps=3, guidance_scale=2, generator=generator, output_type="np"
    ).frames
    assert np.abs(items[1].video - (frames * 255).round()).max() <= 1
    assert items[1].facts["seed"] == video_seed(5, 2, 1)
    assert items[1].facts["ai_generated"] is True and items[1].facts["model"] == "tiny"
    again = made(studio, items[1].settings)
    assert np.array_equal(studio.gallery.get(again[1]).video, items[1].video), "its settings give the same video"


def test_progress_counts_up_and_shows_what_comes(studio):
    *steps, tokens = studio.generate(Settings(("up",), frames=4, steps=6))
    assert all(isinstance(step, Progress) for step in steps)
    assert [step.step for step in steps] == list(range(7))
    assert {step.steps for step in steps} == {6}
    assert steps[-1].seconds_left == 0
    shown = [step.previews for step in steps if step.previews]
    assert shown and shown[0][0].shape == (4, 16, 16, 3)
    assert len(tokens) == 1


def test_more_frames_are_made_window_by_window(studio):
    (token,) = made(studio, Settings(("up",), frames=12, steps=2))
    assert studio.gallery.get(token).video.shape == (12, 16, 16, 3)
    start = noise(4)
    (token,) = made(studio, Settings(("up",), frames=8, steps=2), Request(video=start))
    longer = studio.gallery.get(token).video
    assert len(longer) == 8
    assert np.array_equal(longer[:4], start), "what is given stays"


def test_without_a_class_videos_are_unconditional(studio):
    (token,) = made(studio, Settings((), frames=4, steps=2))
    assert studio.gallery.get(token).name == "video-00"


def test_another_solver_holds_for_one_job(studio):
    own = type(studio.maker.pipeline.scheduler).__name__
    for solver, expected in (("euler", "Euler"), ("", own)):
        (token,) = made(studio, Settings(("up",), frames=4, steps=2, scheduler=solver))
        assert expected in studio.gallery.get(token).facts["scheduler"]


def test_closing_stops_at_once_and_the_next_job_works(studio):
    calls = []
    studio.maker.pipeline.denoiser.register_forward_hook(lambda *_: calls.append(1))
    job = studio.generate(Settings(("up",), frames=4, steps=200))
    for _ in range(4):
        next(job)
    job.close()
    assert len(calls) < 150
    assert len(made(studio, Settings(("up",), frames=4, steps=2))) == 1


def test_a_session_stops_its_own_jobs_alone(studio):
    job = studio.generate(Settings(("up",), frames=4, steps=200), session="mine")
    next(job)
    studio.stop("another")
    assert isinstance(next(job), Progress)
    studio.stop("mine")
    *_, last = job
    assert last == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count must be a number from 1 to 64, not 0"),
        ({"count": 40}, "80 videos are asked for; 64 is the most"),
        ({"frames": 10**6}, "frames must be a number from 1 to 512, not 1000000"),
        ({"frames": 6}, None),
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"steps": True}, "steps must be a number"),
        ({"fps": float("nan")}, "fps must be a number from 0.1 to 240.0, not nan"),
        ({"guidance": "2"}, "guidance must be a number"),
        ({"seed": -1}, "seed must be a number from 0"),
        ({"classes": ("upp",)}, "unknown class 'upp'; did you mean 'up'"),
        ({"scheduler": "eulr"}, "no scheduler 'eulr'"),
    ],
)
def test_bad_settings_are_refused_and_the_studio_lives_on(studio, changes, message):
    settings = Settings(**{"classes": ("up", "left"), "frames": 4, "steps": 2, **changes})
    if message is None:  # longer than a window, which needs no multiple
        assert len(made(studio, settings)) == 2
        return
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        made(studio, settings)
    assert len(made(studio, Settings(("up",), frames=4, steps=2))) == 1


@pytest.mark.parametrize(
    "pipeline",
    [
        tiny_pipeline(),
        tiny_pipeline(num_classes=5),
        tiny_pipeline(num_classes=0, pixels=True),
        tiny_pipeline(objective=Objective("flow")),
        VQVDMPipeline.from_pretrained(bundled()),
    ],
)
def test_what_files_say_of_a_model_is_what_it_says_itself(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    found = of_folder("it", tmp_path)
    assert found == Maker(pipeline, "it").description
    assert list(found.classes) == [pipeline.id2label.get(k, str(k)) for k in range(pipeline.num_classes)]
    assert list(found.schedulers) == pipeline.objective.scheduler_names()
    first = 1 if pipeline.tokenizer is None else pipeline.tokenizer.factors[0]
    assert found.step == first * pipeline.denoiser.factors[0]
    assert found.reconstructs == (pipeline.tokenizer is not None)
    assert found.rates == ("8 to 16" if pipeline.config["about"].get("recipe") == "toy" else None)
    defaults = {name: getattr(found.defaults, name) for name in ("fps", "frames", "steps", "guidance")}
    config = pipeline.config
    assert defaults == {
        "fps": config["fps"],
        "frames": config["num_frames"],
        "steps": config["num_inference_steps"],
        "guidance": config["guidance_scale"],
    }


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("model_index.json", "num_frames", 0),
        ("model_index.json", "id2label", None),
        ("model_index.json", "fps", "fast"),
        ("denoiser/config.json", "num_classes", 10**12),
        ("denoiser/config.json", "patch", 2),
        ("tokenizer/config.json", "strides", [[]]),
        ("model_index.json", "about", []),
    ],
)
def test_a_model_with_strange_files_is_loaded_before_it_is_described(file, key, value, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert of_folder("it", tmp_path) is None


def test_the_page_is_made_before_the_libraries_of_the_networks_are_loaded():
    code = "import sys, vqvdm.app.server, vqvdm.app.command; print([it for it in sys.modules if it == 'torch'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_job_waits_for_a_model_that_is_being_loaded_and_can_be_stopped(gallery):
    maker = Future()
    studio = Studio(Maker(tiny_pipeline(), "tiny").description, maker, gallery)
    settings = Settings(("up",), frames=4, steps=2)
    jobs = [studio.generate(settings, session=name) for name in ("waits", "stops")]
    assert [next(job) for job in jobs] == [Progress(0, 2, None)] * 2
    assert studio.forecast(1, 4, 2) == ""
    studio.stop("stops")
    assert list(jobs[1])[-1] == []
    maker.set_result(Maker(tiny_pipeline(), "tiny"))
    assert len(list(jobs[0])[-1]) == 1


def test_a_model_that_cannot_be_loaded_is_told_to_who_waits(gallery):
    maker = Future()
    maker.set_exception(InputError("weights are damaged"))
    studio = Studio(Maker(tiny_pipeline(), "tiny").description, maker, gallery)
    with pytest.raises(InputError, match="weights are damaged"):
        list(studio.generate(Settings(("up",), frames=4, steps=2)))


def test_who_waits_for_a_model_is_let_go_when_the_page_is_closed(gallery):
    studio = Studio(Maker(tiny_pipeline(), "tiny").description, Future(), gallery)
    threading.Timer(0.2, studio.close).start()
    with pytest.raises(InputError, match="the page is closed"):
        _ = studio.maker


def test_a_model_that_fails_to_import_leaves_nobody_waiting(gallery):
    maker = Future()
    maker.set_exception(ImportError("libcudart.so"))
    studio = Studio(Maker(tiny_pipeline(), "tiny").description, maker, gallery)
    for _ in range(2):
        with pytest.raises(ImportError, match="libcudart"):
            list(studio.generate(Settings(("up",), frames=4, steps=2)))
    assert not studio.lock.locked()


@pytest.mark.parametrize("frames", [0, 1])
def test_a_model_that_no_page_can_show_is_refused_in_words(frames):
    pipeline = tiny_pipeline()
    pipeline.register_to_config(num_frames=frames)
    with pytest.raises(InputError, match=f"tiny: num_frames is {frames}; it must be 2 at least"):
        _ = Maker(pipeline, "tiny").description


@pytest.mark.slow
def test_damaged_weights_end_the_page_with_a_message(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    weights = next((tmp_path / "denoiser").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    command = [sys.executable, "-m", "vqvdm", "app", str(tmp_path), "--port", "0", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: {tmp_path} cannot be loaded")


def test_gallery_writes_every_format_with_its_facts(gallery):
    token = gallery.add(Item(noise(), 8.0, "up-00", {"seed": 7}))
    for form in ("mp4", "webm", "gif"):
        assert read_video(gallery.file(token, form)).shape == (4, 256, 256, 3)
    with Image.open(gallery.file(token, "webp")) as animation:
        assert (animation.size, animation.n_frames) == ((256, 256), 4)
    with av.open(str(gallery.file(token, "mp4"))) as container:
        assert json.loads(container.metadata["comment"]) == {"seed": 7}
    with Image.open(gallery.file(token, "png")) as row:
        assert row.width > 4 * 256 and json.loads(row.info["Comment"]) == {"seed": 7}
    with pytest.raises(InputError, match="unknown format 'exe'"):
        gallery.file(token, "exe")
    with pytest.raises(InputError, match="no longer kept"):
        gallery.file("../../etc/passwd", "mp4")


def test_a_card_keeps_the_place_of_its_video_until_that_is_there():
    shown = html.card("token", Item(np.zeros((4, 16, 24, 3), np.uint8), 8.0, "up-00"))
    assert 'style="aspect-ratio: 24 / 16"' in shown


def test_gallery_packs_videos_of_one_name_apart(gallery):
    tokens = [gallery.add(Item(noise(seed=k), 8.0, "up-00", {"seed": k})) for k in range(2)]
    with zipfile.ZipFile(io.BytesIO(gallery.archive(tokens, "gif"))) as archive:
        assert archive.namelist() == ["up-00.gif", "up-00-1.gif", "sheet.png"]
        assert archive.testzip() is None


def test_what_the_gallery_keeps_is_on_the_disk_and_not_in_memory():
    video = noise()
    alive = weakref.ref(video)
    with Gallery() as gallery:
        token, copied = gallery.add(Item(video, 8.0, "up-00", {"seed": 1})), video.copy()
        del video
        assert alive() is None
        item = gallery.get(token)
        assert np.array_equal(item.video, copied) and (item.fps, item.name, item.facts) == (8.0, "up-00", {"seed": 1})
        for path in Path(gallery.file(token, "gif")).parent.glob("*.npy"):
            path.unlink()  # as those do who clean temporary folders
        with pytest.raises(InputError, match="no longer kept"):
            gallery.get(token)


def test_a_file_whose_video_makes_room_meanwhile_does_not_stay(monkeypatch):
    with Gallery(most=noise().nbytes) as gallery:
        token = gallery.add(Item(noise(), 8.0, "old"))

        def slow(path: Path, item: Item, form: str) -> None:
            path.write_bytes(b"a video")
            gallery.add(Item(noise(), 8.0, "new"))

        monkeypatch.setattr("vqvdm.app.gallery.write_item", slow)
        with pytest.raises(InputError, match="no longer kept"):
            gallery.file(token, "gif")
        assert not gallery._path(token, "gif").exists()


def test_a_full_disk_names_no_folder_of_this_machine(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with Gallery() as gallery:
        with pytest.raises(InputError) as error:
            gallery.add(Item(noise(), 8.0, "up-00"))
        assert str(error.value) == "the video cannot be kept: No space left on device"
        assert len(gallery) == 0


def test_gallery_lets_the_oldest_go():
    with Gallery(most=3 * noise().nbytes) as gallery:
        tokens = [gallery.add(Item(noise(seed=k), 8.0, f"{k}")) for k in range(3)]
        path = gallery.file(tokens[0], "gif")
        gallery.add(Item(noise(), 8.0, "new"))
        assert len(gallery) == 3 and not path.exists()
        with pytest.raises(InputError, match="no longer kept"):
            gallery.get(tokens[0])
        gallery.get(tokens[1])


def test_inspection_measures_what_the_tokenizer_does(tmp_path):
    pipeline = tiny_pipeline()
    write_video(tmp_path / "video.png", noise(1), 8.0)
    write_video(tmp_path / "video.mp4", noise(9, 32), 8.0)
    video, fps = open_clip(tmp_path / "video.mp4", pipeline, start=0.25)
    assert video.shape == (4, 16, 16, 3) and fps == 8.0
    found = inspect(pipeline, video, fps)
    assert found.figures["PSNR"] == f"{float(psnr(squared_errors(video, found.made).mean())):.1f} dB"
    errors = found.made.astype(int) - video
    assert np.array_equal(found.difference, np.clip(127 + 4 * errors, 0, 255))
    assert found.latents.shape == pipeline.latent_shape(4, 16, 16)
    assert picture_of_latents(found.latents).dtype == np.uint8
    if found.tokens is not None:
        assert picture_of_tokens(found.tokens).ndim == 3
    with pytest.raises(InputError, match=r"video\.mp4 has 0 frames from 60 seconds on; \d are needed"):
        open_clip(tmp_path / "video.mp4", pipeline, start=60)
    with pytest.raises(InputError, match="start must be a time"):
        open_clip(tmp_path / "video.mp4", pipeline, start=float("nan"))
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    with pytest.raises(InputError, match=r"bad\.mp4"):
        open_clip(tmp_path / "bad.mp4", pipeline)


def test_colours_of_latents():
    latents = torch.tensor([0.0, 3.0, -3.0, 1.5]).view(1, 1, 1, 4)
    picture = picture_of_latents(latents)
    seen = [tuple(int(c) for c in picture[4, 4 + 8 * k]) for k in range(4)]
    assert seen == [(255, 255, 255), (255, 0, 0), (0, 0, 255), (255, 128, 128)]
