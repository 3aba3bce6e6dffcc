"""Checks whether steps are finite and whether a process was asked to stop, without waiting for the device in each step.

All processes agree on both, because the flags are reduced on the device. On an accelerator the host reads the flags of
a step during the next one. Until then the optimizer itself skips a step that is not finite, and all later ones, so that
the weights stay those before it.
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
    """The flags of one step. `host` (2,) is valid after the event `copied`, or at once if that is None."""

    step: int
    total: Tensor
    norm: Tensor | None
    host: Tensor
    copied: torch.cuda.Event | None

    def read(self) -> tuple[bool, int]:
        """Returns whether a step was not finite, and the exit status of a request to stop (0: none)."""
        if self.copied is not None:
            self.copied.synchronize()
        bad, asked = self.host.tolist()
        return bool(bad), int(asked)


class Watch:
    """Watches the steps of a run on `device`. `late`: flags are read one step late instead of at once."""

    def __init__(self, device: torch.device, *, late: bool) -> None:
        self.late = late
        self._asked = 0  # exit status by which any process was asked to stop, as far as read
        self._seen = torch.zeros(2, device=device)  # of all steps so far
        self._pending: deque[_Flags] = deque()

    def judge(self, step: int, total: Tensor, norm: Tensor | None, asked: int, window: Window) -> Tensor | None:
        """Records the loss and the gradient's norm of a step, both (), and the exit status `asked` (0: none), and reads
        the flags that are due. All processes must call it.

        Returns None if flags are read at once. Otherwise returns a flag (), float32 on the device, by which the
        optimizer skips the step: 1 if this or an earlier step is not finite on any process, else 0. Raises as `check`
        does.
        """
        healthy = total if norm is None else total + norm
        # `full_like` fills the value on the device; copying it from unpinned memory would block.
        now = torch.stack([(~torch.isfinite(healthy)).float(), torch.full_like(healthy, asked).float()])
        if world_size() > 1:
            dist.all_reduce(now, op=dist.ReduceOp.MAX)
        self._seen = torch.maximum(self._seen, now)
        host, copied = _to_host(self._seen)
        self._pending.append(_Flags(step=step, total=total, norm=norm, host=host, copied=copied))
        self.check(window)
        return self._seen[0] if self.late else None

    def check(self, window: Window, *, now: bool = False) -> None:
        """Reads the flags that are due: those of all steps with `now` or without `late`, else of all but the newest.

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
        """Returns the exit status of a request to stop, the same on all processes: that of the flags read so far, or
        `own` if there is a single process."""
        return own if world_size() == 1 else self._asked


def reads_late(device: torch.device) -> bool:
    """Returns whether the host runs ahead of this device, so that reading flags at once would block."""
    return device.type == "cuda"


def _to_host(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Copies flags to host memory; returns the copy, and the event after which it is valid (None: at once)."""
    if flags.device.type != "cuda":
        return flags.cpu().clone(), None
    host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
    host.copy_(flags, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied
