#!/bin/bash
# DATA=/shared/imagenet/train RUN=/shared/run JOBS=128 configs/launch/slurm.sh
# A job array on Slurm: one GPU each, no connection between them; RUN lies on a disk that all machines see.  The index comes
# first, then the shards; started again after failures, only what is missing is done.  Add --partition, --account, --time.
set -euo pipefail
: "${DATA:?}" "${RUN:?}" "${JOBS:=128}"
SBATCH=(sbatch --parsable --gpus-per-task=1 --cpus-per-task=8 --mem=32G --requeue)
index=$("${SBATCH[@]}" --job-name=diffsel-index --wrap "diffsel score $DATA --out $RUN --index-only")
shards=$("${SBATCH[@]}" --job-name=diffsel --array=0-$((JOBS - 1)) --dependency="afterok:$index" \
    --wrap "diffsel distill $DATA --out $RUN --ipc 10 --shard \$SLURM_ARRAY_TASK_ID/$JOBS")
# What shards that were lost have left, by one process, and the sets: nothing is to do where all went well.
"${SBATCH[@]}" --job-name=diffsel-last --dependency="afterany:$shards" --wrap "diffsel distill $DATA --out $RUN --ipc 10"
