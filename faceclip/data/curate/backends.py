"""Backends measure shards in this process, in worker processes, or by Ray. All of them give the same tables.

A backend reads shards lazily and yields each result as soon as it is done, in any order. It holds at most `AHEAD`
shards per worker in memory.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Literal

from faceclip.data.curate.shards import Measured, Shard, measure_shard
from faceclip.data.worker_pool import WorkerPool
from faceclip.errors import ConfigError, DataError, MissingExtraError

Backend = Literal["inline", "processes", "ray"]
AHEAD = 2  # shards per worker that are read before they are wanted
RETRIES = 3  # of a shard whose Ray worker died


def run_shards(shards: Iterable[Shard], backend: Backend, workers: int) -> Iterator[Measured]:
    """Measures all shards and yields their results in any order.

    `workers` is the number of processes, or of Ray tasks that run at the same time; "inline" ignores it.

    Raises MissingExtraError if Ray is not installed, ConfigError if its cluster cannot be reached, and DataError if a
    worker dies. Ray repeats a lost shard `RETRIES` times before that.
    """
    if backend == "inline":
        return map(measure_shard, shards)
    return _by_processes(shards, workers) if backend == "processes" else _by_ray(shards, workers)


def _by_processes(shards: Iterable[Shard], workers: int) -> Iterator[Measured]:
    waiting = iter(shards)
    pool = WorkerPool(workers)  # they load their models with their first shard
    try:
        jobs: set[Future[Measured]] = {pool.submit(measure_shard, shard) for shard in islice(waiting, AHEAD * workers)}
        while jobs:
            done, jobs = wait(jobs, return_when=FIRST_COMPLETED)
            for job in done:
                jobs |= {pool.submit(measure_shard, shard) for shard in islice(waiting, 1)}
                yield job.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died (out of memory?): use fewer data.workers or a smaller data.shard_rows with another "
            "out=, and run again; finished shards are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _by_ray(shards: Iterable[Shard], workers: int) -> Iterator[Measured]:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "backend=ray needs Ray: pip install 'faceclip-makeup[ray]', or choose backend=processes"
        ) from error
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(measure_shard)
    try:
        waiting = iter(shards)
        jobs = [task.remote(shard) for shard in islice(waiting, AHEAD * workers)]
        while jobs:
            (done,), jobs = ray.wait(jobs, num_returns=1)
            jobs += [task.remote(shard) for shard in islice(waiting, 1)]
            yield ray.get(done)
            del done  # or its table stays in Ray's store
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from error
    except ray.exceptions.RayError as error:
        raise DataError(
            f"Ray lost a shard {RETRIES + 1} times ({str(error)[:300]}): give its workers more memory or a smaller "
            "data.shard_rows with another out=, and run again; finished shards are kept"
        ) from error
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, workers: int) -> None:
    """Joins the cluster at RAY_ADDRESS, or starts one on this machine with this number of workers.

    Raises ConfigError if the cluster cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False)
        else:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"RAY_ADDRESS={address}: no cluster can be reached there ({str(error)[:300]})") from error
