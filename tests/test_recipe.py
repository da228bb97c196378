"""Recipes are read strictly, layered, changed by overrides, and written so that they load back equal."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vqvdm import VideoDenoiser, VideoTokenizer
from vqvdm.diffusion import Objective
from vqvdm.discriminators import PatchDiscriminator
from vqvdm.errors import InputError
from vqvdm.recipe import (
    DataRecipe,
    DenoiserRecipe,
    DenoiserTrainingRecipe,
    DiffusionRecipe,
    Recipe,
    SamplingRecipe,
    Scheduler,
    TokenizerRecipe,
    TrainingRecipe,
    run_folder,
)
from vqvdm.recipe_io import packaged_names

NAMES = packaged_names()


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_networks_of_every_recipe_give_back_the_shapes_they_take(name: str) -> None:
    """On the meta device, which knows shapes alone: the paper's networks would take minutes here."""
    recipe = Recipe.load(name)
    shape = (2, 3, recipe.data.frames, recipe.data.size, recipe.data.size)
    latents = shape
    with torch.device("meta"):
        clip = torch.empty(shape)
        if recipe.tokenizer is not None:
            tokenizer = VideoTokenizer(**recipe.tokenizer.model)
            for training in (True, False):
                output = tokenizer.train(training)(clip)
                assert output.reconstruction.shape == shape and output.tokens.shape[0] == 2
            latents = (2, *tokenizer.latent_shape(*shape[2:]))
            assert tokenizer.encode(clip).shape == tokenizer.encoder(clip).shape == latents
            assert (
                tokenizer.decode(torch.empty(latents)).shape == tokenizer.decoder(torch.empty(latents)).shape == shape
            )
            books = recipe.tokenizer.model.get("codebooks", 1)
            assert tokenizer.tokens(clip).shape == (2, *latents[2:], *([books] if books > 1 else []))
        denoiser = VideoDenoiser(**{"in_channels": latents[1], "num_classes": 3, **recipe.denoiser.model})
        noisy = torch.empty(latents)
        labels = torch.empty(2, dtype=torch.int64)
        assert denoiser(noisy, torch.empty(2), labels, torch.empty(2)).shape == latents


def test_packaged_names():
    assert {"toy", "toy-sky", "asl64", "paper-ucf101", "paper-sky", "vdm"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_packaged_recipe_loads_and_saves(name, tmp_path):
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.description
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path) == recipe  # by the folder, as of a run
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]  # no temporary file is left


@pytest.mark.parametrize("name", NAMES)
def test_packaged_recipe_fits_the_networks(name):
    Recipe.load(name, check_models=True)


