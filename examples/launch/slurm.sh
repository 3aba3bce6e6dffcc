#!/bin/bash
# A training on one or more nodes of eight GPUs under Slurm, which goes on by itself after preemption and time limits.
#
#     sbatch examples/launch/slurm.sh train_encoder --preset bigg14 data=DIR out=RUN
#     sbatch examples/launch/slurm.sh train_generator --preset sdxl data=DIR encoder=RUN/export out=RUN2
#     ZERO_STAGE=2 sbatch --nodes 2 examples/launch/slurm.sh …        # DeepSpeed ZeRO in place of DistributedDataParallel
#
# Slurm starts the ranks itself, so that its SIGTERM reaches them without a launcher between that would kill them after
# half a minute: each rank finishes its step, the checkpoint is written, and all exit with 143. --signal sends it three
# minutes before the time limit; a preempted job needs a partition with as long a GraceTime.
#SBATCH --job-name=faceclip
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.txt

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
if [ -n "$ZERO_STAGE" ]; then
    export ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_ZERO_STAGE=$ZERO_STAGE
fi

# exec: the signal must reach Python itself.
srun --kill-on-bad-exit=0 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
    exec python -m "$@"' rank "$@"
status=$?

# 143: saved after SIGTERM. The same command resumes from that checkpoint.
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
