"""Whether steps are finite and whether a process was asked to stop, without a step that waits for the device.

All processes agree on both, because the flags are reduced on the device. On an accelerator the host reads the flags of
a step while the next one is under way; until then the optimizer itself passes over a step that is not finite, and over
all steps after it, so that the weights stay those before it.
"""

from collections import deque
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from faceclip.errors import NonFiniteLossError
from faceclip.training.collectives import world_size
from faceclip.training.logging import Window


@dataclass(frozen=True, kw_only=True)
class _Flags:
    """Of one step; `host` (2,) is filled once `copied` (None: at once) has passed."""

    step: int
    total: Tensor
    norm: Tensor | None
    host: Tensor
    copied: torch.cuda.Event | None

    def read(self) -> tuple[bool, int]:
        """Whether a step was not finite, and by which exit status a process was asked to stop (0: none)."""
        if self.copied is not None:
            self.copied.synchronize()
        bad, asked = self.host.tolist()
        return bool(bad), int(asked)


class Watch:
    """The flags of the steps of a run on `device`. `late`: they are read one step late instead of at once."""

    def __init__(self, device: torch.device, *, late: bool) -> None:
        self.late = late
        self._asked = 0  # exit status by which any process was asked to stop, as far as read
        self._seen = torch.zeros(2, device=device)  # of all steps so far
        self._pending: deque[_Flags] = deque()

    def judge(self, step: int, total: Tensor, norm: Tensor | None, asked: int, window: Window) -> Tensor | None:
        """Notes the loss and the gradient's norm of a step, both (), and the exit status `asked` (0: none), and reads
        what is due. All processes must call it.

        Returns None where the flags are read at once; else () float32 on the device, by which the optimizer passes over
        the step: 1 if this step or one before it is not finite on any process, else 0. Raises as `check` does.
        """
        healthy = total if norm is None else total + norm
        # Filled, not copied there: a copy from unpinned memory would wait.
        now = torch.stack([(~torch.isfinite(healthy)).float(), torch.full_like(healthy, asked).float()])
        if world_size() > 1:
            dist.all_reduce(now, op=dist.ReduceOp.MAX)
        self._seen = torch.maximum(self._seen, now)
        host, copied = _to_host(self._seen)
        self._pending.append(_Flags(step=step, total=total, norm=norm, host=host, copied=copied))
        self.check(window)
        return self._seen[0] if self.late else None

    def check(self, window: Window, *, now: bool = False) -> None:
        """Reads the flags that are due: of all steps where `now` or not `late`, else of all but the newest.

        Raises NonFiniteLossError, on all processes, for the first step that was not finite.
        """
        while len(self._pending) > (1 if self.late and not now else 0):
            flags = self._pending.popleft()
            bad, asked = flags.read()
            self._asked = max(self._asked, asked)
            if bad:
                values = {name: value.item() / max(window.begun, 1) for name, value in window.sums.items()}
                raise NonFiniteLossError(
                    f"step {flags.step}: loss {flags.total.item()} or its gradient (norm {flags.norm}) is not finite; "
                    f"mean parts since the last log line: {values}. Weights and checkpoints are untouched: lower "
                    "trainer.learning_rate or check the data of these steps, then resume"
                )

    def asked(self, own: int) -> int:
        """The exit status by which a process was asked to stop, the same on all of them: that of the flags that are
        read, and `own` where there is one process."""
        return own if world_size() == 1 else self._asked


def reads_late(device: torch.device) -> bool:
    """Whether the host runs ahead of this device, so that reading at once would wait for it."""
    return device.type == "cuda"


def _to_host(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy in host memory, and what tells that it has arrived there."""
    if flags.device.type != "cuda":
        return flags.cpu().clone(), None
    host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
    host.copy_(flags, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied
