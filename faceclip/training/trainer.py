"""The training loop of all commands: exact resume, atomic checkpoints, finite check, logs, distribution.

A step depends on (seed, step) alone: the data order, every sample's random generator, and torch's generator, which is
seeded anew for every step. With the optimizer's state in the checkpoint, N steps, a kill and N more steps give the
weights of 2N steps, bit for bit on a CPU with one or two ranks (docs/scaling.md covers more ranks).
"""

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faceclip.cpu.training import cpu_training
from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.folders import remove_leftovers, write_atomically
from faceclip.storage.locks import locked
from faceclip.training.accelerators import FlopMeter, memory_gib, moved, pinned, policy
from faceclip.training.accumulation import first_pass
from faceclip.training.best import BestExport
from faceclip.training.checkpoints import (
    add_facts,
    check_fit,
    check_same_start,
    check_unused,
    load_checkpoint,
    make_folder,
    newest_checkpoint,
    resumable_checkpoint,
    save_checkpoint,
    unshared,
)
from faceclip.training.collectives import sum_over_ranks, world_size
from faceclip.training.continuation import check_same_run, check_steps, noted_run, noted_settings, settings_of
from faceclip.training.ema import ParameterAverage
from faceclip.training.engines import Engine, layout, prepare, start
from faceclip.training.interfaces import ContrastiveTask, Result, StepContext, Task, TrainerConfig
from faceclip.training.logging import Display, RunLog, Window
from faceclip.training.optimization import make_optimizer, rate_factor
from faceclip.training.prefetch import Prefetcher
from faceclip.training.run_folder import BEST, CHECKPOINTS, EXPORT, LOCK
from faceclip.training.sampler import MapSource, fetch, sampler_of
from faceclip.training.step_module import StepModule
from faceclip.training.stopping import StopRequest
from faceclip.training.trackers import check_trackers, open_trackers
from faceclip.training.watch import Watch, reads_late