@pytest.mark.parametrize("name", ["paper-ucf101", "paper-sky"])
def test_paper_recipes_make_videos_256_times_smaller(name):
    recipe = Recipe.load(name)
    model = recipe.tokenizer.model
    steps = [model["patch"], *model["strides"]]
    time, height, width = (math.prod(step[axis] for step in steps) for axis in range(3))
    data = recipe.data
    grid = (model["latent_channels"], data.frames // time, data.size // height, data.size // width)
    assert grid == (3, 4, 16, 16)
    assert 3 * data.frames * data.size**2 == 256 * math.prod(grid)


def test_paper_class_dropout():
    assert Recipe.load("paper-ucf101").denoiser.class_dropout == 0.5


def test_vdm_has_no_tokenizer():
    assert Recipe.load("vdm").tokenizer is None
    assert Recipe.load("toy", ["tokenizer=null"]).tokenizer is None


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("scheduler", get_args(Scheduler))
def test_accepted_schedulers_are_those_that_can_be_made(prediction, scheduler):
    diffusion = DiffusionRecipe(prediction=prediction, zero_terminal_snr=prediction != "epsilon")
    recipe = Recipe(denoiser=DenoiserRecipe(diffusion=diffusion), sampling=SamplingRecipe(scheduler=scheduler))
    objective = Objective(**dataclasses.asdict(diffusion))
    assert _accepts(recipe.check) == _accepts(lambda: objective.make_scheduler(scheduler))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("zero", [False, True])
def test_accepted_objectives_are_those_that_can_be_made(prediction, gamma, zero):
    diffusion = DiffusionRecipe(prediction=prediction, min_snr_gamma=gamma, zero_terminal_snr=zero)
    recipe = Recipe(denoiser=DenoiserRecipe(diffusion=diffusion))
    assert _accepts(recipe.check) == _accepts(lambda: Objective(**dataclasses.asdict(diffusion)))


def _accepts(function):
    try:
        function()
    except InputError:
        return False
    return True


def test_empty_file_gives_the_defaults(tmp_path):
    assert Recipe.load(write(tmp_path, "")) == Recipe(name="mine")


def test_values_get_their_types(tmp_path):
    text = """
    tokenizer:
      model: {channels: [32, 64], strides: [[2, 2, 2]], dropout: 1e-3}
      training: {learning_rate: 1e-3, weight_decay: 0, steps: 1e4, betas: [0, 0.5], trackers: [wandb]}
    data: {fps: 8, path: ü}
    """
    recipe = Recipe.load(write(tmp_path, text))
    training = recipe.tokenizer.training
    assert (training.learning_rate, type(training.weight_decay)) == (0.001, float)
    assert (training.steps, type(training.steps)) == (10_000, int)
    assert (training.betas, training.trackers) == ((0.0, 0.5), ("wandb",))
    assert (recipe.data.fps, type(recipe.data.fps), recipe.data.path) == (8.0, float, "ü")
    assert recipe.tokenizer.model == {"channels": (32, 64), "strides": ((2, 2, 2),), "dropout": 0.001}


def test_overrides():
    changes = ["tokenizer.training.steps=500", "denoiser.model.channels=[8, 16]", "data.fps=12.5", "data.path=a=b"]
    recipe = Recipe.load("toy", [*changes, "latents.flips=true", "denoiser.training.learning_rate=1e-5"])
    toy = Recipe.load("toy")
    assert recipe.tokenizer.training == dataclasses.replace(toy.tokenizer.training, steps=500)
    assert recipe.denoiser.model == {**toy.denoiser.model, "channels": (8, 16)}
    assert (recipe.data.fps, recipe.data.path, recipe.latents.flips) == (12.5, "a=b", True)
    assert recipe.denoiser.training.learning_rate == 1e-5
    assert Recipe.load("toy", ["data.fps=3", "data.fps=null"]).data.fps is None  # the last one holds


def test_base_layers_key_by_key(tmp_path):
    write(tmp_path, "base: toy\ndata: {size: 48}\ntokenizer: {model: {blocks: 7}}", "below.yaml")
    recipe = Recipe.load(write(tmp_path, "base: below.yaml\ndata: {frames: 8}"))
    toy = Recipe.load("toy")
    assert recipe.data == dataclasses.replace(toy.data, size=48, frames=8)
    assert recipe.tokenizer.model == {**toy.tokenizer.model, "blocks": 7}
    assert (recipe.name, recipe.description) == ("mine", "")  # these two are a file's own


numbers = st.floats(1e-12, 1e12, exclude_min=True)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20),
    rate=numbers,
    fps=st.none() | numbers,
    betas=st.tuples(st.floats(0, 0.9999), st.floats(0, 0.9999)),
    steps=st.integers(1, 10**12),
    model=st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.none() | st.booleans() | st.integers() | numbers | st.text("a1e-.:#'\" ", max_size=9),
        max_size=4,
    ),
)
def test_every_value_survives_the_file(tmp_path_factory, text, rate, fps, betas, steps, model):
    training = {"learning_rate": rate, "betas": betas, "steps": steps}
    recipe = Recipe(
        name=text,
        data=DataRecipe(path=text, fps=fps),
        tokenizer=TokenizerRecipe(model=model, training=TrainingRecipe(**training)),
        denoiser=DenoiserRecipe(model={"channels": (1, (2, 3))}, training=DenoiserTrainingRecipe(**training)),
    )
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.save(path)
    assert Recipe.load(path) == recipe


def test_saved_file_is_ordinary_yaml(tmp_path):
    Recipe.load("toy").save(tmp_path / "recipe.yaml")
    read = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert read["tokenizer"]["training"]["betas"] == [0.9, 0.99]


