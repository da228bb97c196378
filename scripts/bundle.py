#!/usr/bin/env python
"""Put a trained pipeline into the package, as a model that comes with it.

scripts/bundle.py runs/toy --tokenizer runs/toy-decoder

Weights become float16, which rounds them by 1 part in 2,000 and halves the files; what must stay float32 does. A
tokenizer whose decoder was trained on (`tokenizer.decoder_only`) may take the place of the run's own.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

import torch

import vqvdm.models
from vqvdm.files import whole_folder
from vqvdm.loading import load_pipeline, load_tokenizer

LARGEST = 12_000_000  # bytes of weights


def main() -> None:
    """Write the pipeline of a run in float16 into the package."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run or a pipeline")
    parser.add_argument("--tokenizer", type=Path, help="a run or a tokenizer of the same latents")
    parser.add_argument("--name", default=vqvdm.models.DEFAULT)
    asked = parser.parse_args()
    pipeline = load_pipeline(asked.run, "cpu")
    if asked.tokenizer:
        tokenizer = load_tokenizer(asked.tokenizer, "cpu")
        if tokenizer.latents_fingerprint() != pipeline.tokenizer.latents_fingerprint():
            sys.exit(f"{asked.tokenizer} makes other latents than {asked.run}")
        pipeline.register_modules(tokenizer=tokenizer)
    for network in (pipeline.denoiser, pipeline.tokenizer):
        kept = network._keep_in_fp32_modules or ()
        for part, module in network.named_children():
            if part not in kept:
                module.to(torch.float16)
    pipeline.register_to_config(about={**pipeline.config["about"], "license": "apache-2.0"})  # the package's
    folder = Path(vqvdm.models.__file__).parent / asked.name
    with whole_folder(folder) as made:
        pipeline.write_sample(made)
        pipeline.save_pretrained(made)
        size = sum(path.stat().st_size for path in made.rglob("*.safetensors"))
        if size > LARGEST:
            sys.exit(f"{size:,} bytes of weights are more than {LARGEST:,}")
    print(f"{folder}: {size:,} bytes of weights, {load_pipeline(folder, 'cpu').fingerprint()}")


if __name__ == "__main__":
    main()
