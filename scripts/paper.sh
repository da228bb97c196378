#!/bin/sh
# The paper's experiment from data to reports: scripts/paper.sh UCF-101 [RECIPE] [RUN]
# Both stages, the latents between them, and the scores of either, one after another. Each step resumes where it was
# interrupted, and what is finished is skipped: call it again until it ends. Words after -- change the recipe:
#   scripts/paper.sh UCF-101 paper-ucf101 runs/paper -- tokenizer.training.batch=32
# Several GPUs: LAUNCH="torchrun --nproc-per-node 8 -m" scripts/paper.sh UCF-101
set -eu
data=$1
recipe=${2:-paper-ucf101}
run=${3:-runs/$recipe}
shift
while [ $# -gt 0 ] && [ "$1" != "--" ]; do shift; done
[ $# -gt 0 ] && shift
launch=${LAUNCH:-}
python=${PYTHON:-.venv/bin/python}
one="$python -m vqvdm"
many=$one
[ -n "$launch" ] && many="$launch -- vqvdm"
case $recipe in *sky*) dataset=sky ;; *) dataset=ucf101 ;; esac

$one data check "$data" || echo "the files named above are left out"
$many train tokenizer "$recipe" --run "$run" "data.path=$data" "$@"
[ -f "$run/reconstructions.json" ] || $one evaluate reconstructions "$run" "$data" --report "$run/reconstructions.json"
$one encode "$run"
$many train denoiser "$run"
[ -f "$run/samples.json" ] || $one evaluate samples "$run" --reference "$data" --split train --report "$run/samples.json"
[ -f "$run/tats.json" ] || $one evaluate samples "$run" --reference "$data" --protocol tats --report "$run/tats.json"
$one evaluate compare "$run/samples.json" "$run/tats.json" --dataset "$dataset"