MISTAKES = [
    ("tokenizer: {trainig: {}}", ["mine.yaml", "'tokenizer.trainig'", "did you mean 'training'"]),
    ("datta: {}", ["'datta'", "did you mean 'data'"]),
    ("data: {zzz: 1}", ["'data.zzz'", "known here: path, layout"]),
    ("data: {frames: sixteen}", ["data.frames is 'sixteen'", "a whole number"]),
    ("data: {frames: 16.5}", ["data.frames is 16.5", "a whole number"]),
    ("data: {frames: true}", ["data.frames is true", "a whole number"]),
    ("data: {flip: 1}", ["data.flip is 1", "true or false"]),
    ("data: {path: 2024}", ["data.path is 2024", "text", "quotes"]),
    ("data: {fps: fast}", ["data.fps is 'fast'", "a number or null"]),
    ("data: {fps: .inf}", ["data.fps is inf", "a number or null"]),
    ("data: {fps: 0}", ["data.fps is 0", "above 0"]),
    ("data: {layout: ucf}", ["data.layout is 'ucf'", "'ucf101'", "did you mean 'ucf101'"]),
    ("data: {split: 4}", ["data.split is 4", "between 0 and 3"]),
    ("data: [1]", ["data is [1]", "a table of path, layout"]),
    ("data: null", ["data is null", "a table of"]),
    ("tokenizer: {training: {batch: 0}}", ["tokenizer.training.batch is 0", "at least 1"]),
    ("tokenizer: {training: {betas: [0.9]}}", ["tokenizer.training.betas is [0.9]", "2 entries"]),
    ("tokenizer: {training: {betas: [0.9, x]}}", ["tokenizer.training.betas[1] is 'x'", "a number"]),
    ("tokenizer: {training: {betas: 0.9}}", ["tokenizer.training.betas is 0.9", "a list [a number, a number]"]),
    ("tokenizer: {training: {betas: [0.9, 1.0]}}", ["[0.9, 1.0]", "between 0 and 1 (excluded)"]),
    ("tokenizer: {training: {trackers: [tensorbord]}}", ["trackers[0] is 'tensorbord'", "did you mean 'tensorboard'"]),
    ("denoiser: {class_dropout: 1.5}", ["denoiser.class_dropout is 1.5", "between 0 and 1"]),
    ("denoiser: {diffusion: {prediction: eps}}", ["denoiser.diffusion.prediction is 'eps'", "'epsilon'"]),
    ("denoiser: {diffusion: {prediction: epsilon}}", ["zero_terminal_snr is true", "'epsilon'", "set it to false"]),
    ("denoiser: {diffusion: {min_snr_gamma: 5}}", ["min_snr_gamma", "'flow'", "null"]),
    ("denoiser: {training: {fsdp: true, compile: true}}", ["denoiser.training.fsdp is true", "training.compile=false"]),
    ("tokenizer: {training: {fsdp: true}}", ["unknown key 'tokenizer.training.fsdp'"]),
    ("sampling: {scheduler: dmp++}", ["sampling.scheduler is 'dmp++'", "did you mean 'dpm++'"]),
    ("sampling: {guidance_interval: [0.8, 0.2]}", ["guidance_interval is [0.8, 0.2]", "must rise"]),
    ("tokenizer: {loss: {adversarial: {weight: 1, image: false, video: false}}}", ["adversarial.weight", "are off"]),
    ("tokenizer: {model: {in_channels: 1}}", ["tokenizer.model.in_channels is 1", "clips have 3 colours"]),
    ("tokenizer: {loss: {l1: 0, l2: 0}}", ["tokenizer.loss.l1 is 0", "l2 and perceptual", "nothing would teach"]),
    ("latents: {flips: true}", ["latents.flips is true", "left and right are classes"]),
    ("- 1", ["mine.yaml", "table of `key: value`"]),
    ("data: {frames: 1", ["mine.yaml line", "not valid YAML"]),
    ("data: {frames: 1, frames: 2}", ["mine.yaml line 1", "'frames' twice"]),
    ("data: !!python/object:os.system {}", ["mine.yaml line 1", "not valid YAML"]),
    ("base: tyo", ["'tyo'", "did you mean 'toy'"]),
    ("base: mine.yaml", ["circle", "mine.yaml"]),
    ("base: 3", ["base is 3"]),
]


@pytest.mark.parametrize(("text", "fragments"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_mistakes_in_a_file(text, fragments, tmp_path):
    with pytest.raises(InputError) as error:
        Recipe.load(write(tmp_path, text))
    assert "mine.yaml" in str(error.value)
    for fragment in fragments:
        assert fragment in str(error.value)


ADVERSARIAL = ("tokenizer.loss.adversarial.weight=0.1", "tokenizer.loss.adversarial.start=10")


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        (["layers=4"], []),
        (["layers=5"], ["override 'tokenizer.loss", "data.frames of at least 32, not 16", "at most 4"]),
        (["layers=5", "video=false"], []),
        (["layers=7", "video=false"], ["data.size of at least 128, not 64", "at most 6"]),
        (["layers=9", "weight=0"], []),
        (["layers=9", "start=1_000_000"], []),  # never reached
    ],
)
def test_a_discriminator_halves_no_clip_below_one_pixel(changes, fragments):
    """The bound is that of the network itself, which would refuse only at `start`, hours in."""
    overrides = [*ADVERSARIAL, *(f"tokenizer.loss.adversarial.{change}" for change in changes)]
    if fragments:
        with pytest.raises(InputError, match=r"tokenizer\.loss\.adversarial\.layers is") as error:
            Recipe.load("toy", overrides)
        assert all(fragment in str(error.value) for fragment in fragments), error.value
        return
    recipe = Recipe.load("toy", overrides)
    adversarial, data = recipe.tokenizer.loss.adversarial, recipe.data
    if adversarial.weight > 0 and adversarial.start < recipe.tokenizer.training.steps:
        clip = torch.zeros(1, 3, data.frames, data.size, data.size)
        for dims, on in ((2, adversarial.image), (3, adversarial.video)):
            if on:
                network = PatchDiscriminator(dims, 3, 2, adversarial.layers)
                network(clip if dims == 3 else clip[:, :, 0])


