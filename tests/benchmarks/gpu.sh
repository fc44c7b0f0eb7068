#!/usr/bin/env bash
# Everything that needs a GPU, in one command and without a network:
#
#     bash tests/benchmarks/gpu.sh FOLDER [STEP...]
#
# The tests marked `cuda`, the rows of gpu.py and a profile of `extract`: the cheapest first, each
# with a time limit; if STEPs are named, these alone. FOLDER gets a log and a CSV of each, as it
# ends. Run again, the command resumes after the last step that ended. Wheels in the folder
# `wheels`, where there is one, are installed into FOLDER first. DEVICE=cpu SIZE=tiny tries all of it
# on a CPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "${1:?the folder that results go to}")
export DEVICE=${DEVICE:-cuda} SIZE=${SIZE:-full} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
steps=" ${*:2} "
mkdir -p "$folder"
if compgen -G 'wheels/*.whl' > /dev/null && [ ! -d "$folder/site" ]; then
  "$python" -m pip install -q --no-index --no-deps --target "$folder/site" wheels/*.whl || exit 1
fi
export PYTHONPATH=$folder/site:$PWD${PYTHONPATH:+:$PYTHONPATH}

step() { # NAME SECONDS COMMAND...: runs a step that has not ended before, and records how it ended
  local name=$1 limit=$2
  shift 2
  [[ "$steps" = "  " || "$steps" = *" $name "* ]] || return 0
  [ -e "$folder/$name.ended" ] && return
  echo "== $name (at most $limit s)"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$folder/$name.log"
  local status=${PIPESTATUS[0]}
  [ "$status" = 124 ] && echo "stopped after $limit s" | tee -a "$folder/$name.log"
  echo "$status" > "$folder/$name.ended"
}

row() { # NAME SECONDS
  step "$1" "$2" "$python" tests/benchmarks/gpu.py "$1" --device "$DEVICE" --size "$SIZE" \
    --results "$folder"
}

step tests 150 "$python" -m pytest -q -p no:cacheprovider -p no:xdist -m cuda \
  tests/test_cuda.py tests/test_views.py tests/test_linear.py
row solve 60
row score 60
row views 60
for precision in float32 bfloat16; do
  for model in resnet50 vit_small_patch16_224 vit_base_patch16_224; do
    row "extract-$model-$precision" 60
  done
done
row jpeg 60
row profile 60
row judged 120
for precision in float32 bfloat16; do
  for model in vit_large_patch16_224 vit_huge_patch14_224; do
    row "extract-$model-$precision" 120
  done
done
row precision 120
row hundred 1200
