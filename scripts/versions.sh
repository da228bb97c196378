#!/usr/bin/env bash
# Run the quick tests with the oldest and the newest versions of what the package needs, on every Python there is.
#
#     scripts/versions.sh [FOLDER]
#
# Each row gets a virtual environment in FOLDER (default: .venv-versions), kept for the next time. torch comes as a CPU
# build from TORCH_INDEX (default https://download.pytorch.org/whl/cpu); where there is none for a Python, the row says
# so. OLDEST and NEWEST name the versions of torch: what the other packages' oldest are stands in pyproject.toml.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
folder=${1:-.venv-versions}
: "${TORCH_INDEX:=https://download.pytorch.org/whl/cpu}" "${OLDEST:=2.11.0}" "${NEWEST:=2.13.0}" "${TESTS:=tests}"
mkdir -p "$folder"

# It follows the pins of constraints.txt through the packages that are installed, which here are others.
except=(--deselect tests/test_package.py::test_constraints_are_complete)

floors() { # name==version for each lower bound of the package's own dependencies, torch's aside
    python3 - <<'PY'
import re
import tomllib

for need in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    name, floor = re.match(r"([\w-]+)>=([\d.]+)", need).groups()
    if name != "torch":
        print(f"{name}~={floor}.0" if floor.count(".") == 0 else f"{name}=={floor}.*")
PY
}

row() {
    local python=$1 age=$2 torch=$3 extra=()
    local place="$folder/$python-$age" log="$folder/$python-$age.log"
    [[ $age == oldest ]] && mapfile -t extra < <(floors)
    if [[ ! -x $place/bin/python ]]; then
        "$python" -m venv "$place" >"$log" 2>&1 || { echo "| $python | $age | | no venv |"; return; }
    fi
    if ! "$place/bin/python" -m pip install --quiet --only-binary torch --index-url "$TORCH_INDEX" "torch==$torch" \
        >>"$log" 2>&1; then
        echo "| $python | $age | torch $torch | no CPU build to be had |"
        return
    fi
    if ! "$place/bin/python" -m pip install --quiet --prefer-binary -e ".[dev]" "torch==$torch" "${extra[@]}" >>"$log" 2>&1; then
        echo "| $python | $age | torch $torch | does not install, see $log |"
        return
    fi
    local versions result
    versions=$("$place/bin/python" -c 'from importlib.metadata import version as v
print(", ".join(f"{n} {v(n)}" for n in ("torch", "diffusers", "accelerate", "numpy")))')
    result=$(OMP_NUM_THREADS=1 "$place/bin/python" -m pytest -q -n 2 -m "not slow" "${except[@]}" "$TESTS" 2>&1 | tee -a "$log" | tail -1)
    echo "| $python | $age | $versions | $result |"
}

echo "| Python | versions | | quick tests |"
echo "|---|---|---|---|"
for python in python3.11 python3.12 python3.13; do
    command -v "$python" >/dev/null || { echo "| $python | | | not on this machine |"; continue; }
    row "$python" oldest "$OLDEST"
    row "$python" newest "$NEWEST"
done
