"""Stage 2: what the network is given, the pipeline it leaves, overfitting."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vqvdm.verbs.encode
from tiny_training import DENOISER, TinyClips, give_tokenizer, open_tiny, tiny_recipe
from vqvdm.errors import InputError
from vqvdm.latents import LatentCache, write_latents
from vqvdm.pipeline import VQVDMPipeline
from vqvdm.recipe import LatentsRecipe, Recipe, SamplingRecipe
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.train import denoiser as module
from vqvdm.train.checkpoint import latest_checkpoint
from vqvdm.train.denoiser import DenoiserStage, train_denoiser
from vqvdm.train.loop import make_accelerator
from vqvdm.train.order import Batch

# diffusers' schedulers give tensors to numpy in a way that numpy deprecates


@pytest.fixture(autouse=True)
def _tiny_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_dataset", open_tiny)


def pixel_stage(
    tmp_path: Path,
    model: dict | None = None,
    dropout: float = 0.5,
    self_conditioning: float = 0.0,
    context: float = 0.0,
    images: float = 0.0,
    **training,
) -> DenoiserStage:
    recipe = replace(tiny_recipe(**training), tokenizer=None)
    part = replace(
        recipe.denoiser,
        model={**DENOISER, **(model or {})},
        class_dropout=dropout,
        self_conditioning=self_conditioning,
        context=context,
        images=images,
    )
    recipe = replace(recipe, denoiser=part, sampling=SamplingRecipe(steps=2, guidance_scale=2.0 if dropout else 1.0))
    return DenoiserStage(recipe, make_accelerator(part.training, tmp_path), TinyClips(), None)


def batch_of(numbers: range, size: int | None = None) -> Batch:
    items = [TinyClips()[number % 10] for number in numbers]
    data = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    return Batch(data, numbers, 0, size or len(numbers), last=True)


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_classes_are_dropped_as_often_as_asked(tmp_path: Path, dropout: float) -> None:
    stage = pixel_stage(tmp_path, dropout=dropout)
    batch = batch_of(range(1000))
    labels, rates = stage.dropped(batch)
    assert labels is not None
    assert labels is not None
    dropped = labels == 3
    assert abs(float(dropped.float().mean()) - dropout) < 0.05
    assert abs(float((rates == 0).float().mean()) - dropout / 2) < 0.05
    assert not ((rates == 0) & ~dropped).any()
    assert torch.equal(rates[rates > 0], batch["fps"][rates > 0])
    assert torch.equal(labels[~dropped], batch["class_label"][~dropped])


def test_an_unconditional_network_gets_no_classes(tmp_path: Path) -> None:
    stage = pixel_stage(tmp_path, {"num_classes": 0})
    assert stage.dropped(batch_of(range(4)))[0] is None
    stage.update(0, [batch_of(range(4))])


def test_a_share_of_the_updates_learns_single_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = pixel_stage(tmp_path, images=0.4, context=0.5)
    forward, lengths = stage.forward, []
    seen = lambda noisy, *a, **named: lengths.append(noisy.shape[::2]) or forward(noisy, *a, **named)  # noqa: E731
    monkeypatch.setattr(stage, "forward", seen)
    figures = [stage.update(step, [batch_of(range(4 * step, 4 * step + 4))]) for step in range(10)]
    assert lengths == [(8, 1, 16) if step in (2, 4, 7, 9) else (4, 4, 16) for step in range(10)]
    assert [("image_loss" in of, "loss" in of) for of in figures] == [
        (step in (2, 4, 7, 9), step not in (2, 4, 7, 9)) for step in range(10)
    ]


def test_the_network_meets_what_the_objective_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rectified flow: input (1 - s) x0 + s e at timestep 1000 s, target e - x0."""
    stage = pixel_stage(tmp_path)
    batch = batch_of(range(4))
    seen = {}

    def answer(noisy, timestep, labels, fps, estimate, context):
        assert estimate is None
        seen.update(noisy=noisy, timestep=timestep, labels=labels, fps=fps)
        return torch.zeros_like(noisy)

    monkeypatch.setattr(stage, "forward", answer)
    loss = stage.denoising_loss(batch)
    clips, noise = batch["clip"], batch.noise_like(batch["clip"])
    sigma = (seen["timestep"] / 1000).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(seen["noisy"], (1 - sigma) * clips + sigma * noise, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, (noise - clips).square().mean())
    assert torch.equal(seen["fps"], stage.dropped(batch)[1])


