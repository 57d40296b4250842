"""Where a stage's shards are made: in the flow's process, in processes beside it, or on Ray."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from data_contracts.runtime import RaySettings, RuntimeConfig
from data_contracts.settings_files import ConfigError
from flows.worker_processes import end_with_parent


@contextmanager
def shard_runner(runtime: RuntimeConfig) -> Iterator[TaskRunner[Any]]:
    """The started task runner that the runtime settings ask for.

    Raises:
        ConfigError: if Ray is asked for and not installed, or does not answer.
    """
    if runtime.ray is not None:
        with _ray_runner(runtime.ray) as runner:
            yield runner
    else:
        with _local_runner(runtime.num_workers) as runner:
            yield runner


def _local_runner(num_workers: int) -> TaskRunner[Any]:
    """One worker shares the flow's process, and the model it may have loaded."""
    if num_workers == 1:
        return ThreadPoolTaskRunner(max_workers=1)
    return _WorkerProcesses(max_workers=num_workers, initializer=end_with_parent)


class _WorkerProcesses(ProcessPoolTaskRunner):
    """Prefect's, which can be left whatever its workers died of.

    All workers write their logs and events to one pipe, under one lock. One that is killed as it
    writes never gives the lock back, and Python would wait at its end, for good, to write
    Prefect's own last word to that pipe.
    """

    def __exit__(self, *failure: Any) -> None:
        queue = self._subprocess_message_queue
        try:
            super().__exit__(*failure)
        finally:
            if queue is not None:
                queue.cancel_join_thread()


@contextmanager
def _ray_runner(settings: RaySettings) -> Iterator[TaskRunner[Any]]:
    try:
        from prefect_ray.context import remote_options
        from prefect_ray.task_runners import RayTaskRunner
    except ImportError as error:
        raise ConfigError("runtime setting 'ray' needs `pip install 'sdrpn[ray]'`") from error
    with ExitStack() as stack:
        try:
            runner: TaskRunner[Any] = stack.enter_context(RayTaskRunner(address=settings.address))
        except (ConnectionError, TimeoutError) as error:
            raise ConfigError(
                f"ray.address {settings.address}: no Ray cluster answers ({error}); start it with "
                "`ray start --head`, or mend the address"
            ) from error
        options = {
            "num_cpus": settings.cpus_per_shard,
            "num_gpus": settings.gpus_per_shard,
            # By default a process ends with each GPU task: the model would be loaded per shard.
            "max_calls": 0,
        }
        stack.enter_context(remote_options(**options))
        yield runner
