"""`vqvdm encode`: write the latent cache between the two stages."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from vqvdm.data import open_dataset
from vqvdm.errors import InputError
from vqvdm.latents import StorageType, write_latents
from vqvdm.loading import load_tokenizer, own_device
from vqvdm.lock import sole_writer
from vqvdm.processes import one_of_each_host_first, this_process
from vqvdm.recipe import Recipe, run_folder


def main(
    recipe: str,
    *overrides: str,
    run: Path | None = None,
    dtype: StorageType = "float16",
    device: str = "auto",
) -> None:
    """Encode the training clips with a run's tokenizer, once.

    Called again it completes an interrupted cache, leaves a finished one alone, and replaces that of another
    tokenizer or data recipe, or of videos that have changed since.

    Args:
        recipe: a packaged recipe, a YAML file, or a run folder.
        overrides: changes as key=value, such as latents.windows=4.
        run: the run folder; reads tokenizer/ and writes latents/. By default as in training.
        dtype: in which latents are stored.
        device: cpu, cuda, mps or auto.
    """
    settings = Recipe.load(recipe, overrides)
    folder = encode(settings, run_folder(recipe, settings, run), dtype=dtype, device=device)
    if this_process().is_main_process:
        print(f"latents in {folder}")
    this_process().destroy_process_group()


def encode(recipe: Recipe, run: Path, *, dtype: StorageType = "float16", device: str = "auto") -> Path:
    """Write `run`/latents from `run`/tokenizer and the recipe's training clips; return the cache's folder.

    Several processes (torchrun) share the shards; each encodes on its own device then.

    Raises:
        InputError: the recipe has no tokenizer, the run has none yet, another process writes in the run, or the data
            cannot be read or stored.
    """
    if recipe.tokenizer is None:
        raise InputError(f"recipe {recipe.name} diffuses pixels (tokenizer: null); it needs no latents")
    if not (run / "tokenizer" / "config.json").is_file():
        raise InputError(f"{run} holds no tokenizer; train one first: vqvdm train tokenizer RECIPE --run {run}")
    here, place = this_process(), own_device(device)
    with sole_writer(run) if here.is_main_process else nullcontext():
        tokenizer = load_tokenizer(run / "tokenizer", str(place))
        data = recipe.encoded_data()
        with one_of_each_host_first():
            dataset = open_dataset(data, "train", progress=here.is_main_process)
        return write_latents(
            tokenizer,
            dataset,
            run / "latents",
            windows=recipe.latents.windows,
            flips=recipe.latents.flips,
            stills=recipe.latents.stills,
            batch_size=recipe.latents.batch,
            shard_size=recipe.latents.shard,
            data={name: value for name, value in asdict(data).items() if name != "workers"},
            digest=dataset.digest(),
            dtype=dtype,
            workers=recipe.data.workers,
            device=place,
        )