@pytest.mark.parametrize("prediction", ["flow", "v_prediction", "sample"])
def test_a_share_of_the_clips_is_shown_the_networks_own_estimate(
    tmp_path: Path, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is (here) the perfect one, so the estimate is the clip itself, where there is one."""
    stage = pixel_stage(tmp_path, self_conditioning=0.5)
    assert stage.denoiser.config["self_condition"]
    stage.objective = replace(stage.objective, prediction=prediction)
    batch = batch_of(range(64))
    clips, noise = batch["clip"], batch.noise_like(batch["clip"])
    alpha, sigma, _ = stage.objective.levels(batch.strata("time"))
    a, s = (level.view(-1, 1, 1, 1, 1) for level in (alpha, sigma))
    perfect = {"flow": noise - clips, "v_prediction": a * noise - s * clips, "sample": clips}[prediction]
    shown = batch.uniform("estimate") < 0.5
    first, second = [], []

    def guess(noisy, timestep, labels, fps, context):
        first.append(noisy)
        return perfect[shown]

    def answer(noisy, timestep, labels, fps, estimate, context):
        second.append(estimate)
        return torch.zeros_like(noisy)

    monkeypatch.setattr(stage.denoiser, "forward", guess)
    monkeypatch.setattr(stage, "forward", answer)
    stage.denoising_loss(batch)
    assert 16 < len(first[0]) < 48
    torch.testing.assert_close(second[0][shown], clips[shown], atol=1e-4, rtol=1e-4)
    assert not second[0][~shown].any()


def test_a_share_of_the_clips_is_shown_some_of_its_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = pixel_stage(tmp_path, context=0.5, self_conditioning=1.0)
    torch.nn.init.normal_(stage.denoiser.head.weight, std=0.1)
    batch, seen = batch_of(range(64)), []
    forward = stage.denoiser.forward
    monkeypatch.setattr(
        stage.denoiser, "forward", lambda *a, **named: seen.append(named["context"]) or forward(*a, **named)
    )
    stage.update(0, [batch])
    assert len(seen) == 2 and torch.equal(seen[0], seen[1]), "its own first estimate must have seen them, too"
    shown, known = seen[0][:, :3], seen[0][:, 3:4] > 0
    assert torch.equal(shown, batch["clip"].masked_fill(~known, 0.0))
    assert known.flatten(1).any(1).float().mean() == pytest.approx(0.5, abs=0.2)
    assert not known[:, :, -1].all() and not seen[0][:, 4].any()  # clips have no stills
    assert stage.denoiser.stem.weight.grad[:, 6:10].abs().max() > 0


def test_a_network_that_knows_its_estimate_trains(tmp_path: Path) -> None:
    stage = pixel_stage(tmp_path, self_conditioning=1.0)
    torch.nn.init.normal_(stage.denoiser.head.weight, std=0.1)
    stage.update(0, [batch_of(range(4))])
    gradient = stage.denoiser.stem.weight.grad
    assert gradient[:, 3:].abs().max() > 0  # the estimate's channels


def test_the_first_estimate_of_a_compiled_network_is_not_compiled_on_a_cpu(tmp_path: Path) -> None:
    """With torch 2.13 such a pass (without gradients, under autocast) is NaN there."""
    stage, batch, traced = pixel_stage(tmp_path, self_conditioning=1.0), batch_of(range(4)), []
    stage.training = replace(stage.training, compile=True)
    stage.denoiser.compile(backend=lambda graph, _: traced.append(1) or graph.forward)
    noisy, uniform = batch["clip"], batch.strata("time")
    arguments = (stage.objective.levels(uniform)[2], batch["class_label"], batch["fps"])
    estimate = stage.first_estimate(batch, noisy, *arguments, uniform, None)
    assert estimate is not None and estimate.any() and not traced
    stage.denoiser(noisy, *arguments, estimate=estimate)
    assert traced


@pytest.mark.parametrize("prediction", ["flow", "v_prediction", "sample"])
def test_two_micro_batches_have_the_gradient_of_one_whole_batch(tmp_path: Path, prediction: str) -> None:
    whole, halves = pixel_stage(tmp_path), pixel_stage(tmp_path)
    for stage in (whole, halves):
        stage.objective = replace(stage.objective, prediction=prediction)
    one = whole.update(0, [batch_of(range(4))])
    two = halves.update(0, [batch_of(range(2), 4), batch_of(range(2, 4), 4)])
    assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-6)
    for a, b in zip(whole.denoiser.parameters(), halves.denoiser.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_the_run_leaves_a_pipeline_with_averaged_weights(tmp_path: Path) -> None:
    give_tokenizer(tmp_path)
    pipeline = VQVDMPipeline.from_pretrained(train_denoiser(tiny_recipe(sample_every=2), tmp_path))
    found = latest_checkpoint(tmp_path / "checkpoints" / "denoiser")
    assert found is not None
    average = found.tensors("ema")
    assert all(torch.equal(value, average[name]) for name, value in pipeline.denoiser.state_dict().items())
    given = VideoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert pipeline.tokenizer is not None
    assert pipeline.tokenizer.fingerprint() == given.fingerprint()
    assert pipeline.labels == {"left": 0, "right": 1, "up": 2}
    assert (pipeline.config.num_frames, pipeline.config.height, pipeline.config.fps) == (4, 16, 8.5)
    samples = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert samples == [f"denoiser-0000000{step}.{kind}" for step in (2, 4) for kind in ("mp4", "png")]


def test_pixels_are_diffused_without_a_tokenizer(tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(steps=2, ema_decay=0.0, precision="bf16", gradient_checkpointing=True), tokenizer=None)
    pipeline = VQVDMPipeline.from_pretrained(train_denoiser(recipe, tmp_path))
    assert pipeline.tokenizer is None
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(class_labels=["up"], output_type="np").frames
    assert np.shape(frames) == (1, 4, 16, 16, 3)


def test_absent_or_foreign_inputs_name_the_command_to_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=1)
    with pytest.raises(InputError, match=f"vqvdm train tokenizer RECIPE --run {tmp_path}"):
        train_denoiser(recipe, tmp_path)
    give_tokenizer(tmp_path)
    (tmp_path / "latents").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"vqvdm encode {tmp_path}"):
        train_denoiser(recipe, tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "latents")
    train_denoiser(recipe, tmp_path)
    tokenizer = VideoTokenizer.from_pretrained(tmp_path / "tokenizer")
    before = tokenizer.latents_fingerprint()
    tokenizer.set_latent_statistics(torch.ones(3), torch.ones(3))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(InputError, match=f"{before}.*{tokenizer.latents_fingerprint()}.*vqvdm encode"):
        train_denoiser(recipe, tmp_path)


def test_a_checkpoint_of_another_tokenizers_latents_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=1)
    give_tokenizer(tmp_path)
    train_denoiser(recipe, tmp_path)
    tokenizer = VideoTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokenizer.set_latent_statistics(torch.ones(3), torch.ones(3))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_latents(tokenizer.eval(), TinyClips(), tmp_path / "latents", progress=False)
    with pytest.raises(InputError, match=r"does not fit the checkpoint .*\n  tokenizer \(its fingerprint\): "):
        train_denoiser(recipe, tmp_path)


def test_too_few_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_classes is 2, the data has 3 classes"):
        pixel_stage(tmp_path, {"num_classes": 2})


def test_guidance_by_a_class_that_is_never_trained_is_refused(tmp_path: Path) -> None:
    def recipe_of(dropout: float, scale: float, classes: int | None = None) -> Recipe:
        recipe = replace(tiny_recipe(steps=1), tokenizer=None, sampling=SamplingRecipe(steps=2, guidance_scale=scale))
        model = {**DENOISER, **({} if classes is None else {"num_classes": classes})}
        return replace(recipe, denoiser=replace(recipe.denoiser, model=model, class_dropout=dropout))

    with pytest.raises(InputError, match=r"guidance_scale is 3, but denoiser\.class_dropout is 0.*class_dropout=0\.1"):
        train_denoiser(recipe_of(0.0, 3.0), tmp_path / "guided")
    train_denoiser(recipe_of(0.0, 3.0, classes=0), tmp_path / "unconditional")
    pipeline = VQVDMPipeline.from_pretrained(train_denoiser(recipe_of(0.0, 1.0), tmp_path / "plain"))
    pipeline.set_progress_bar_config(disable=True)
    pipeline(["up"])
    with pytest.raises(InputError, match="guidance_scale must be 1, not 3"):
        pipeline(["up"], guidance_scale=3.0)
    with pytest.raises(InputError, match="makes nothing without a class"):
        pipeline()


def test_other_channels_than_the_datas_are_refused(tmp_path: Path) -> None:
    pixel_stage(tmp_path, {"in_channels": 3})
    with pytest.raises(InputError, match=r"denoiser\.model\.in_channels is 4, but the data has 3 channels"):
        pixel_stage(tmp_path, {"in_channels": 4})


def test_latents_of_other_clips_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache knows what it was encoded from; an old one that does not is taken as it is."""
    monkeypatch.setattr(vqvdm.verbs.encode, "open_dataset", open_tiny)
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(steps=1)
    recipe = replace(recipe, data=replace(recipe.data, path="clips", flip=True), latents=LatentsRecipe(flips=True))
    give_tokenizer(tmp_path)
    vqvdm.verbs.encode.encode(recipe, tmp_path, device="cpu")
    wrong = replace(recipe, data=replace(recipe.data, path="asl", fps=10.0))
    with pytest.raises(
        InputError, match=r'data\.path "clips" there, "asl" asked for; data\.fps null there, 10'
    ) as error:
        train_denoiser(wrong, tmp_path)
    assert str(error.value).endswith(f"vqvdm encode {tmp_path}")
    assert "flip" not in str(error.value)
    same = replace(recipe, data=replace(recipe.data, path=str(tmp_path / "clips"), workers=3))  # the same place
    card = (train_denoiser(same, tmp_path) / "README.md").read_text()
    assert "| data | clips |" in card
    index = json.loads((tmp_path / "latents" / "index.json").read_text())
    del index["data"]
    (tmp_path / "latents" / "index.json").write_text(json.dumps(index))
    train_denoiser(wrong, tmp_path)


@pytest.mark.slow
def test_one_clip_is_overfitted(tmp_path: Path) -> None:
    stage = pixel_stage(tmp_path, steps=100, learning_rate=5e-3, warmup=5, batch=4, dropout=0.0)
    item = TinyClips()[0]
    losses = []
    for step in range(100):
        data = {name: torch.stack([value] * 4) for name, value in item.items()}
        losses.append(float(stage.update(step, [Batch(data, range(step * 4, step * 4 + 4), 0, 4, last=True)])["loss"]))
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.parametrize("change", [{"size": 32}, {"frames": 8}])
def test_latents_of_clips_of_another_size_are_refused(tmp_path: Path, change: dict) -> None:
    give_tokenizer(tmp_path)
    recipe = tiny_recipe()
    with pytest.raises(InputError, match=r"latents.* of \(3, 2, 4, 4\), but data"):
        train_denoiser(replace(recipe, data=replace(recipe.data, **change)), tmp_path)


def test_more_levels_than_the_size_can_be_halved_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"divisible by \(1, 32, 32\).*\(4, 16, 16\).*fewer levels"):
        pixel_stage(tmp_path, {"channels": (8,) * 6})


