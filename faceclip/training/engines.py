"""Engines run the optimizer steps of a training.

With `ReplicatedEngine` each process holds all gradients and optimizer state (a single process, or
DistributedDataParallel); with `ZeroEngine` DeepSpeed ZeRO divides them among the processes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, parse_flag_from_env
from torch import Tensor, nn

from faceclip.errors import CheckpointError, ConfigError


class Engine(ABC):
    """Runs optimizer steps. A step is: forward and backward of each chunk inside `accumulating`, then `clip`, then
    `step`."""

    model: nn.Module
    forward_together: bool  # whether every forward pass, validation too, needs all processes
    passes_over: bool  # whether `step` does nothing where a flag on the device says so

    @property
    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, whose "lr" may be set."""

    @abstractmethod
    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Context of a chunk's forward and backward pass; gradients are complete after the `last` chunk of a step."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradient of a chunk's loss ()."""

    def clip(self) -> Tensor | None:
        """Clips the gradient of the step; returns its norm () before clipping, or None if only `step` computes it."""
        return None

    @abstractmethod
    def step(self, skip: Tensor | None = None) -> Tensor | None:
        """Updates the weights and clears the gradients.

        skip (): float32 on the device; if `passes_over` is true and `skip` is 1, no weight changes. Returns the norm of
        the gradient if `clip` returned None; a norm that is not finite means that nothing was updated.
        """

    def full_parameters(self) -> AbstractContextManager[None]:
        """Context in which every process holds all weights. All processes must enter it."""
        return nullcontext()

    def forward_outside_of_steps(self) -> AbstractContextManager[None]:
        """Context for forward passes that do not go through `model`, such as those of validation."""
        return nullcontext()

    @abstractmethod
    def optimizer_state(self) -> dict[str, Tensor]:
        """Returns the whole optimizer state on the main process; results on other processes are not meaningful.

        All processes must call it.
        """

    @abstractmethod
    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores a state that `optimizer_state` returned."""


def start(*, cpu: bool, timeout: timedelta = timedelta(minutes=30)) -> Accelerator:
    """Joins the processes that a launcher has started.

    cpu: do not use accelerators. timeout: how long a process waits for the others.

    Without an accelerator, accelerate would treat every process of a launcher as a separate run, and would not start
    DeepSpeed; its process state is therefore set up for gloo first.
    """
    cpu = cpu or not torch.accelerator.is_available()
    if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)])
    if cpu:
        import deepspeed

        # DeepSpeed would compile its shared-memory collectives at the start; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        PartialState(cpu=True, timeout=timeout)
        return Accelerator()
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)])


def layout(accelerator: Accelerator) -> str:
    """Returns the name of the engine that `prepare` will return: "replicated" or "zero-1" … "zero-3"."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return "replicated"
    return f"zero-{accelerator.state.deepspeed_plugin.zero_stage}"


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, *, batch_size: int, max_norm: float
) -> Engine:
    """Returns the engine of this run, according to how `accelerate launch` was configured.

    Raises ConfigError for a DeepSpeed configuration that this trainer does not support.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return ReplicatedEngine(accelerator, model, optimizer, max_norm)
    return ZeroEngine(accelerator, model, optimizer, batch_size, max_norm)


class ReplicatedEngine(Engine):
    """Engine of a single process or of DistributedDataParallel. It skips a step as a gradient scaler does, by the fused
    optimizer's `found_inf`."""

    forward_together, passes_over = False, True

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
    ) -> None:
        self._accelerator, self._plain, self._limit = accelerator, optimizer, max_norm or math.inf
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.model, self._optimizer = accelerator.prepare(model, optimizer)

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self._plain.param_groups  # loading a state puts a new list there

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self._accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def clip(self) -> Tensor | None:
        return self._accelerator.clip_grad_norm_(self._parameters, self._limit)

    def step(self, skip: Tensor | None = None) -> Tensor | None:
        self._plain.found_inf = skip  # type: ignore[attr-defined]  # torch asks for it by getattr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return None

    def optimizer_state(self) -> dict[str, Tensor]:
        state = self._plain.state_dict()["state"]
        return {f"{i}.{name}": torch.as_tensor(v) for i, values in state.items() for name, v in values.items()}

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        nested: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            index, key = name.split(".", 1)
            nested.setdefault(int(index), {})[key] = tensor
        groups = self._plain.state_dict()["param_groups"]
        self._plain.load_state_dict({"state": nested, "param_groups": groups})


