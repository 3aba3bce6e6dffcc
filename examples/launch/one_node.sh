#!/bin/bash
# A training on all GPUs of this machine, one rank for each, without a launcher between that would kill them half a minute
# after SIGTERM (bash 5.1 or newer).
#
#     examples/launch/one_node.sh train_generator --preset sdxl data=DIR encoder=RUN/export
#     GPUS=4 ZERO_STAGE=2 examples/launch/one_node.sh train_encoder --preset bigg14 data=DIR
#
# SIGTERM to this script, as before a spot machine is taken away, lets the ranks finish their step and save, and ends with
# 143; the same command goes on. A rank that fails ends the others at once.
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
export WORLD_SIZE=$GPUS LOCAL_WORLD_SIZE=$GPUS MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-29500}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
if [ -n "$ZERO_STAGE" ]; then
    export ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_ZERO_STAGE=$ZERO_STAGE
fi

declare -A ranks
trap 'kill -TERM "${!ranks[@]}" 2>/dev/null' TERM
for ((rank = 0; rank < GPUS; rank++)); do
    RANK=$rank LOCAL_RANK=$rank python -m "$@" &
    ranks[$!]=$rank
done

worst=0
while [ "${#ranks[@]}" -gt 0 ]; do
    ended=
    wait -n -p ended "${!ranks[@]}"
    status=$?
    if [ -z "$ended" ]; then
        continue # a signal ended the wait, not a rank
    fi
    unset "ranks[$ended]"
    if [ "$status" -gt "$worst" ]; then worst=$status; fi
    if [ "$status" -ne 0 ] && [ "$status" -ne 130 ] && [ "$status" -ne 143 ]; then
        kill -KILL "${!ranks[@]}" 2>/dev/null
        wait
        exit "$status"
    fi
done
exit "$worst"