class Trainer:
    """Runs `task` over `source` for `config.steps` optimizer steps below `output_dir`.

    The folder receives checkpoints/, log.jsonl, tensorboard/, export/ (the finished task) and on demand best/.

    A run resumes with equal facts (hashes by name, as of frozen models and data; `task.facts()` is added) and settings
    (the command's configuration, but for what `faceclip.training.continuation` allows to change).

    Raises ConfigError if nothing is trained, a tracker is not installed, or settings contradict each other.
    """

    def __init__(
        self,
        config: TrainerConfig,
        task: Task,
        source: MapSource,
        output_dir: Path,
        *,
        facts: Mapping[str, str] | None = None,
        settings: Any | None = None,
    ) -> None:
        self.config, self.task, self.source = config, task, source
        self.facts = task.facts() | dict(facts or {})
        self.settings = settings_of(config, settings)
        self.directory = Path(output_dir)
        check_trackers(config.trackers)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.accelerator = start(cpu=config.device == "cpu", timeout=timedelta(minutes=config.timeout_minutes))
        self.device = self.accelerator.device
        self.trainable = {n: p for n, p in task.modules.named_parameters() if p.requires_grad}
        if not self.trainable:
            raise ConfigError("task.modules: no parameter requires a gradient, so there is nothing to train")
        task.modules.to(self.device)
        whole = layout(self.accelerator) == "replicated"
        self.optimizer = make_optimizer(config, self.trainable, task.parameter_groups(), whole=whole)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        if config.ema_decay and layout(self.accelerator) == "zero-3":
            raise ConfigError("trainer.ema_decay: ZeRO 3 leaves no process with all weights to average; set it to null")
        self.average = ParameterAverage(self.trainable, config.ema_decay) if config.ema_decay else None
        self.sampler = sampler_of(source, config.seed, config.batch_size)
        self.step = self.saved = 0  # of the weights; of the newest checkpoint of this run
        self.best = BestExport(config, task, self.directory / BEST)
        self._unvalidated = False  # whether the weights of this step still have to be validated
        self._stop = StopRequest()

    def fit(self) -> Result:
        """Trains or resumes to the last step, validates, and exports. SIGTERM (Ctrl-C) saves and exits with 143 (130).

        A step that is saved and validated is saved first; a run that stopped between them validates when it resumes.
        Raises NonFiniteLossError before the optimizer would spread a NaN, and CheckpointError if saving fails, if the
        folder's checkpoint is of another run, if all checkpoints are damaged, or if another process trains there.
        """
        with ExitStack() as stack:
            if self.accelerator.is_main_process:
                make_folder(self.directory)
                stack.enter_context(locked(self.directory / LOCK, wait=False, kind=CheckpointError))
            stack.enter_context(policy(self.config, self.device))
            return self._fit()

    def _fit(self) -> Result:
        started = time.perf_counter()
        self._tidy_up()
        optimizer_state = self._resume() if self.config.resume else None
        config = self.config
        self.module = StepModule(self.task, self.device, half=config.precision == "bf16", compiled=config.compile)
        self.module.train()
        engine = self.engine = prepare(
            self.accelerator, self.module, self.optimizer, batch_size=config.batch_size, max_norm=config.max_grad_norm
        )
        if optimizer_state is not None:
            engine.load_optimizer_state(optimizer_state)
        log = self._open_log() if self.accelerator.is_main_process else None
        display = Display(self.config.steps, self.step, self.directory.name) if log else None
        if display and self.step == config.steps and not self._unvalidated:
            print(f"{self.directory}: already at step {self.step}, nothing left to train", flush=True)
        metrics: dict[str, float] = {}
        self._watch = Watch(self.device, late=reads_late(self.device) and engine.passes_over)
        self._meter = FlopMeter.of(config, self.device)
        window = Window()
        try:
            with self._stop.heard(), cpu_training(), Prefetcher(self._read) as self._batches:
                while True:
                    if self._unvalidated:
                        metrics = self._validate(log, display)
                        engine.model.train()
                    if self.step >= self.config.steps:
                        break
                    with self._meter.step():
                        self._train_step(engine, window)
                    if display:
                        display.advance(self.step)
                    last = self.step == self.config.steps
                    plans = (config.log_every, config.validate_every, config.save_every)
                    self._watch.check(window, now=last or any(_due(self.step, every) for every in plans))
                    if _due(self.step, self.config.log_every):
                        window = self._log(log, display, window)
                    self._unvalidated = last or _due(self.step, self.config.validate_every)
                    if stop := self._watch.asked(self._stop.status):
                        self._watch.check(window, now=True)
                    if last or stop or _due(self.step, self.config.save_every):
                        self._save()
                    if stop and not last:
                        self.accelerator.wait_for_everyone()  # a launcher kills the others once one has left
                        if display:
                            print(f"{self.directory}: saved at step {self.step}; the same command resumes", flush=True)
                        raise SystemExit(stop)
                with engine.full_parameters(), self._averaged():
                    if self.accelerator.is_main_process:
                        write_atomically(self.directory / EXPORT, self.task.export)
        finally:
            if display:
                display.close()
            if log:
                log.close()
        self.accelerator.wait_for_everyone()
        seconds, checkpoint = time.perf_counter() - started, newest_checkpoint(self.directory / CHECKPOINTS)
        return Result(
            step=self.step, seconds=seconds, metrics=metrics, export=self.directory / EXPORT, checkpoint=checkpoint
        )

    def _open_log(self) -> RunLog:
        trackers = open_trackers(self.config.trackers, self.config.tracker_project, self.directory, self.settings)
        return RunLog(self.directory, start=self.step, trackers=trackers)

    def _train_step(self, engine: Engine, window: Window) -> None:
        config = self.config
        window.begun += 1
        rank = self.accelerator.process_index
        factor = rate_factor(
            self.step,
            steps=config.steps,
            warmup=config.warmup_steps,
            schedule=config.schedule,
            min_ratio=config.min_lr_ratio,
        )
        for group, rate in zip(engine.groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        # One stream of random numbers per (seed, step, rank): a resumed run draws what an unbroken one would.
        torch.manual_seed((config.seed * 1_000_003 + self.step) * 4096 + rank)
        generator = torch.Generator(self.device).manual_seed(
            ((config.seed + 7919) * 1_000_003 + self.step) * 4096 + rank
        )
        exact = config.accumulate > 1 and isinstance(self.task, ContrastiveTask)
        total = (self._one_large_batch if exact else self._mean_of_chunks)(engine, generator, window)
        norm = engine.clip()
        asked = self._stop.status
        late = engine.step(self._watch.judge(self.step, total, norm, asked, window))
        if late is not None:
            norm = late
            self._watch.judge(self.step, total, norm, asked, window)
        self.step += 1
        window.steps += 1
        window.add({"loss": total} if norm is None else {"loss": total, "grad_norm": norm})
        if self.average:
            self.average.update(self.step)

    def _mean_of_chunks(self, engine: Engine, generator: torch.Generator, window: Window) -> Tensor:
        count = self.config.accumulate
        total = torch.zeros((), device=self.device)
        for micro in range(count):
            batch = moved(self._fetch(micro, window), self.device)
            with engine.accumulating(micro + 1 == count):
                loss, parts = engine.model(batch, self._context(micro, generator))
                engine.backward(loss / count)
            total = total + loss.detach().float() / count
            window.add({name: part / count for name, part in parts.items()})
        return total

    def _one_large_batch(self, engine: Engine, generator: torch.Generator, window: Window) -> Tensor:
        """Runs the step of a contrastive task: features of all chunks, one loss, and every chunk a second time."""
        count = self.config.accumulate
        contexts = [self._context(micro, generator) for micro in range(count)]
        batches: list[dict[str, Any]] = []
        parameters = list(self.trainable.values())

        def encode(context: StepContext) -> dict[str, Tensor]:
            batches.append(self._fetch(context.micro_step, window))  # the next chunk is read meanwhile
            return self.module(moved(batches[-1], self.device), context, only_features=True)

        def loss(features: dict[str, Tensor]) -> Tensor:
            value, parts = self.module.loss_of(features, contexts[0])
            window.add(parts)
            return value

        first = first_pass(encode, contexts, loss, parameters=parameters, generators=(generator,))
        # The gradient of the loss' own parameters is divided among the chunks: DistributedDataParallel and ZeRO wait
        # for every parameter in every backward pass.
        own = [(p, g / count) for p, g in zip(parameters, first.own, strict=True) if g is not None]
        for number, (batch, context) in enumerate(zip(batches, contexts, strict=True)):
            with engine.accumulating(number + 1 == count), first.replayed(number):
                pull = (first.cotangents[number], own)
                engine.backward(engine.model(moved(batch, self.device), context, pull=pull))
        return first.value.float()

    def _fetch(self, micro: int, window: Window) -> dict[str, Any]:
        began = time.perf_counter()
        chunk = self.step * self.config.accumulate + micro
        last = chunk + 1 == self.config.steps * self.config.accumulate
        batch = self._batches.take(chunk, following=None if last else chunk + 1)
        window.data_seconds += time.perf_counter() - began
        return batch

    def _read(self, chunk: int) -> dict[str, Any]:
        """Reads this process's part of a chunk; runs in a thread."""
        position = chunk * self.accelerator.num_processes + self.accelerator.process_index
        size = self.config.batch_size
        return pinned(fetch(self.source, self.sampler.slots(position * size, size), self.config.seed), self.device)

    def _context(self, micro: int, generator: torch.Generator) -> StepContext:
        return StepContext(
            step=self.step, steps=self.config.steps, micro_step=micro, device=self.device, generator=generator
        )

    def _log(self, log: RunLog | None, display: Display | None, window: Window) -> Window:
        seconds = time.perf_counter() - window.started
        # Means over the ranks; for the loss that is the loss of all ranks' rows together.
        sums = sum_over_ranks(torch.stack([value.to(self.device) for value in window.sums.values()])) / world_size()
        if log is None or display is None:
            return Window()
        values = dict(zip(window.sums, (sums / window.steps).tolist(), strict=True))
        samples = self.config.batch_size * self.config.accumulate * self.accelerator.num_processes * window.steps
        values["samples_per_second"] = samples / seconds
        values["data_percent"] = 100 * window.data_seconds / seconds
        values |= self._meter.percent(seconds / window.steps) | {"memory_gib": memory_gib(self.device)}
        values["learning_rate"] = self.engine.groups[0]["lr"]
        log.write(self.step, values, kind="train")
        display.note(self.step, values, (self.config.steps - self.step) * seconds / window.steps)
        return Window()

    def _validate(self, log: RunLog | None, display: Display | None) -> dict[str, float]:
        try:
            metrics = self._measure()
        except Exception:
            # Keep what was trained since the last checkpoint; under ZeRO, others would have to take part.
            if self.saved < self.step and layout(self.accelerator) == "replicated":
                self._save()
            raise
        self._unvalidated = False
        if log and self.saved == self.step:
            add_facts(self.directory / CHECKPOINTS, self.step, self._validated())
        if log and display and metrics:
            log.write(self.step, metrics, kind="validation")
            display.note(self.step, metrics, math.nan if display.progress else 0)
        return metrics

    def _measure(self) -> dict[str, float]:
        self.task.modules.eval()
        # Own random state, so that validating more or less often changes nothing in training.
        with torch.random.fork_rng(devices=[]), torch.no_grad(), self._averaged():
            torch.manual_seed(self.config.seed)
            main = self.accelerator.is_main_process
            with self.engine.forward_outside_of_steps():
                metrics = self.task.validate(self.step) if main or self.engine.forward_together else {}
            with self.engine.full_parameters():
                if main and metrics:
                    self.best.offer(metrics)
        return metrics if main else {}

    def _validated(self) -> dict[str, Any]:
        """Returns the facts that validation adds to a checkpoint."""
        return {"validated": not self._unvalidated} | self.best.facts()

    def _averaged(self) -> Any:
        return self.average.swapped_in() if self.average else nullcontext()

    def _state(self) -> dict[str, Tensor]:
        """Returns the tensors of a checkpoint on the main process, and nothing on others."""
        optimizer = self.engine.optimizer_state()
        with self.engine.full_parameters():
            if not self.accelerator.is_main_process:
                return {}
            tensors = {f"optimizer.{name}": tensor for name, tensor in optimizer.items()}
            if self.average:
                tensors |= {f"average.{name}": tensor for name, tensor in self.average.state().items()}
            tensors |= {f"model.{name}": tensor for name, tensor in self._model_state().items()}
            return unshared(tensors, copy=self.engine.forward_together)  # whole weights are split again after this

    def _model_state(self) -> dict[str, Tensor]:
        """Returns the trained parameters and the buffers by name."""
        kept = self.trainable.keys() | {name for name, _ in self.task.modules.named_buffers()}
        return {name: tensor for name, tensor in self.task.modules.state_dict().items() if name in kept}

    def _identity(self) -> dict[str, Any]:
        """Returns the facts that must not change between a run and its continuation."""
        config = self.config
        return self.facts | {
            "seed": config.seed,
            "batch_size": config.batch_size,
            "accumulate": config.accumulate,
            "processes": self.accelerator.num_processes,
            "layout": layout(self.accelerator),
            "samples": len(self.source),
        }

    def _save(self) -> None:
        tensors = self._state()  # by all processes: each may hold a part
        if self.accelerator.is_main_process:
            folder = self.directory / CHECKPOINTS
            facts = {"step": self.step, "run": self._identity(), "settings": self.settings} | self._validated()
            keep = self.config.keep_checkpoints
            save_checkpoint(folder, self.step, tensors, facts, keep=keep, previous=self.saved)
        self.saved = self.step

    def _tidy_up(self) -> None:
        """Removes partial files of killed runs. Raises CheckpointError where a new run would mix with checkpoints."""
        folder = self.directory / CHECKPOINTS
        if self.accelerator.is_main_process:
            remove_leftovers(self.directory)
            remove_leftovers(folder)
        self.accelerator.wait_for_everyone()
        if not self.config.resume:
            check_unused(folder)

    def _resume(self) -> dict[str, Tensor] | None:
        """Restores the newest checkpoint and returns its optimizer state; None without one."""
        folder = resumable_checkpoint(self.directory / CHECKPOINTS)
        check_same_start(self.directory, folder, self.device)
        if folder is None:
            return None
        tensors, facts = load_checkpoint(folder)
        check_same_run(folder, self.settings, noted_settings(facts))  # before what depends on them
        check_same_run(folder, self._identity(), noted_run(facts))
        average = _below(tensors, "average.")
        if bool(average) != bool(self.average):
            was, now = ("set", "null") if average else ("null", "set")
            raise CheckpointError(
                f"{folder}: trainer.ema_decay was {was}, now {now}: set it as it was, or use another output directory"
            )
        check_steps(folder, facts["step"], self.config.steps)
        model = _below(tensors, "model.")
        check_fit(folder, model, self._model_state())
        self.task.modules.load_state_dict(model, strict=False)  # frozen weights are not stored
        if self.average:
            self.average.load(average)
        self.best.take_over(facts)
        self.step = self.saved = facts["step"]
        self._unvalidated = not facts.get("validated", True)
        return _below(tensors, "optimizer.")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
