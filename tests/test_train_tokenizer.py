"""Stage 1: loss terms, latent statistics, samples, overfitting."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny_training import ADVERSARIAL, TOKENIZER, TinyClips, open_tiny, tiny_recipe
from vqvdm.data import open_dataset
from vqvdm.errors import InputError
from vqvdm.perceptual import LPIPS, Convolution, Stage
from vqvdm.recipe import AdversarialRecipe, DataRecipe, Recipe, TokenizerLossRecipe
from vqvdm.tokenizer import VideoTokenizer
from vqvdm.train import tokenizer as module
from vqvdm.train.adversarial import Critics, critic_terms, tokenizer_terms
from vqvdm.train.checkpoint import latest_checkpoint
from vqvdm.train.loop import make_accelerator
from vqvdm.train.order import Batch, Order
from vqvdm.train.tokenizer import TokenizerStage, latent_statistics, never_reached, psnr, spread, train_tokenizer
from vqvdm.video import probe


@pytest.fixture(autouse=True)
def _tiny_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_dataset", open_tiny)


def make_stage(tmp_path: Path, adversarial: AdversarialRecipe = ADVERSARIAL, **training) -> TokenizerStage:
    recipe = tiny_recipe(adversarial, **training)
    assert recipe.tokenizer is not None
    return TokenizerStage(recipe, make_accelerator(recipe.tokenizer.training, tmp_path), TinyClips())


def batch_of(step: int, batch: int = 2) -> Batch:
    order = Order(seed=0, length=10, batch=batch)
    clips = torch.stack([TinyClips()[order.pick(number)]["clip"] for number in order.numbers(step, 0)])
    return Batch({"clip": clips}, order.numbers(step, 0), 0, order.size, last=True)


def test_statistics_normalise_the_latents_of_training_clips() -> None:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(**TOKENIZER).eval()
    tokenizer.set_latent_statistics(torch.full((3,), 5.0), torch.full((3,), 9.0))  # of no account
    tokenizer.set_latent_statistics(*latent_statistics(tokenizer, TinyClips(), 10, batch=4))
    latents = tokenizer.encode(torch.stack([TinyClips()[index]["clip"] for index in range(10)]))
    values = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_statistics_take_further_windows_of_a_short_data_set() -> None:
    asked: list[tuple[int, int]] = []

    class Recording(TinyClips):
        def __getitem__(self, key):
            asked.append(key)
            return super().__getitem__(key)

    latent_statistics(VideoTokenizer(**TOKENIZER).eval(), Recording(), 23, batch=8)
    assert sorted(asked) == sorted(
        [(i, 0) for i in range(10)] + [(i, 1) for i in range(10)] + [(i, 2) for i in range(3)]
    )


def test_spread_and_psnr() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 10) == [0, 1, 2]
    assert float(psnr(torch.tensor(0.04))) == pytest.approx(20.0)
    assert math.isfinite(float(psnr(torch.tensor(0.0))))


def test_discriminators_rest_before_their_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(tmp_path, replace(ADVERSARIAL, start=1, ramp=1))
    assert stage.critics is not None
    before = {name: value.clone() for name, value in stage.critics.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(Critics, "forward", lambda *arguments: pytest.fail("the discriminators were computed"))
        assert "discriminator" not in stage.update(0, [batch_of(0)])
    assert all(torch.equal(value, before[name]) for name, value in stage.critics.state_dict().items())
    figures = stage.update(1, [batch_of(1)])  # they train, their weight is still 0
    assert "discriminator" in figures
    assert "adversarial" not in figures
    assert "adversarial" in stage.update(2, [batch_of(2)])
    changed = [name for name, value in stage.critics.named_parameters() if not torch.equal(value, before[name])]
    assert len(changed) == len(list(stage.critics.parameters()))


def test_each_side_learns_from_its_own_loss_alone(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    critics = stage.critics
    assert critics is not None
    batch = batch_of(0)
    frames = torch.tensor([0, 3])
    output = stage.tokenizer(batch["clip"])
    fooling, matching = tokenizer_terms(critics, ADVERSARIAL, batch["clip"], output.reconstruction, frames)
    (fooling + matching).backward()
    assert all(parameter.grad is None for parameter in critics.parameters())
    assert stage.tokenizer.last_layer.grad is not None
    stage.tokenizer.zero_grad()
    for kind in ("lecam", "r1", "none"):
        critics.zero_grad()
        recipe = replace(ADVERSARIAL, stabilizer=kind)
        loss, penalty = critic_terms(critics, critics, recipe, batch["clip"], output.reconstruction, frames)
        assert (penalty.item() > 0) == (kind != "none")
        (loss + penalty).backward()
        assert all(parameter.grad is not None for parameter in critics.parameters())
        assert stage.tokenizer.last_layer.grad is None


def test_the_image_discriminator_sees_the_asked_frames() -> None:
    critics = Critics(AdversarialRecipe(weight=1.0, video=False, channels=4, layers=2))
    clip = torch.randn(2, 3, 4, 16, 16)
    judged = critics(clip, torch.tensor([1, 3]))[0].logits
    changed = clip.clone()
    changed[0, :, 1] += 1
    changed[1, :, 0] += 1  # not looked at
    again = critics(changed, torch.tensor([1, 3]))[0].logits
    assert not torch.equal(judged[0], again[0])
    assert torch.equal(judged[1], again[1])


def test_two_micro_batches_have_the_gradient_of_one_whole_batch(tmp_path: Path) -> None:
    """But for the running norm and the codebook, which learn from each micro-batch."""
    recipe = tiny_recipe(AdversarialRecipe())
    assert recipe.tokenizer is not None
    model = {**TOKENIZER, "quantizer": "none"}
    recipe = replace(recipe, tokenizer=replace(recipe.tokenizer, model=model))
    whole, halves = (
        TokenizerStage(recipe, make_accelerator(recipe.tokenizer.training, tmp_path), TinyClips()) for _ in range(2)
    )
    for stage in (whole, halves):
        stage.tokenizer.running_norm.eval()
    batch = batch_of(0, batch=4)
    parts = [Batch({"clip": batch["clip"][i : i + 2]}, batch.numbers[i : i + 2], 0, 4, i == 2) for i in (0, 2)]
    one, two = whole.update(0, [batch]), halves.update(0, parts)
    assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-6)
    assert float(one["gradient_norm"]) == pytest.approx(float(two["gradient_norm"]), rel=1e-5)
    for a, b in zip(whole.tokenizer.parameters(), halves.tokenizer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(module, "load_lpips", lambda: LPIPS([Stage(0, (Convolution(4),)), Stage(2, (Convolution(4),))]))
    recipe = tiny_recipe()
    assert recipe.tokenizer is not None
    terms = TokenizerLossRecipe(
        l1=2.0, l2=3.0, quantizer=5.0, perceptual=7.0, adversarial=replace(ADVERSARIAL, adaptive=False)
    )
    recipe = replace(recipe, tokenizer=replace(recipe.tokenizer, loss=terms))
    stage = TokenizerStage(recipe, make_accelerator(recipe.tokenizer.training, tmp_path), TinyClips())
    figures = {name: float(value) for name, value in stage.update(2, [batch_of(2)]).items()}
    l2 = 4 / 10 ** (figures["psnr"] / 10)
    expected = 2 * figures["l1"] + 3 * l2 + 5 * figures["quantizer"] + 7 * figures["perceptual"]
    ramp = 0.5  # update 2 of a ramp from 1 to 3
    expected += ramp * (0.1 * figures["adversarial"] + 1.0 * figures["feature_matching"])
    assert figures["adversarial_weight"] == pytest.approx(ramp * 0.1)
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_perceptual_term_enters_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_lpips", lambda: LPIPS([Stage(0, (Convolution(4),))]))
    recipe = tiny_recipe(AdversarialRecipe())
    terms = replace(recipe.tokenizer.loss, perceptual=1.0, perceptual_after=1)
    recipe = replace(recipe, tokenizer=replace(recipe.tokenizer, loss=terms))
    stage = TokenizerStage(recipe, make_accelerator(recipe.tokenizer.training, tmp_path), TinyClips())
    assert ["perceptual" in stage.update(step, [batch_of(step)]) for step in (0, 1)] == [False, True]


def test_noise_of_the_latents_is_of_any_deviation_up_to_the_recipes(tmp_path: Path) -> None:
    recipe = tiny_recipe(AdversarialRecipe())
    assert make_stage(tmp_path).noise_of(batch_of(0)) is None
    noisy = replace(recipe.tokenizer, loss=replace(recipe.tokenizer.loss, noise=0.5))
    stage = TokenizerStage(replace(recipe, tokenizer=noisy), make_accelerator(noisy.training, tmp_path), TinyClips())
    seen = []
    stage.tokenizer.register_forward_pre_hook(lambda _, __, named: seen.append(named["noise"]), with_kwargs=True)
    for step in range(200):
        batch = batch_of(step)
        noise = stage.noise_of(batch)
        assert noise is not None and noise.shape == stage.tokenizer.encode(batch["clip"]).shape
        seen.append(noise)
    deviations = torch.cat(seen).flatten(1).std(1)  # of each clip
    assert 0.5 < deviations.max() < 0.6 and deviations.min() < 0.02
    assert deviations.mean() == pytest.approx(0.25, abs=0.02)
    seen.clear()
    stage.update(0, [batch_of(0)])
    assert torch.equal(seen[0], stage.noise_of(batch_of(0)))  # type: ignore[arg-type]


def test_a_collapsing_codebook_is_noticed(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)  # 16 codes; a batch has 2 * 2 * 4 * 4 positions
    assert stage.notice({"usage": 0.5}) is None
    assert "6.2% of the codes" in str(stage.notice({"usage": 1 / 16}))


def test_the_export_is_the_average_with_statistics_of_its_own(tmp_path: Path) -> None:
    exported = VideoTokenizer.from_pretrained(train_tokenizer(tiny_recipe(sample_every=2), tmp_path)).eval()
    found = latest_checkpoint(tmp_path / "checkpoints" / "tokenizer")
    assert found is not None
    average = found.tensors("ema")
    for name, value in exported.state_dict().items():
        if not name.startswith("latents_"):
            assert torch.equal(value, average[name]), name
    assert torch.equal(exported.codebook.codes, found.tensors("model")["codebook.codes"])
    assert not torch.equal(exported.encoder.state_dict()["head.weight"], found.tensors("model")["encoder.head.weight"])
    latents = exported.encode(torch.stack([TinyClips()[index]["clip"] for index in range(10)]))
    assert abs(float(latents.std()) - 1) < 0.2
    samples = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert samples == [f"tokenizer-0000000{step}.{kind}" for step in (2, 4) for kind in ("mp4", "png")]
    assert probe(tmp_path / "samples" / "tokenizer-00000004.mp4").frames == 4


def test_without_test_clips_training_clips_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[str] = []

    def open_training_clips(data, split, training=None, progress=True):
        opened.append(split)
        if split == "test":
            raise InputError("clips: no video is in the test split")
        return open_tiny(data, split)

    monkeypatch.setattr(module, "open_dataset", open_training_clips)
    exported = train_tokenizer(tiny_recipe(steps=2, sample_every=1), tmp_path)
    assert opened == ["train", "test"]
    assert [record.message for record in caplog.records if record.name == module.logger.name] == [
        "clips: no video is in the test split; so PSNR is followed on training clips (train_psnr): unseen ones may "
        "fare worse"
    ]
    log = (tmp_path / "log.jsonl").read_text()
    assert log.count('"train_psnr": ') == 2
    assert "test_psnr" not in log
    figure = json.loads((exported / "training.json").read_text())["train_psnr"]
    clips = torch.stack([TinyClips()[index]["clip"] for index in range(10)])
    tokenizer = VideoTokenizer.from_pretrained(exported).eval()
    errors = (tokenizer.decode(tokenizer.encode(clips)).clamp(-1, 1) - clips).square().flatten(1).mean(1)
    assert figure == pytest.approx(float((10 * torch.log10(4 / errors)).mean()), abs=1e-3)


def test_a_real_list_that_leaves_no_test_clips(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_dataset", open_dataset)
    mini = DataRecipe(path=str(real_data / "ucf101-mini"), frames=4, size=16)
    assert module.open_unseen(replace(mini, split=2), warn=False) is None
    assert len(module.open_unseen(mini, warn=False)) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"ema_decay": 0.0, "precision": "bf16", "gradient_checkpointing": True}, {}),
        ({"accumulate": 2}, {"quantizer": "fsq", "fsq_levels": (8, 5, 5)}),
        ({}, {"quantizer": "none"}),
    ],
)
def test_other_settings_train(tmp_path: Path, changes: dict, model: dict) -> None:
    recipe = tiny_recipe(steps=2, **changes)
    assert recipe.tokenizer is not None
    recipe = replace(recipe, tokenizer=replace(recipe.tokenizer, model={**TOKENIZER, **model}))
    VideoTokenizer.from_pretrained(train_tokenizer(recipe, tmp_path))


def test_one_clip_is_overfitted(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, AdversarialRecipe(), steps=100, learning_rate=5e-3, warmup=5)
    batch = batch_of(0, batch=1)
    decibels = [float(stage.update(step, [batch])["psnr"]) for step in range(100)]
    assert decibels[0] < 12
    assert decibels[-1] > 22


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer to train"):
        train_tokenizer(replace(tiny_recipe(), tokenizer=None), tmp_path)
    recipe = tiny_recipe()
    with pytest.raises(InputError, match="cannot be divided"):
        train_tokenizer(replace(recipe, data=replace(recipe.data, frames=5)), tmp_path)
    with pytest.raises(InputError, match=r"adversarial\.layers is 3.*data\.frames of at least 8, not 4"):
        train_tokenizer(tiny_recipe(replace(ADVERSARIAL, layers=3)), tmp_path)  # before any work
    assert not (tmp_path / "checkpoints").exists()


def test_losses_that_never_enter_are_named() -> None:
    recipe = Recipe.load("asl64", ["tokenizer.training.steps=40"])
    found = never_reached(recipe.tokenizer)
    assert found == [
        f"tokenizer.loss.quantize_after {recipe.tokenizer.loss.quantize_after}",
        f"tokenizer.loss.perceptual_after {recipe.tokenizer.loss.perceptual_after}",
    ]
    assert never_reached(Recipe.load("asl64").tokenizer) == []
    none = Recipe.load("asl64", ["tokenizer.training.steps=40", "tokenizer.model.quantizer=none"]).tokenizer
    assert len(never_reached(none)) == 1


def test_settings_of_the_other_stage_that_a_command_changes_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe()
    train_tokenizer(replace(recipe, denoiser=replace(recipe.denoiser, class_dropout=0.37)), run)
    capsys.readouterr()
    train_tokenizer(recipe, run)
    told = capsys.readouterr()
    assert f"changed: denoiser.class_dropout: 0.37 -> {recipe.denoiser.class_dropout}" in told.out + told.err
