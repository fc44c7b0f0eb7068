#!/usr/bin/env bash
# Everything that needs a GPU, in one command and without a network:
#
#     bash tests/benchmarks/gpu.sh FOLDER [STEP...]
#
# The tests marked `cuda`, those of core on the device, the rows of gpu.py and a profile of
# `extract`: the cheapest first, each with a time limit; if STEPs are named, these alone. FOLDER gets
# a log of each step and a CSV of each row, after every line. Run again, the command resumes at the
# step that was interrupted. DEVICE=cpu SIZE=tiny SLOWER=10 tries all of it on a CPU, with ten times
# the time.
#
# What the machine lacks is put as wheels into the folder `wheels`, from where it is installed into
# FOLDER. Every step needs the dependencies of the package (pyproject.toml), the tests pytest with
# pluggy and iniconfig, those of core hypothesis with sortedcontainers too, and the comparison with
# kornia, of the row `views`, kornia and kornia-rs.
set -uo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "${1:?the folder that results go to}")
export DEVICE=${DEVICE:-cuda} SIZE=${SIZE:-full} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
steps=" ${*:2} "
mkdir -p "$folder"
if compgen -G 'wheels/*.whl' > /dev/null && [ ! -d "$folder/site" ]; then
  for wheel in wheels/*.whl; do
    "$python" -m pip install -q --no-index --no-deps --target "$folder/site" "$wheel" ||
      echo "$wheel is not installed" >&2
  done
fi
export PYTHONPATH=$folder/site:$PWD${PYTHONPATH:+:$PYTHONPATH}

missing() { # MODULE...: those that cannot be imported
  "$python" -c 'if True:
    import sys
    from importlib.util import find_spec
    print(*(name for name in sys.argv[1:] if find_spec(name) is None))' "$@"
}
needed=$(missing torch torchvision timm h5py typer rich numpy PIL pydantic pydantic_core \
  annotated_types typing_inspection safetensors scipy sklearn psutil) || exit 1
[ -z "$needed" ] || { echo "missing, and needed by every step: $needed" >&2; exit 1; }
wanted=" $(missing pytest hypothesis kornia) "
[ "$wanted" = "  " ] || echo "missing:$wanted(without pytest no tests run, without hypothesis none" \
  "of core, without kornia no comparison with it)" >&2

step() { # NAME SECONDS COMMAND...: runs a step that has not ended before, and records how it ended
  local name=$1 limit=$(($2 * ${SLOWER:-1}))
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

tests() { # NAME SECONDS OPTION...
  local needs=" pytest "
  [ "$1" = core ] && needs=" hypothesis "
  [[ "$wanted" = *" pytest "* || "$wanted" = *"$needs"* ]] && return
  step "$1" "$2" "$python" -m pytest -q -p no:cacheprovider -p no:xdist -W default "${@:3}"
}

tests tests 150 -m cuda tests/test_cuda.py tests/test_views.py tests/test_linear.py
tests core 90 tests/test_moments.py tests/test_spectra.py
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
row views-variants 60
row judged 120
for precision in float32 bfloat16; do
  for model in vit_large_patch16_224 vit_huge_patch14_224; do
    row "extract-$model-$precision" 120
  done
done
row precision 120
row hundred 1200