def test_damaged_remains_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    give_tokenizer(tmp_path)
    train_denoiser(tiny_recipe(steps=1), tmp_path)
    (tmp_path / "pipeline" / "training.json").write_text("{")
    (tmp_path / "log.jsonl").write_bytes(b"5\n{}\n\xff\n")
    train_denoiser(tiny_recipe(steps=1), tmp_path)  # exports again, drops the lines
    assert (tmp_path / "log.jsonl").read_text() == ""
    last = latest_checkpoint(tmp_path / "checkpoints" / "denoiser")
    assert last is not None
    (last.folder / "SHA256SUMS").unlink()  # as if it had been written before there were any
    (last.folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model.safetensors"):
        train_denoiser(tiny_recipe(steps=2), tmp_path)
    (last.folder / "state.json").write_text("{}")
    train_denoiser(tiny_recipe(steps=2), tmp_path)  # from the one before
    assert "is damaged (state.json does not state step 1)" in capsys.readouterr().err


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "euler", "heun", "ddim"])
def test_the_pipeline_knows_its_flow_whatever_the_scheduler(tmp_path: Path, scheduler: str) -> None:
    recipe = tiny_recipe()
    part = replace(recipe.denoiser, model=DENOISER, diffusion=replace(recipe.denoiser.diffusion, shift=3.0))
    recipe = replace(recipe, tokenizer=None, denoiser=part, sampling=SamplingRecipe(scheduler, steps=2))
    stage = DenoiserStage(recipe, make_accelerator(part.training, tmp_path), TinyClips(), None)
    stage.write_model(stage.usable_model(), 0, tmp_path / "pipeline", last=True)
    objective = VQVDMPipeline.from_pretrained(tmp_path / "pipeline").objective
    assert (objective.prediction, objective.shift) == ("flow", 3.0)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/home/someone/clips/", "clips"),
        ("toy", "toy"),
        ("/home/someone/toy", "toy/"),
        ("https://a.b/c/index.json",) * 2,
        (".", "."),
    ],
)
def test_a_model_does_not_say_where_its_clips_lay(tmp_path, path, said):
    recipe = tiny_recipe()
    part = replace(recipe.denoiser, model=DENOISER)
    recipe = replace(recipe, tokenizer=None, denoiser=part, data=replace(recipe.data, path=path))
    stage = DenoiserStage(recipe, make_accelerator(part.training, tmp_path), TinyClips(), None)
    stage.write_model(stage.usable_model(), 0, tmp_path / "pipeline", last=True)
    assert VQVDMPipeline.from_pretrained(tmp_path / "pipeline").config["about"]["data"] == said
    assert "someone" not in (tmp_path / "pipeline" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("change", ["tokenizer", "prediction"])
def test_a_start_from_other_latents_or_another_prediction_is_refused(tmp_path: Path, change: str) -> None:
    for name in ("first", "second"):
        give_tokenizer(tmp_path / name)
    recipe = tiny_recipe(steps=1)
    train_denoiser(recipe, tmp_path / "first")
    part = replace(recipe.denoiser, start_from=str(tmp_path / "first"))
    if change == "prediction":
        part = replace(part, diffusion=replace(part.diffusion, prediction="v_prediction"))
    else:
        tokenizer = VideoTokenizer.from_pretrained(tmp_path / "second" / "tokenizer")
        tokenizer.set_latent_statistics(torch.zeros(3), torch.full((3,), 2.0))
        tokenizer.save_pretrained(tmp_path / "second" / "tokenizer")
        shutil.rmtree(tmp_path / "second" / "latents")
        write_latents(tokenizer, TinyClips(), tmp_path / "second" / "latents", progress=False)
    with pytest.raises(InputError, match=r"start_from names .*first, which predicts flow of the latents of tokenizer"):
        train_denoiser(replace(recipe, denoiser=part), tmp_path / "second")


def test_classes_of_other_names_begin_as_no_class(tmp_path: Path) -> None:
    give_tokenizer(tmp_path)
    first = train_denoiser(tiny_recipe(steps=1), tmp_path)
    denoiser = VQVDMPipeline.from_pretrained(first).denoiser
    part = replace(tiny_recipe().denoiser, start_from=str(first))
    for names, expected in (
        (TinyClips.classes, [0, 1, 2]),
        (("new", TinyClips.classes[0], TinyClips.classes[2]), [-1, 0, 2]),
        (("new", "newer", "newest"), [-1, -1, -1]),
    ):
        dataset = LatentCache(tmp_path / "latents")
        dataset.classes = names
        accelerator = make_accelerator(part.training, tmp_path)
        tokenizer = VideoTokenizer.from_pretrained(tmp_path / "tokenizer")
        stage = DenoiserStage(replace(tiny_recipe(), denoiser=part), accelerator, dataset, tokenizer)
        stage.take_first_weights()
        torch.testing.assert_close(stage.denoiser.class_embed.weight, denoiser.class_embed.weight[[*expected, -1]])


def test_one_process_trains_the_same_with_shards_asked_for(tmp_path: Path) -> None:
    recipe, found = tiny_recipe(steps=2), []
    for fsdp in (False, True):
        give_tokenizer(tmp_path / str(fsdp))
        part = replace(recipe.denoiser, training=replace(recipe.denoiser.training, fsdp=fsdp))
        train_denoiser(replace(recipe, denoiser=part), tmp_path / str(fsdp))
        found.append(latest_checkpoint(tmp_path / str(fsdp) / "checkpoints" / "denoiser"))
    plain, asked = found
    for name in ("model", "ema", "optimizer"):
        ours, theirs = plain.tensors(name), asked.tensors(name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
