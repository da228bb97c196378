"""Recipes and models of strangers: nothing beside them is run, and nothing is built that no machine could hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tiny_pipeline import tiny_pipeline
from vqvdm import Recipe, VideoDenoiser, VQVDMPipeline
from vqvdm.building import check_arguments
from vqvdm.errors import InputError
from vqvdm.loading import load_pipeline, load_tokenizer
from vqvdm.memory import total_memory

pytestmark = pytest.mark.usefixtures("harmless")


# -------------------------------------------------------------------------------------------------------------- recipes


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]\n" for below, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: !!python/object/apply:os.system ['echo > ran']", "could not determine a constructor for the tag"),
        ("name: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("!!python/object/new:os.system ['echo > ran']", "could not determine a constructor for the tag"),
        (BOMB, r"line \d: not valid YAML: more than 50,000 characters, aliases written out"),
        ("name: &a [*a]", "an alias of what it lies in"),
        ("[" * 40_000, "more than 30 tables or lists within each other"),
        ("- " * 20_000, "nested too deeply"),
        ("a: " + "[" * 40 + "]" * 40, "more than 30 tables or lists within each other"),
        ("name: " + "x" * 60_000, "more than 50,000 characters"),
        ("name: \x1b[31mred", "special characters are not allowed"),
    ],
)
def test_recipes_run_nothing_and_end(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"mine\.yaml.*{words}"):
        Recipe.load(tmp_path / "mine.yaml")


def test_aliases_that_end_are_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: &small {size: 32}\nlatents: {windows: 2}\n")
    assert Recipe.load(tmp_path / "mine.yaml").data.size == 32
    (tmp_path / "mine.yaml").write_text(
        "tokenizer: {training: &both {steps: 7}}\ndenoiser: {training: {<<: *both, batch: 2}}\n"
    )
    recipe = Recipe.load(tmp_path / "mine.yaml")
    assert recipe.denoiser.training.steps == 7
    assert recipe.denoiser.training.batch == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "denoiser.model.channels=[2000000]",
            r"denoiser\.model asks for a network of [\d,.]+ GB, .* in .*; this machine",
        ),
        ("denoiser.model.num_classes=100000000000", r"GB of them in class_embed\.weight; this machine's memory is"),
        ("denoiser.model.channels=[1000000000000000000]", r"denoiser\.model cannot be built"),
        ("denoiser.model.blocks=1000000000", r"denoiser\.model\.blocks asks for 1000000000 parts; 128 are the most"),
        ("denoiser.model.channels=[8, 8, 8]", None),
        (
            "tokenizer.model.codebook_size=1000000000000",
            r"tokenizer\.model asks for a network of .* in codebook\.codes",
        ),
        ("tokenizer.model.pixel_blocks=1000000000", r"tokenizer\.model\.pixel_blocks asks for 1000000000 parts"),
        ("tokenizer.model.latent_channels=1e300", r"tokenizer\.model\.latent_channels .* whole number below 2\^63"),
        ("tokenizer.loss.adversarial.layers=1000000000000", "layers is 1000000000000, but must be between 1 and 32"),
    ],
)
def test_no_model_of_ten_terabytes_is_built(change: str, words: str | None) -> None:
    changes = [change, "tokenizer.model.quantizer=ema", "denoiser.model.head_dim=8"]
    if words is None:
        Recipe.load("demo", changes, check_models=True)
        return
    with pytest.raises(InputError, match=words):
        Recipe.load("demo", changes, check_models=True)


def test_the_bound_is_the_machines_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\n")
    assert total_memory(tmp_path, tmp_path) == 1_024_000
    (tmp_path / "memory.max").write_text("4096\n")
    assert total_memory(tmp_path, tmp_path) == 4096
    (tmp_path / "memory.max").write_text("max\n")
    assert total_memory(tmp_path, tmp_path) == 1_024_000
    assert total_memory(tmp_path / "none", tmp_path) is None
    arguments = {"channels": [8], "head_dim": 8}
    with torch.device("meta"):
        built = VideoDenoiser(channels=(8,), head_dim=8)
    needed = sum(parameter.nbytes for parameter in built.parameters())
    monkeypatch.setattr("vqvdm.building.total_memory", lambda: needed)
    check_arguments(VideoDenoiser, arguments, {}, "")
    monkeypatch.setattr("vqvdm.building.total_memory", lambda: needed - 1)
    with pytest.raises(InputError, match="asks for a network of"):
        check_arguments(VideoDenoiser, arguments, {}, "")


# --------------------------------------------------------------------------------------------------------------- models


@pytest.fixture
def model() -> Path:
    tiny_pipeline().save_pretrained("model")
    return Path("model")


def changed(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("denoiser", {"channels": [2_000_000]}, "VideoDenoiser asks for a network of .* this machine's memory"),
        ("denoiser", {"channels": "x"}, r"config\.json of VideoDenoiser: channels is 'x', but must be a list"),
        ("denoiser", {"blocks": 10**9}, "blocks asks for 1000000000 parts"),
        ("denoiser", {"num_classes": 2**80}, "num_classes .* must be a whole number below"),
        ("tokenizer", {"latent_channels": 10**12}, "VideoTokenizer asks for a network of"),
        ("tokenizer", {"patch": [1, 10**9, 10**9]}, "VideoTokenizer cannot be built"),
        ("tokenizer", {"channels": [8] * 1000}, "channels asks for 1000 parts"),
    ],
)
def test_configs_are_checked_before_building(part: str, changes: dict[str, Any], words: str, model: Path) -> None:
    changed(model / part / "config.json", **changes)
    for load in (load_pipeline, VQVDMPipeline.from_pretrained, load_tokenizer)[: 3 if part == "tokenizer" else 2]:
        with pytest.raises(InputError, match=words):
            load(model)


def test_a_config_that_is_text_asks_no_hub(model: Path) -> None:
    (model / "tokenizer" / "config.json").write_text('"owner/name"')
    for load in (load_pipeline, load_tokenizer):
        with pytest.raises(InputError, match=r"config\.json of VideoTokenizer: must be a table"):
            load(model)


def test_code_beside_a_model_is_not_run(model: Path) -> None:
    for place in (model, model / "denoiser"):
        (place / "evil.py").write_text("open('ran', 'w')\nfrom vqvdm import VQVDMPipeline, VideoDenoiser\n")
    (model / "pipeline.py").write_text("open('ran', 'w')\n")
    load_pipeline(model, "cpu")
    for changes in (
        {"_class_name": ["evil", "VQVDMPipeline"]},
        {"denoiser": ["evil", "VideoDenoiser"]},
        {"denoiser": ["os", "system"]},
        {"denoiser": ["antigravity", "geohash"]},
    ):
        shutil.copy(model / "model_index.json", "kept.json")
        changed(model / "model_index.json", **changes)
        with pytest.raises(InputError, match="model cannot be loaded"):
            load_pipeline(model, "cpu")
        shutil.copy("kept.json", model / "model_index.json")


def test_weights_are_safetensors_and_whole(model: Path) -> None:
    weights = model / "denoiser" / "diffusion_pytorch_model.safetensors"
    tensors = load_pipeline(model, "cpu").denoiser.state_dict()
    weights.write_bytes(save({name: tensor for name, tensor in tensors.items() if name != "norm.bias"}))
    with pytest.raises(InputError, match=r"the weights of VideoDenoiser lack 1 tensors, such as norm\.bias"):
        load_pipeline(model, "cpu")
    weights.unlink()
    torch.save(tensors, weights.with_suffix(".bin"))
    for load in (load_pipeline, VQVDMPipeline.from_pretrained):
        with pytest.raises((InputError, OSError), match=r"no file named diffusion_pytorch_model\.safetensors"):
            load(model)


def test_shards_of_weights_stay_in_their_folder(model: Path) -> None:
    """An index of sharded weights may name any file."""
    weights = model / "denoiser" / "diffusion_pytorch_model.safetensors"
    shutil.move(weights, "outside.safetensors")
    names = load_names("outside.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "../../outside.safetensors")}
    (model / "denoiser" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="model cannot be loaded"):
        load_pipeline(model, "cpu")


def load_names(path: str) -> list[str]:
    content = Path(path).read_bytes()
    return [name for name in json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]) if name[0] != "_"]
