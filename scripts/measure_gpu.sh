#!/usr/bin/env bash
# Everything that waits for a GPU, in pieces of under nine minutes.  A piece that was stopped goes on; one that is done is left.
#
#   scripts/measure_gpu.sh OUT PIECE ...
#
#   rates      the scoring pass of Stable Diffusion v1.5's architecture (random weights): images/s and share of the matrix rate
#   default    the same at the 6 draws that are the default, which ImageNet's minutes follow from
#   compiled   that with torch.compile, also for all sizes and without the VAE (minutes to start), then a profile by part, not compiled
#   layout     that in both memory layouts (channels last is what a GPU gets)
#   bytes      the same images among other neighbours: equal bytes?
#   students   student training against the usual loop, steps captured as CUDA graphs and launched one by one
#   prior      the CIFAR-10 prior, trained for PRIOR_SECONDS (CIFAR10=FOLDER with train/ and test/; VAE=FOLDER with its vae/)
#   teachers   ResNet-18 (small images) and ConvNet-3 on CIFAR-10's training images, by EPOCHS and CONVNET_EPOCHS
#   all        these in turn
#
# OUT/rows.jsonl: the tables' rows.  SMALL=1: the smallest scale, on whatever device there is (the test of this script).
set -euo pipefail
case "${1:-}" in "" | -h | --help) sed -n '2,17s/^# \{0,1\}//p' "$0"; exit ;; esac
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
small=${SMALL:-}
python=${PYTHON:-python}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

bench() { "$python" "$here/bench_scoring.py" --json "$out/rows.jsonl" "$@"; }
architecture() { # the model to time: written once
  if [ "$small" ]; then echo demo; return; fi
  if [ ! -e "$out/sd15/unet/config.json" ]; then "$python" "$here/make_random_sd15.py" --out "$out/sd15.part" --device "${DEVICE:-cuda}" >&2; mv "$out/sd15.part" "$out/sd15"; fi
  echo "$out/sd15"
}
timed() { # a CPU times the embedded model on a few scenes
  if [ "$small" ]; then bench --images 4 --draws 3 --usual-draws 10 --usual-images 1 --rounds 1 --batch-sizes 8 ${more:+"$more"}; return; fi
  bench --model "$(architecture)" --size 256 --usual-images 1 --rounds 2 ${more:+"$more"} "$@"
}
piece_rates() {
  timed --images 128 --precision fp16 --batch-sizes 64 128 256
  [ "$small" ] || timed --images 64 --precision bf16 --batch-sizes 128
  [ "$small" ] || timed --images 16 --precision fp32 tf32 --batch-sizes 64
}
piece_default() { timed --images 256 --draws 6 --precision fp16 --batch-sizes 128 256; }
piece_compiled() { local more=--compile; timed --images 256 --draws 6 --precision fp16 --batch-sizes 128 --profile; }
piece_layout() { local more=--layouts; timed --images 128 --draws 6 --precision fp16 --batch-sizes 128; }
piece_bytes() {
  if [ "$small" ]; then bench --permuted --images 4 --draws 3; return; fi
  bench --permuted --model "$(architecture)" --size 256 --images 8 --precision fp16 bf16 fp32 --batch-sizes 64
}
piece_students() { "$python" "$here/bench_evaluation.py" --rounds "${ROUNDS:-$([ "$small" ] && echo 1 || echo 4)}" ${small:+--small --chunk 1} | tee -a "$out/rows.jsonl"; }
piece_prior() {
  local options=(${PRIOR_DROPOUT:+--set dropout=$PRIOR_DROPOUT} --set batch=${PRIOR_BATCH:-512} --set lr=0.0015 --set steps=200000 --seconds "${PRIOR_SECONDS:-420}" ${EAGER:---compile --graph} --log-every 4000 --save-every 4000 --probe 50)
  [ -z "$small" ] || options=(--set batch=8 --set steps=4 --set vae_steps=2 --set 'unet=[16,16,16]' --probe 1 --hold-out 2)
  "$python" -W ignore "$here/train_prior.py" cifar10 --images "$CIFAR10/train" --out "$out/cifar10-sd" ${VAE:+--reuse-vae "$VAE"} "${options[@]}"
}
piece_teachers() {
  local common=("$CIFAR10/train" --size 32 --crop padded --schedule cosine --weight-decay 0.0005 --image-size 32 -q)
  local conv=(--epochs "${CONVNET_EPOCHS:-60}") deep=(--epochs "${EPOCHS:-60}" --network resnet18_modified) # no --val: the last epoch
  [ -z "$small" ] || { conv=(--epochs 1 --batch-size 8) deep=("${conv[@]}" --network conv3w8); }
  [ "$small" ] || common+=(--precision bf16 --save-every 10)
  "$python" -m diffsel teacher "${common[@]}" "${deep[@]}" --learning-rate 0.1 --warmup "$([ "$small" ] && echo 0 || echo 2)" --out "$out/teacher-resnet18"
  "$python" -m diffsel teacher "${common[@]}" "${conv[@]}" --network conv3 --batch-size "${BATCH:-$([ "$small" ] && echo 8 || echo 256)}" --learning-rate 0.1 --out "$out/teacher-conv3"
}
for piece in "$@"; do
  [ "$piece" != all ] || { "$0" "$out" rates default compiled layout bytes students prior teachers; continue; }
  declare -F "piece_$piece" >/dev/null || { echo "no piece $piece; $0 --help lists them" >&2; exit 2; }
  if [ -e "$out/$piece.done" ]; then continue; fi
  echo "== $piece" && begun=$SECONDS
  "piece_$piece"
  echo "$piece: $((SECONDS - begun)) s" && touch "$out/$piece.done"
done
