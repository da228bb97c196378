#!/bin/sh
# The peer of `vqvdm benchmark --against vdm`: lucidrains' video-diffusion-pytorch (MIT), into the environment of this
# project. Without its dependencies, because torchvision would bring another torch; the benchmark stands in for the
# transforms that only the peer's trainer uses.
set -eu
cd "$(dirname "$0")/.."
"${PYTHON:-.venv/bin/python}" -m pip install --no-deps \
    video-diffusion-pytorch==0.7.0 einops-exts==0.0.4 rotary-embedding-torch==0.9.1
