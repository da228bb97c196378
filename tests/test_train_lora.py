"""Fine-tuning by adapters, where peft is installed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny_training import TinyClips, open_tiny, tiny_recipe
from vqvdm import VideoDenoiser, VQVDMPipeline
from vqvdm.errors import InputError
from vqvdm.train import denoiser as module
from vqvdm.train.denoiser import train_denoiser
from vqvdm.train.lora import add_lora, base_of, merged
from vqvdm.train.start_from import start_denoiser_from

HAS_PEFT = importlib.util.find_spec("peft") is not None
needs_peft = pytest.mark.skipif(not HAS_PEFT, reason="LoRA needs peft: pip install 'vqvdm[lora]'")
SETTINGS = {"in_channels": 3, "channels": (8, 16), "blocks": 1, "head_dim": 8}

torch.set_num_threads(1)


def some_denoiser(num_classes: int = 3, seed: int = 0, transformer: bool = False) -> VideoDenoiser:
    torch.manual_seed(seed)
    denoiser = VideoDenoiser(**SETTINGS, num_classes=num_classes, transformer=transformer).eval()
    for parameter in denoiser.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return denoiser


def prediction(denoiser: VideoDenoiser, label: int) -> torch.Tensor:
    noisy = torch.randn(1, 3, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return denoiser(noisy, 500.0, torch.tensor([label]), torch.tensor([8.0]))


@pytest.mark.skipif(HAS_PEFT, reason="peft is installed")
def test_without_peft_it_says_what_to_install():
    with pytest.raises(InputError, match=r"pip install 'vqvdm\[lora\]'"):
        add_lora(some_denoiser(), 2)


@pytest.mark.parametrize("transformer", [False, True])
def test_classes_of_the_same_name_are_kept_and_new_ones_begin_as_none(transformer: bool):
    old, new = some_denoiser(3, transformer=transformer), some_denoiser(2, seed=1, transformer=transformer)
    start_denoiser_from(new, old, known={1: 2})
    torch.testing.assert_close(prediction(new, 1), prediction(old, 2))
    torch.testing.assert_close(prediction(new, 0), prediction(old, 3), msg="a new class begins as no class")
    torch.testing.assert_close(prediction(new, 2), prediction(old, 3), msg="no class stays")


@needs_peft
@pytest.mark.parametrize("transformer", [False, True])
def test_adapters_begin_as_nothing_and_merge_into_the_same(transformer: bool):
    plain, adapted = some_denoiser(transformer=transformer), some_denoiser(transformer=transformer)
    before = prediction(adapted, 1)
    add_lora(adapted, 2)
    torch.testing.assert_close(prediction(adapted, 1), before)
    assert set(base_of(adapted)) == set(plain.state_dict())
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_" in name or name.startswith("class_embed") for name in trained)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    changed = prediction(adapted, 1)
    assert not torch.allclose(changed, before, atol=1e-3)
    whole = merged(adapted)
    assert set(whole.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(prediction(whole, 1), changed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prediction(adapted, 1), changed, msg="the original keeps its adapters")


@needs_peft
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_changes_adapters_and_classes_alone(optimizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open_dataset", open_tiny)
    recipe = replace(tiny_recipe(steps=2, optimizer=optimizer), tokenizer=None)
    base = train_denoiser(recipe, tmp_path / "base")
    tuned = replace(recipe, denoiser=replace(recipe.denoiser, start_from=str(base), lora_rank=2))
    monkeypatch.setattr(TinyClips, "classes", ("new", *TinyClips.classes[1:]))
    folder = train_denoiser(tuned, tmp_path / "tuned")
    first, second = (VQVDMPipeline.from_pretrained(path).denoiser for path in (base, folder))
    weights = second.state_dict()
    changed = {name for name, value in first.state_dict().items() if not torch.equal(weights[name], value)}
    assert any(name.startswith("class_embed") for name in changed)
    assert any("qkv" in name for name in changed)
    assert all(name.startswith(("down.", "middle.", "up.", "class_embed")) for name in changed)
    assert not any("norm" in name or name.endswith("bias") for name in changed)
    other = VQVDMPipeline.from_pretrained(base)
    other.denoiser.load_lora_adapter(str(folder / "lora"), prefix=None, use_safetensors=True)
    assert (folder / "lora" / "class_embed.safetensors").exists()
    frames = VQVDMPipeline.from_pretrained(folder)("new", output_type="np").frames
    assert np.isfinite(frames).all()
    assert train_denoiser(tuned, tmp_path / "tuned") == folder, "and it resumes"
