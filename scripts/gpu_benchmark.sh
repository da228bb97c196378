#!/usr/bin/env bash
# All that docs/performance.md asks of a GPU, into one JSON file, within eight minutes: what is not done by then is left
# out.
#
#     scripts/gpu_benchmark.sh [gpu_benchmark.json]
#
# DEVICE=cpu RECIPE=demo BATCH=2 BATCHES="1 2" tries the script itself on a machine without a GPU.
set -euo pipefail

out=${1:-gpu_benchmark.json}
device=${DEVICE:-cuda}
recipe=${RECIPE:-paper-ucf101}
batch=${BATCH:-64}
batches=${BATCHES:-1 8 64 256}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
end=$((SECONDS + ${LIMIT:-470}))
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT

# The last line of a benchmark is its JSON. A part that fails, or finds no time left, leaves the others.
part() {
    local name=$1 left=$((end - SECONDS))
    shift
    if ((left < 10)); then
        echo "== $name: no time left" >&2
        return 0
    fi
    echo "== $name: vqvdm benchmark $*"
    if timeout "$left" "$python" -m vqvdm benchmark --recipe "$recipe" --device "$device" "$@" \
        sampling.steps=20 sampling.guidance_scale=2 >"$parts/$name.txt"; then
        sed '$d' "$parts/$name.txt"
        tail -n 1 "$parts/$name.txt" >"$parts/$name.json"
    else
        echo "$name failed" >&2
    fi
}

part one_clip --rounds 7 --stages "step,guided step,encode,decode,clip,100 steps"
part start --rounds 2 --stages "import,help,first video"
for many in $batches; do
    part "batch_$many" --rounds 3 --batch "$many" --stages "guided step,decode,clip"
done
part training --rounds 3 --stages "train tokenizer,train denoiser,read latents,evaluate" \
    tokenizer.training.batch="${TRAIN_BATCH:-8}" denoiser.training.batch="$batch"
part vdm --rounds 3 --stages "guided step" --against vdm # needs scripts/install_vdm.sh
part compiled --rounds 3 --batch "$batch" --compile --stages "guided step,decode,clip"

"$python" - "$parts" "$out" <<'PYTHON'
import json
import sys
from pathlib import Path

parts, out = Path(sys.argv[1]), Path(sys.argv[2])
found = {path.stem: json.loads(path.read_text()) for path in sorted(parts.glob("*.json"))}
if not found:
    sys.exit("no part was measured")
partial = out.with_name(out.name + ".tmp")
partial.write_text(json.dumps(found, indent=1) + "\n")
partial.replace(out)
print(f"{len(found)} parts in {out}: {', '.join(found)}")
PYTHON
