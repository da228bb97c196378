#!/bin/sh
# VQ-VDM beside the peer, video-diffusion-pytorch as shipped, on the same clips at 64x64 for the same wall-clock:
#   scripts/install_vdm.sh && scripts/peer.sh clips MINUTES RUN CLIPS STEPS
# Both train at the same time, each with half of the processor's cores (on a GPU, which they would share, one after the
# other: AT_ONCE=0). Ours spends its minutes on the tokenizer, the latents and the denoiser. Then each makes CLIPS
# clips, which are scored against the unseen ones.
set -eu
data=$1
minutes=${2:-20}
run=${3:-runs/peer}
clips=${4:-64}
steps=${5:-20} # of the peer's sampling; ours has the recipe's
python=${PYTHON:-.venv/bin/python}
cores=$(nproc)
mkdir -p "$run"

ours() {
    begun=$(date +%s)
    # As it was measured: without the LPIPS and the given frames that the recipe has got since.
    "$python" scripts/train_minutes.py tokenizer asl64 "data.path=$data" tokenizer.loss.perceptual=0 \
        tokenizer.loss.quantize_after=40% tokenizer.training.ema_decay=0.99 latents.windows=2 latents.stills=false \
        denoiser.context=0 denoiser.diffusion.shift=2 denoiser.training.warmup=50 denoiser.training.ema_decay=0.99 \
        --run "$run/ours" --minutes "$(awk "BEGIN { print $minutes * 0.45 }")"
    "$python" -m vqvdm encode "$run/ours"
    left=$(awk "BEGIN { print $minutes - ($(date +%s) - $begun) / 60 - 0.2 }")
    "$python" scripts/train_minutes.py denoiser "$run/ours" --minutes "$left"
}

peer() {
    "$python" scripts/train_vdm.py asl64 "data.path=$data" --minutes "$minutes" --clips "$clips" --steps "$steps" \
        --out "$run/vdm"
}

if [ "${AT_ONCE:-1}" = 1 ]; then
    export OMP_NUM_THREADS=$((cores > 1 ? cores / 2 : 1))
    ours >"$run/ours.log" 2>&1 &
    mine=$!
    peer >"$run/vdm.log" 2>&1
    wait "$mine"
else
    ours
    peer
fi
"$python" -m vqvdm evaluate samples "$run/ours" --reference "$data" --split test --clips "$clips" --report "$run/ours.json"
"$python" -m vqvdm evaluate files "$run/vdm/$minutes.npy" --reference "$data" --split test --size 64 --fps 12.5 \
    --clips "$clips" --report "$run/vdm.json"
"$python" -m vqvdm evaluate compare "$run/ours.json" "$run/vdm.json"