def test_one_frame_has_no_video_discriminator():
    with pytest.raises(InputError, match=r"data\.frames of at least 8, not 1; set adversarial\.video=false"):
        Recipe.load("toy", [*ADVERSARIAL, "data.frames=1"])


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("tokenizer.training.stepps=5", ["override 'tokenizer.training.stepps=5'", "did you mean 'steps'"]),
        ("tokenizer.trainig.steps=5", ["override", "did you mean 'training'"]),
        ("tokenizer.training.steps=0", ["override", "steps is 0", "at least 1"]),
        ("tokenizer.training.steps.x=0", ["steps is 12000", "no 'x'"]),
        ("steps", ["'steps'", "key=value"]),
        ("=5", ["key=value"]),
        ("data.path=[", ["not valid YAML"]),
    ],
)
def test_mistakes_in_an_override(override, fragments):
    with pytest.raises(InputError) as error:
        Recipe.load("toy", ["tokenizer.training.steps=12000", override])
    for fragment in fragments:
        assert fragment in str(error.value)


def test_override_below_null():
    with pytest.raises(InputError, match="tokenizer is null in recipe 'vdm'"):
        Recipe.load("vdm", ["tokenizer.training.steps=5"])


@pytest.mark.parametrize("name", ["tyo", "folder/tyo.yaml", "tyo.yaml"])
def test_missing_recipe_lists_the_packaged_ones(name):
    with pytest.raises(InputError) as error:
        Recipe.load(name)
    assert name in str(error.value)
    assert all(packaged in str(error.value) for packaged in NAMES)


def test_file_that_is_not_text(tmp_path):
    (tmp_path / "film.yaml").write_bytes(b"\x00\xff\xfe\x80")
    with pytest.raises(InputError, match=r"film\.yaml: not a YAML text file"):
        Recipe.load(tmp_path / "film.yaml")


def test_change_without_a_recipe():
    with pytest.raises(InputError, match="before it name the recipe"):
        Recipe.load("data.size=32")


def test_checks_from_python_need_no_file():
    with pytest.raises(InputError, match=r"data\.frames is 0, but must be at least 1"):
        Recipe(data=DataRecipe(frames=0)).check()
    Recipe(sampling=SamplingRecipe(), denoiser=DenoiserRecipe(diffusion=DiffusionRecipe())).check()


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        (
            "tokenizer.model.blokcs=1",
            ["argument of VideoTokenizer", "model.blokcs'", "did you mean 'blocks'"],
        ),
        ("tokenizer.model.blocks=two", ["tokenizer.model.blocks is 'two'", "a whole number"]),
        ("denoiser.model.chanels=[8]", ["argument of VideoDenoiser", "did you mean 'channels'"]),
    ],
)
def test_arguments_that_no_network_has(override, fragments):
    Recipe.load("toy", [override])  # unseen without the networks
    with pytest.raises(InputError) as error:
        Recipe.load("toy", [override], check_models=True)
    for fragment in [*fragments, f"override {override!r}"]:
        assert fragment in str(error.value)


def test_a_run_folder_named_as_recipe_is_the_run(tmp_path):
    toy = Recipe.load("toy")
    (tmp_path / "mine").mkdir()
    toy.save(tmp_path / "mine" / "recipe.yaml")
    mine = str(tmp_path / "mine")
    assert run_folder(mine, Recipe.load(mine)) == tmp_path / "mine"
    assert run_folder("toy", toy) == Path("runs/toy")
    assert run_folder(mine, toy, tmp_path / "other") == tmp_path / "other"


def test_self_conditioning_needs_an_estimate_of_clean_latents():
    words = ["denoiser.self_conditioning=0.5", "denoiser.diffusion.zero_terminal_snr=false"]
    assert Recipe.load("demo", [*words, "denoiser.diffusion.prediction=v_prediction"]).denoiser.self_conditioning == 0.5
    with pytest.raises(InputError, match=r"denoiser\.self_conditioning needs an estimate of the clean latents"):
        Recipe.load("demo", [*words, "denoiser.diffusion.prediction=epsilon"])


def test_a_run_that_is_not_there_is_no_recipe_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"runs/mine is not there; a training makes a run: vqvdm train tokenizer"):
        Recipe.load(tmp_path / "runs" / "mine")
    with pytest.raises(InputError, match=r"has no recipe\.yaml, so it is no run"):
        Recipe.load(tmp_path)
    with pytest.raises(InputError, match="no recipe named 'mine'"):
        Recipe.load("mine")
