#!/usr/bin/env bash
# All that waits for a GPU, in at most 25 minutes: its tests, the speed of every head in sampling and
# training, and ten minutes of training on a folder of images.
#
#   benchmarks/gpu.sh OUT IMAGES [PEER]
#
# OUT is a folder for the logs, IMAGES a folder of photographs, PEER where version 0.4.0 is installed.
# A part that fails is named, and the others go on. DRY=1 runs the same parts on the CPU, as small and
# short as they get; HEADS="flow energy" takes some heads alone.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath "$1") images=$(realpath "$2") peer=${3:+--peer $(realpath "$3")}
mkdir -p "$out"
python=${PYTHON:-python3}
ardiff="$python -m autoregressive_diffusion_pytorch"
heads=${HEADS:-diffusion flow flow_map energy}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

if [ -n "${DRY:-}" ]; then
  device=cpu dtypes=float32 minutes=0.02 repeats=1 batches=1
  sizes="--dim 16 --depth 1" images_of="--image-size 16 --patch-size 8 --size tiny"
  tests="-n0 tests/utils/test_rng.py -k gpu" compiled="" training="--steps 4 --batch-size 2"
  export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1
else
  device=cuda dtypes="float32 bfloat16" minutes=10 repeats=2 batches="1 16 64 256"
  sizes="--dim 768 --depth 12" images_of="--image-size 64 --patch-size 8 --size base --batch-size 64"
  tests="-k gpu" compiled="--compile" training="--steps 24"
fi

failed=0
part() {  # NAME SECONDS COMMAND...: its log is OUT/NAME.log
  local name=$1 limit=$2 started=$SECONDS code
  shift 2
  timeout "$limit" "$@" > "$out/$name.log" 2>&1
  code=$?
  [ $code -eq 0 ] || failed=1
  echo "$name: rc $code after $((SECONDS - started)) s"
}

part tests 180 $python -m pytest -q -p no:cacheprovider $tests
for dtype in $dtypes; do
  part sampling-$dtype 150 $python benchmarks/sampling.py --device $device --heads $heads \
    --dtype $dtype --batch-sizes $batches --tokens --steps --repeats $repeats $sizes $peer
done
if [ -n "$compiled" ]; then
  part sampling-compiled 240 $python benchmarks/sampling.py --device $device --heads $heads \
    --batch-sizes $batches --tokens --steps --repeats $repeats $sizes --compile
fi
part training 180 $python benchmarks/training.py --device $device --images "$images" --heads $heads \
  $training $sizes $compiled $peer
part flowers 700 $ardiff train "$images" --run "$out/flowers" --minutes $minutes $images_of
part samples 60 $ardiff sample "$out/flowers" --count 16 --output "$out/samples.png"
exit $failed
