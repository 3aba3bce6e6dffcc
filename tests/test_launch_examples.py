"""The launch scripts, with programs of Slurm and ranks that only note how they are called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "examples" / "launch"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs; each appends its name and words to `called.txt` in it."""
    folder = tmp_path / "programs"
    folder.mkdir()
    texts = {
        "srun": 'shift; SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_NTASKS=4 SLURM_NNODES=2 "$@"',
        "scontrol": 'if [ "$1" = show ]; then echo node7; echo node8; fi',
        "python": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT '
        '${ACCELERATE_DEEPSPEED_ZERO_STAGE:-none}" >> "$NOTES"; exit $STATUS',
    }
    for name, text in texts.items():
        (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "$NOTES"\n{text}\n')
        (folder / name).chmod(0o755)
    return folder


def launched(script: str, programs: Path, status: int, *words: str, **environment: str) -> tuple[int, list[str]]:
    notes = programs / "called.txt"
    notes.unlink(missing_ok=True)
    given = {"PATH": f"{programs}:/usr/bin:/bin", "NOTES": str(notes), "STATUS": str(status)} | environment
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG")}
    done = subprocess.run(["bash", str(SCRIPTS / script), *words], env=kept | given, timeout=30, check=False)
    return done.returncode, notes.read_text().splitlines()


SLURM = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "41", "SLURM_CPUS_PER_TASK": "8"}


@pytest.mark.parametrize(("status", "again"), [(143, True), (0, False), (1, False), (2, False)])
def test_a_job_that_saved_after_sigterm_is_queued_again_and_no_other(programs, status, again) -> None:
    found, notes = launched("slurm.sh", programs, status, "train_encoder", "data=a b", "out=RUN", **SLURM)
    assert found == status
    assert ("scontrol requeue 41" in notes) == again
    assert "python -m train_encoder data=a b out=RUN" in notes
    assert "3 1 4 2 node7 20041 none" in notes  # rank, rank on the node, all, on a node, where they meet


def test_zero_is_chosen_by_the_environment(programs) -> None:
    _, notes = launched("slurm.sh", programs, 0, "train_generator", ZERO_STAGE="2", **SLURM)
    assert any(line.endswith("20041 2") for line in notes)


RANK = """#!/bin/bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $*" >> "$NOTES"
if [ "$MODE" = fail ] && [ "$RANK" = 1 ]; then
    until [ "$(wc -l < "$NOTES")" = 2 ]; do sleep 0.02; done
    exit 2
fi
if [ "$MODE" = work ]; then exit 0; fi
trap 'echo "saved $RANK" >> "$NOTES"; exit 143' TERM
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize(("mode", "status"), [("work", 0), ("fail", 2), ("wait", 143)])
def test_one_node_starts_a_rank_per_gpu_and_passes_sigterm_on(programs, mode, status) -> None:
    (programs / "python").write_text(RANK)
    notes = programs / "called.txt"
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "NOTES": str(notes), "GPUS": "2", "MODE": mode}
    process = subprocess.Popen(["bash", str(SCRIPTS / "one_node.sh"), "train_encoder", "data=a b"], env=environment)
    try:
        if mode == "wait":
            while not notes.is_file() or len(notes.read_text().splitlines()) < 2:
                time.sleep(0.02)
            time.sleep(0.2)  # until both have set their traps
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == status
    finally:
        process.kill()
    lines = notes.read_text().splitlines()
    assert {f"{rank} {rank} 2 -m train_encoder data=a b" for rank in (0, 1)} <= set(lines)
    assert ({"saved 0", "saved 1"} <= set(lines)) == (mode == "wait")
