"""`vqvdm reconstruct`: a perfect codec gives perfect figures, and files show what was measured."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_pipeline import tiny_pipeline, tiny_tokenizer
from vqvdm.data import open_dataset
from vqvdm.errors import InputError
from vqvdm.recipe import DataRecipe, Recipe
from vqvdm.verbs.reconstruct import main, open_clips, reconstruct, trained_on
from vqvdm.video import read_video, to_clip, to_video, write_video

torch.set_num_threads(1)


@pytest.fixture
def model(tmp_path) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path / "run" / "tokenizer")
    Recipe.load("toy", ["data.frames=4", "data.size=16", "data.stride=2"]).save(tmp_path / "run" / "recipe.yaml")
    return tmp_path / "run"


@pytest.fixture
def videos(tmp_path, numbered) -> Path:
    for number in range(5):
        numbered.write(tmp_path / "videos" / "test" / "bars" / f"{number}.mp4", frames=12, fps=10.0)
        numbered.write(tmp_path / "videos" / "train" / "bars" / f"{number}.mp4", frames=12, fps=10.0)
    return tmp_path / "videos"


class Identity:
    """A tokenizer that loses nothing."""

    device = torch.device("cpu")

    def encode(self, clip):
        return clip

    decode = encode


def test_a_perfect_codec_is_perfect(videos):
    dataset = open_dataset(DataRecipe(path=str(videos), frames=4, size=16), "test", training=False)
    made = list(reconstruct(Identity(), dataset, [0, 2, 4], batch=2))
    assert [pair.psnr for pair in made] == [100] * 3  # equal frames
    for pair, index in zip(made, [0, 2, 4], strict=True):
        np.testing.assert_array_equal(pair.real, to_video(dataset[index]["clip"]))


def test_files_and_figures(model, videos, tmp_path, capsys):
    main(str(model), str(videos), out=tmp_path / "out", count=3)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"00000-0.mp4", "00002-2.mp4", "00004-4.mp4", "sheet.png"}
    printed = capsys.readouterr().out
    shown = [float(value) for value in re.findall(r"^\d{5}-\d +([\d.]+) dB", printed, re.MULTILINE)]
    mean = float(re.search(r"mean PSNR ([\d.]+) dB over 3 of 5 clips", printed)[1])
    assert len(shown) == 3 and mean == pytest.approx(np.mean(shown), abs=0.01)
    video = read_video(tmp_path / "out" / "00002-2.mp4")
    assert video.shape == (4, 16 + 2 + 16, 16, 3)  # two white pixels between
    # The figure once more, from the file alone: the tokenizer applied to the clip and numpy's arithmetic.
    dataset = open_dataset(DataRecipe(path=str(videos), frames=4, size=16, stride=2), "test", training=False)
    clip = dataset[2]["clip"]
    tokenizer = tiny_tokenizer()
    made = tokenizer.decode(tokenizer.encode(clip[None]))[0].clamp(-1, 1)
    expected = 10 * math.log10(4 / float((made - clip).square().mean()))
    assert shown[1] == pytest.approx(expected, abs=0.05)


def test_of_a_folder_that_training_never_saw_all_clips_are_taken(model, tmp_path, numbered, capsys):
    for number in range(6):
        numbered.write(tmp_path / "new" / f"{number}.mp4", frames=12, fps=10.0)
    main(str(model), str(tmp_path / "new"), out=tmp_path / "out")
    assert "over 6 of 6 clips" in capsys.readouterr().out
    main(str(model), str(tmp_path / "new"), out=tmp_path / "out", split="train")
    train = int(re.search(r"of (\d+) clips", capsys.readouterr().out)[1])
    assert train < 6
    own = Recipe.load(model, [f"data.path={tmp_path / 'new'}"])
    own.save(model / "recipe.yaml")
    main(str(model), str(tmp_path / "new"), out=tmp_path / "out")
    assert f"of {6 - train} clips" in capsys.readouterr().out, "of the model's own clips those that were held out"


def test_one_file(model, tmp_path, numbered):
    path = numbered.write(tmp_path / "alone.mp4", frames=12, fps=10.0, size=(64, 80))
    main(str(model / "tokenizer"), str(path), out=tmp_path / "out", frames=8, size=32, stride=1, tiled=True)
    assert read_video(tmp_path / "out" / "00000-alone.mp4").shape == (8, 66, 32, 3)
    clip = open_clips(DataRecipe(path=str(path), frames=4, size=64, stride=2), "test")[0]["clip"]
    assert numbered.read(to_video(clip)) == [2, 4, 6, 8]  # the middle of 12 frames


def test_what_the_model_was_trained_on(model, tmp_path):
    assert trained_on(model).stride == trained_on(model / "tokenizer").stride == 2
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    assert (trained_on(tmp_path / "pipeline").frames, trained_on(tmp_path / "pipeline").size) == (4, 16)
    assert trained_on(Path("owner/name")) == DataRecipe()


def test_a_pipeline_s_tokenizer_will_do(videos, tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    main(str(tmp_path / "pipeline"), str(videos), out=tmp_path / "out", count=1)
    assert "mean PSNR" in capsys.readouterr().out


def test_a_toy_world_has_no_stride_of_the_model_s_clips(model, tmp_path, capsys):
    assert trained_on(model).stride == 2
    main(str(model), "toy", out=tmp_path / "out", count=1)
    assert "mean PSNR" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"data\.stride is 3"):
        main(str(model), "toy", out=tmp_path / "out", count=1, stride=3)


def test_wrong_input(model, videos, tmp_path):
    with pytest.raises(InputError, match="a clip of 5 frames of 16x16 cannot be divided"):
        main(str(model), str(videos), frames=5)
    with pytest.raises(InputError, match="nowhere"):
        main(str(model), "nowhere")
    with pytest.raises(InputError, match="--count must be at least 1"):
        main(str(model), str(videos), count=0)
    tiny_pipeline(pixels=True).save_pretrained(tmp_path / "pixels")
    with pytest.raises(InputError, match="holds no tokenizer"):
        main(str(tmp_path / "pixels"), str(videos))
    write_video(tmp_path / "short.mp4", np.zeros((3, 16, 16, 3), np.uint8), 8)
    with pytest.raises(InputError, match="long enough for 4 frames"):
        main(str(model), str(tmp_path / "short.mp4"))
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.mp4"):
        main(str(model), str(tmp_path / "broken.mp4"))


def test_a_folder_that_cannot_be_written_is_found_before_the_work(model, videos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/sub: files cannot be written there \(Not a directory\)"):
        main("no model", str(videos), out=tmp_path / "file" / "sub")


def test_round_trip_of_the_two_forms():
    video = np.random.default_rng(0).integers(0, 255, (2, 4, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_video(to_clip(video)), video)
