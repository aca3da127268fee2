#!/usr/bin/env bash
# Every table and figure of the paper, one launch each.  All share OUT: scoring passes, sets, teachers and students are made once.
#
#   scripts/reproduce.sh [demo|cifar10|paper|FILE.yaml] [OUT] [options of a pipeline, such as --dry-run or --students 2]
#
# Started again it goes on.  demo: two cores, no download; paper: what has to be set is in configs/scales/paper.yaml.
# LAUNCH="accelerate launch --multi_gpu --num_processes 8" scripts/reproduce.sh paper study     for several GPUs
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit ;; esac
scale=${1:-demo} out=${2:-study-${1:-demo}}
shift $(($# < 2 ? $# : 2))
pipelines=(
  sheets              # Figs. 2, 3, 9 to 14
  tsne                # Fig. 4
  capabilities        # Tab. 4, Fig. 5
  high_resolution     # Tab. 1
  low_resolution      # Tab. 2
  rded                # RDED's own scripts
  hard_labels         # Tab. 7
  clustering          # Tab. 5
  cluster_counts      # Fig. 8
  real_images         # Fig. 7
  dift_steps          # Fig. 6
  timestep_ranges     # Tab. 6
  sizes               # Tab. 9
  cross_architecture  # Tabs. 3 and 8
)
for name in "${pipelines[@]}"; do
  echo "== $name"
  ${LAUNCH:-accelerate launch} "pipelines/$name.py" --scale "$scale" --out "$out" "$@"
done
echo "tables and pictures: $out/tables"
