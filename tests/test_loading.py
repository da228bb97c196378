"""Models, devices and schedulers by the names that users give them."""

from __future__ import annotations

import pytest
import torch

import vqvdm.pipeline
from tiny_pipeline import tiny_pipeline, tiny_tokenizer
from vqvdm import VQVDMPipeline
from vqvdm.errors import InputError
from vqvdm.loading import load_pipeline, load_tokenizer, pick_device

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder: its pipeline, and another tokenizer beside it."""
    folder = tmp_path_factory.mktemp("run")
    tiny_pipeline().save_pretrained(folder / "pipeline")
    tiny_tokenizer(1).save_pretrained(folder / "tokenizer")
    return folder


def test_places_of_a_model(run):
    assert load_pipeline(run, "cpu").labels == load_pipeline(run / "pipeline", "cpu").labels
    keys = [load_tokenizer(place, "cpu").fingerprint() for place in (run, run / "tokenizer", run / "pipeline")]
    assert keys == [tiny_tokenizer(1).fingerprint()] * 2 + [tiny_tokenizer(0).fingerprint()]


def test_what_is_saved_does_not_tell_where_it_was_loaded_from(run, tmp_path):
    load_pipeline(run, "cpu").save_pretrained(tmp_path)
    settings = list(tmp_path.rglob("*.json"))
    assert len(settings) == 4
    assert not [path for path in settings if str(run) in path.read_text()]


def test_loading_from_disk_draws_no_progress_bar(run, capsys):
    load_pipeline(run, "cpu")
    assert "Loading" not in capsys.readouterr().err
    VQVDMPipeline.from_pretrained(run / "pipeline")
    assert "Loading" in capsys.readouterr().err  # as in diffusers, for whoever calls it


def test_hub_names(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        vqvdm.pipeline, "snapshot_download", lambda name, **_: (asked.append(name), run / "pipeline")[1]
    )
    assert load_pipeline("someone/videos", "cpu").num_classes == 3
    assert load_tokenizer("someone/videos", "cpu").fingerprint() == tiny_tokenizer(0).fingerprint()
    assert asked == ["someone/videos"] * 2


def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    (tmp_path / "runs" / "demo").mkdir()
    for load in (load_pipeline, load_tokenizer):
        with pytest.raises(InputError, match=r"there is no runs/toi; runs holds toy, demo$"):
            load("runs/toi")


def test_hub_that_does_not_answer(monkeypatch):
    def fail(name, **_):
        raise OSError("no such repository\nand much more")

    monkeypatch.setattr(vqvdm.pipeline, "snapshot_download", fail)
    for load in (load_pipeline, load_tokenizer):
        with pytest.raises(
            InputError, match=r"^someone/videos cannot be loaded: no such repository \(nor is there a folder"
        ):
            load("someone/videos")


def test_nothing_there(tmp_path):
    for load, what in ((load_pipeline, "pipeline"), (load_tokenizer, "tokenizer")):
        with pytest.raises(InputError, match=f"holds no {what}"):
            load(tmp_path)
        with pytest.raises(InputError, match=r"there is no .*nowhere; .* holds no folders"):
            load(tmp_path / "nowhere")
        with pytest.raises(InputError, match=r"toi is neither a folder nor a name on the hub .*toy"):
            load("toi")


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert torch.empty(0, device=pick_device("auto")).numel() == 0
    with pytest.raises(InputError, match="device 'toaster' cannot be used here"):
        pick_device("toaster")