class ZeroEngine(Engine):
    """Engine of DeepSpeed ZeRO 1, 2 or 3 over our own AdamW, whose state DeepSpeed keeps as one flat piece per group
    and process.

    DeepSpeed's own checkpoints are pickles in its own folder layout. This engine instead joins the flat pieces (fp32
    weights and moments) on the main process, one after another, so that they go into the same sealed file as everything
    else. DeepSpeed reads the gradient's norm in every step, so the trainer reads its flags at once, too.
    """

    passes_over = False

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch_size: int,
        max_norm: float,
    ) -> None:
        plugin = accelerator.state.deepspeed_plugin
        if plugin.zero_stage not in (1, 2, 3):
            raise ConfigError(f"DeepSpeed zero_stage {plugin.zero_stage}: use 1, 2 or 3; without ZeRO launch as DDP")
        settings = plugin.deepspeed_config
        if settings["zero_optimization"].get("offload_optimizer", {}).get("device", "none") == "nvme":
            raise ConfigError("DeepSpeed offload_optimizer to nvme: not supported, use cpu or none")
        # The trainer decides when a step is complete and what is clipped; what the file says would count twice.
        settings["train_micro_batch_size_per_gpu"] = batch_size
        settings["gradient_accumulation_steps"] = 1
        settings["gradient_clipping"] = max_norm
        settings.pop("train_batch_size", None)  # DeepSpeed computes it
        self._stage = plugin.zero_stage
        self.forward_together = plugin.zero_stage == 3
        self._device = accelerator.device
        with _with_scalars(model, self._stage):
            self.model, _ = accelerator.prepare(model, optimizer)
        self._base = self.model.optimizer.optimizer  # offloading puts another one in the place of ours

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self._base.param_groups

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss)

    def step(self, skip: Tensor | None = None) -> Tensor | None:
        self.model.step()
        norm = torch.as_tensor(self.model.get_global_grad_norm() or 0.0, device=self._device)
        return norm if self.model.was_step_applied() else torch.full_like(norm, math.inf)

    @contextmanager
    def full_parameters(self) -> Iterator[None]:
        if self._stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.model.module.parameters())):
            yield
        # Leaving splits the small parameters too, which DeepSpeed otherwise keeps whole and does not ask for again.
        if small := self.model.optimizer.persistent_parameters:
            small[0].all_gather(small)

    @contextmanager
    def forward_outside_of_steps(self) -> Iterator[None]:
        # A weight that a module borrows from another one (the output projection in nn.MultiheadAttention) is gathered
        # when it is asked for while DeepSpeed's own forward runs; outside of it, only for modules that have run in it.
        tables = [module._parameters for module in self.model.module.modules()] if self._stage == 3 else []
        for table in tables:
            table._in_forward = True
        try:
            yield
        finally:
            for table in tables:
                table._in_forward = False

    def optimizer_state(self) -> dict[str, Tensor]:
        joined: dict[str, Tensor] = {}
        for number, flat in enumerate(self._pieces()):
            joined[f"{number}.master"] = self._join(flat)
            for key, value in sorted(self._base.state[flat].items()):
                value = torch.as_tensor(value)
                joined[f"{number}.{key}"] = self._join(value) if value.shape == flat.shape else value
        return joined

    @torch.no_grad()
    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        for number, flat in enumerate(self._pieces()):
            mine = {n.split(".", 1)[1]: value for n, value in state.items() if n.split(".", 1)[0] == str(number)}
            whole = len(flat) * dist.get_world_size()
            if "master" not in mine or len(mine["master"]) != whole:
                found = len(mine["master"]) if "master" in mine else "nothing"
                raise CheckpointError(f"optimizer state {number}: {whole} values expected, the checkpoint has {found}")
            here = slice(dist.get_rank() * len(flat), (dist.get_rank() + 1) * len(flat))
            flat.copy_(mine.pop("master")[here])
            # The count of steps too: CUDA's fused kernels want it where the weights are.
            self._base.state[flat] = {
                key: (value[here] if value.ndim else value).to(flat.device, copy=True) for key, value in mine.items()
            }

    def _pieces(self) -> Sequence[Tensor]:
        """Returns this process' flat fp32 weights, by which the optimizer's state is keyed."""
        zero = self.model.optimizer
        return zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups

    def _join(self, piece: Tensor) -> Tensor:
        """Joins the pieces of all processes in rank order, in the host memory of the main process."""
        piece = piece.detach().to(self._device).contiguous()
        main = dist.get_rank() == 0
        pieces = [torch.empty_like(piece) for _ in range(dist.get_world_size())] if main else None
        dist.gather(piece, pieces, dst=0)
        return piece.cpu() if pieces is None else torch.cat([part.cpu() for part in pieces])


@contextmanager
def _with_scalars(model: nn.Module, stage: int) -> Iterator[None]:
    """Context in which DeepSpeed (0.19) can start on a model with scalar parameters.

    DeepSpeed broadcasts parameters as bytes, and tensors without dimensions have no such view.
    """
    scalars = [p for p in model.parameters() if p.ndim == 0]
    for parameter in scalars:
        if stage < 3:
            # Broadcast here, and marked as what DeepSpeed leaves alone (the mark of its sharded linear layers).
            dist.broadcast(parameter.data, src=0)
            parameter.ds_optim_param = True
        else:
            parameter.data = parameter.data.view(1)
    try:
        yield
    finally:
        for parameter in scalars:
            if stage < 3:
                del parameter.ds_optim_param
            elif hasattr(parameter, "ds_shape"):  # not if starting failed
                parameter.ds_shape = torch.Size([])
                # A scalar always stays with every process. Until its trace is complete, ZeRO 3 would release it after
                # forward, and get it back for backward only in modules whose outputs are plain tensors.
                parameter.is_external_param = True
                parameter.all_gather([parameter])
                parameter.data = parameter.data.view(())
