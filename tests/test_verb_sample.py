"""`vqvdm sample`: its files against the pipeline itself, and against themselves made otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import vqvdm.tokenizer
from tiny_pipeline import tiny_pipeline
from vqvdm import cli
from vqvdm.errors import InputError
from vqvdm.generation import make_orders, video_seed
from vqvdm.verbs import sample
from vqvdm.verbs.sample import main
from vqvdm.video import read_video, write_video

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def comment(path: Path) -> dict:
    with av.open(str(path)) as container:
        return json.loads(container.metadata["comment"])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize(("fps", "told"), [(2.0, False), (4.3, False), (5.0, True), (1.5, True)])
def test_frame_rates_that_training_never_saw_are_told(tmp_path, caplog, fps, told):
    pipeline = tiny_pipeline()
    pipeline.register_to_config(about={**pipeline.config["about"], "slowest_fps": 2.0, "fastest_fps": 4.0})
    pipeline.save_pretrained(tmp_path / "model")
    main(str(tmp_path / "model"), classes="up", fps=fps, steps=1, out=tmp_path / "out", format="png")
    assert ("the model was trained at 2 to 4 frames per second" in caplog.text) is told


def test_pictures_and_videos_are_given_in_files(model, tmp_path):
    pipeline = tiny_pipeline()
    size, window = pipeline.config["height"], pipeline.config["num_frames"]
    video = np.random.default_rng(0).integers(0, 256, (12, size, size, 3), dtype=np.uint8)
    Image.fromarray(video[0]).save(tmp_path / "first.png")
    write_video(tmp_path / "start.mp4", video, 4.0)
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[: size // 2] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    common = {"classes": "up", "fps": 2, "format": "png", "device": "cpu", "dtype": "float32", "seed": 5}

    def called(**arguments) -> np.ndarray:
        generator = [torch.Generator().manual_seed(video_seed(5, 2, 0))]
        frames = tiny_pipeline()("up", fps=2, generator=generator, output_type="np", **arguments).frames[0]
        return (frames * 255).round().astype(int)

    def written(name: str, **arguments) -> np.ndarray:
        main(str(model), **common, **arguments, out=tmp_path / name)
        row, step = pixels(tmp_path / name / "up-00.png"), size + 2
        return np.stack([row[:, left : left + size] for left in range(0, row.shape[1], step)])

    begun = written("begun", image=tmp_path / "first.png", last_image=tmp_path / "first.png")
    expected = called(image=video[0], last_image=video[0])
    assert np.abs(begun - expected).max() <= 1

    kept = read_video(tmp_path / "start.mp4")[1::2]  # every second frame: from 4 a second to 2
    anew = written("anew", video=tmp_path / "start.mp4", mask=tmp_path / "mask.png")
    expected = called(video=kept[:window], mask=mask)
    assert np.abs(anew - expected).max() <= 1

    longer = written("longer", video=tmp_path / "start.mp4", overlap=2)
    assert len(longer) == 6 + window - 2
    assert np.abs(longer[:6] - kept.astype(int)).max() <= 1
    assert len(written("length", length=11, overlap=1)) == 11
    with pytest.raises(InputError, match="frames are those of one window"):
        main(str(model), **common, frames=8, length=20, out=tmp_path / "none")
    with pytest.raises(InputError, match="fps must be a frame rate above 0, not 0"):
        main(str(model), **{**common, "fps": 0}, video=tmp_path / "start.mp4", out=tmp_path / "none")
    with pytest.raises(InputError, match=r"none\.png"):
        main(str(model), **common, image=tmp_path / "none.png", out=tmp_path / "none")


def test_a_file_for_each_video_and_a_sheet(model, tmp_path, capsys):
    main(str(model), classes="up,0", count=2, fps=12, out=tmp_path, seed=5)
    assert set(contents(tmp_path)) == {"up-00.mp4", "up-01.mp4", "left-00.mp4", "left-01.mp4", "sheet.png"}
    assert "4 videos" in capsys.readouterr().out
    with av.open(str(tmp_path / "up-01.mp4")) as container:
        assert container.streams.video[0].average_rate == 12
    said = comment(tmp_path / "up-01.mp4")
    assert said["ai_generated"] is True and said["generator"].startswith("vqvdm ")
    assert (said["class"], said["seed"], said["steps"], said["fps"]) == ("up", video_seed(5, 2, 1), 4, 12)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert json.loads(sheet.info["Comment"])["ai_generated"] is True


def test_the_pipeline_makes_the_same_from_the_seed_in_the_file(model, tmp_path):
    main(str(model), classes="up,0", count=2, fps=12, out=tmp_path, format="png", dtype="float32")
    with Image.open(tmp_path / "up-01.png") as row:
        seed = json.loads(row.info["Comment"])["seed"]
        made = np.stack([np.asarray(row)[:, 18 * k : 18 * k + 16] for k in range(4)])  # two white pixels between
    generator = [torch.Generator().manual_seed(seed)]
    expected = tiny_pipeline()(["up"], fps=12, generator=generator, output_type="np").frames[0]
    np.testing.assert_allclose(made, expected * 255, atol=0.6)


@pytest.mark.parametrize("format", ["mp4", "gif"])
def test_same_seed_same_files(model, tmp_path, format):
    main(str(model), count=2, out=tmp_path / "a", format=format)
    main(str(model), count=2, out=tmp_path / "b", format=format)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 7


def test_files_may_show_each_pixel_larger(model, tmp_path):
    main(str(model), classes="left", out=tmp_path / "small", format="png")
    main(str(model), classes="left", out=tmp_path / "large", format="png", scale=3)
    small, large = (pixels(tmp_path / size / "left-00.png") for size in ("small", "large"))
    np.testing.assert_array_equal(large[1:48:3, 1:48:3], small[:, :16])
    with pytest.raises(InputError, match="--scale must be at least 1, not 0"):
        main(str(model), out=tmp_path / "none", scale=0)


def test_a_run_folder_will_do(model, tmp_path):
    main(str(model.parent), classes="left", out=tmp_path)
    assert set(contents(tmp_path)) == {"left-00.mp4", "sheet.png"}


def test_videos_do_not_depend_on_their_company(model, tmp_path):
    main(str(model), classes="all", count=2, out=tmp_path / "all", format="png", batch=4)
    main(str(model), classes="up", count=3, out=tmp_path / "one", format="png", batch=1)
    for name in ("up-00.png", "up-01.png"):
        both = [pixels(tmp_path / folder / name) for folder in ("all", "one")]
        assert np.abs(both[0] - both[1]).max() <= 1  # one step of 255, where a sum rounds the other way
    main(str(model), classes="up", seed=1, out=tmp_path / "other", format="png")
    assert np.abs(pixels(tmp_path / "other" / "up-00.png") - pixels(tmp_path / "one" / "up-00.png")).max() > 20


def test_settings_reach_the_pipeline(model, tmp_path):
    main(str(model), classes="0", frames=6, height=24, width=32, steps=2, guidance=1, scheduler="euler", out=tmp_path)
    assert read_video(tmp_path / "left-00.mp4").shape == (6, 24, 32, 3)
    said = comment(tmp_path / "left-00.mp4")
    assert (said["steps"], said["guidance_scale"], said["scheduler"]) == (2, 1, "FlowMatchEulerDiscreteScheduler")


def test_tiles_for_large_videos(model, tmp_path):
    """Beyond a tile of 256 pixels the decoder is called for one tile at a time."""
    large = {"classes": "0", "frames": 4, "height": 16, "width": 320, "steps": 1, "format": "png"}
    extents = []
    decode = vqvdm.tokenizer.Decoder.forward

    def watched(self, z):
        extents.append(z.shape[-1] * 4)
        return decode(self, z)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vqvdm.tokenizer.Decoder, "forward", watched)
        main(str(model), **large, out=tmp_path / "whole")
        main(str(model), **large, tiled=True, out=tmp_path / "tiled")
    assert extents == [320, 256, 256]
    assert pixels(tmp_path / "tiled" / "left-00.png").shape == pixels(tmp_path / "whole" / "left-00.png").shape
    tiny_pipeline(num_classes=0, pixels=True).save_pretrained(tmp_path / "free")
    with pytest.raises(InputError, match="--tiled is for decoding, but this model makes pixels"):
        main(str(tmp_path / "free"), tiled=True, out=tmp_path / "free")


def test_without_classes(model, tmp_path):
    main(str(model), classes="none", count=3, out=tmp_path / "a")
    assert set(contents(tmp_path / "a")) == {"video-00.mp4", "video-01.mp4", "video-02.mp4", "sheet.png"}
    tiny_pipeline(num_classes=0, pixels=True).save_pretrained(tmp_path / "free")
    main(str(tmp_path / "free"), out=tmp_path / "b")
    assert set(contents(tmp_path / "b")) == {"video-00.mp4", "sheet.png"}
    with pytest.raises(InputError, match="this model is unconditional"):
        main(str(tmp_path / "free"), classes="left")


def test_class_names_as_they_come():
    pipe = tiny_pipeline()
    pipe.register_to_config(id2label={"0": "a, b", "1": "a / b", "2": "2"})
    assert [order.label for order in make_orders(pipe, "a, b", 1, 0)] == [0]
    assert [order.label for order in make_orders(pipe, "2,1,1", 1, 0)] == [2, 1]
    files = [order.file for order in make_orders(pipe, "all", 1, 0)]
    assert len(set(files)) == 3 and all(re.fullmatch(r"[\w.-]+", file) for file in files)


WRONG = [
    ({"classes": "lefft"}, "unknown class 'lefft'; did you mean 'left'? the ids are 0 to 2: 0 left, 1 right, 2 up"),
    ({"classes": "zzz"}, "unknown class 'zzz'; the ids are 0 to 2: 0 left, 1 right, 2 up"),
    ({"classes": "3"}, "id 3 is out of range; the ids are 0 to 2: 0 left, 1 right, 2 up"),
    ({"classes": "0,-1"}, "id -1 is out of range; the ids are 0 to 2: 0 left, 1 right, 2 up"),
    ({"count": 0}, "--count must be at least 1"),
    ({"seed": -1}, "--seed must be at least 0"),
    ({"scheduler": "ddpm"}, "no scheduler 'ddpm' for prediction flow; did you mean 'ddim'? there are dpm++, unipc"),
    ({"scheduler": "dmp++"}, "no scheduler 'dmp++' for prediction flow; did you mean 'dpm++'? there are dpm++, unipc"),
    ({"width": 20}, "width 20 (must be a multiple of 8; the nearest is 16)"),
    ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda x: x if isinstance(x, str) else None)
def test_wrong_arguments(model, tmp_path, arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        main(str(model), out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_found_before_the_work(model, tmp_path, monkeypatch):
    def load(*arguments):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(sample, "load_pipeline", load)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(InputError, match=re.escape(f"{out}: files cannot be written there (Not a directory)")):
            main(str(model), out=out)


@pytest.mark.parametrize(
    "words", [["--classes=-1"], ["--classes", "-1"], ["--classes", "-1,2"], ["--classes", "-1", "--steps", "1"]]
)
def test_a_negative_id_on_the_command_line(model, tmp_path, words, capsys):
    assert cli.main(["sample", str(model), *words, "--out", str(tmp_path / "out")]) == 2
    assert "id -1 is out of range; the ids are 0 to 2: 0 left" in capsys.readouterr().err


def test_of_many_classes_the_first_are_named():
    pipeline = tiny_pipeline(num_classes=40)
    with pytest.raises(InputError, match=r"out of range; the ids are 0 to 39$"):
        pipeline.get_label_ids(40)
    pipeline.register_to_config(id2label={str(key): f"class-{key}" for key in range(40)})
    with pytest.raises(InputError, match=r"0 class-0, .*, 29 class-29, and 10 more$"):
        pipeline.get_label_ids(40)


def test_wrong_models(model, tmp_path):
    with pytest.raises(InputError, match="holds no pipeline"):
        main(str(tmp_path), out=tmp_path)
    with pytest.raises(InputError, match=r"there is no .*nowhere; .* holds no folders"):
        main(str(tmp_path / "nowhere"), out=tmp_path)
    tiny_pipeline().save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "denoiser" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cut cannot be loaded"):
        main(str(tmp_path / "cut"), out=tmp_path)


def test_older_videos_in_the_folder_are_told_of(model, tmp_path, capsys):
    common = {"classes": "up", "steps": 1, "device": "cpu", "out": tmp_path / "out"}
    main(str(model), **common, count=2)
    assert capsys.readouterr().out.strip().endswith(f"2 videos and sheet.png in {tmp_path / 'out'}")
    main(str(model), **common, count=1)
    told = capsys.readouterr().out
    assert "1 video and sheet.png" in told and f"1 older video stays in {tmp_path / 'out'}" in told
