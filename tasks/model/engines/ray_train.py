"""Training as workers of a Ray cluster that train as one; when one is lost, all go on from the last checkpoint.

Ray starts the workers, connects them and starts them anew. Batches, gradients and checkpoints are those of any other
launcher, so the folder of the campaign must be at the same path on every node.
"""

import importlib
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from detectron_ext.distributed import barrier, is_main_process
from tasks.model.engines.ray_cluster import connected, describe, nodes
from tasks.model.fingerprint import software_fingerprint
from tasks.runtime.errors import UserError
from tasks.runtime.resource_errors import as_user_error

log = logging.getLogger(__name__)
_MAX_FAILURES = 3
"""Times that workers are started anew; Ray counts nodes that are taken away with a warning apart."""
_POLL_S = 1.0
_CPUS_PER_WORKER = 0.5  # logical: with all of a node's, nothing else of the cluster finds room there


class Journal:
    """What workers tell the driver; Ray makes it an actor."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._error: UserError | None = None

    def write(self, line: str) -> None:
        """Add a line of the first worker's log."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """Return the lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def fail(self, error: UserError) -> None:
        """Keep the first error that no new start would mend."""
        self._error = self._error or error

    def error(self) -> UserError | None:
        """Return that error."""
        return self._error


def train_on_ray(
    address: str, num_workers: int, scratch: Path, module: str, function: str, args: Sequence[Any]
) -> None:
    """Call a function in ``num_workers`` connected workers of a cluster, each with a GPU where the cluster has some.

    Args:
        address: as ``infer.engine_address``.
        num_workers: at least 1.
        scratch: folder for Ray's own record of the run; removed at its end.
        module: where the function is found on each node.
        function: name of a function that trains as one of several processes; the first of them writes.
        args: can be pickled.

    Raises:
        UserError: ray or the cluster is missing, has no room, a node has other code, workers were lost too often, or
            what the first worker that failed raised.
    """
    with connected(address) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        found = nodes(ray)
        on_gpus = any(node.num_gpus for node in found)
        _require_room(found, num_workers, on_gpus)
        journal = ray.remote(Journal).options(num_cpus=0).remote()
        config = {
            "journal": journal,
            "fingerprint": software_fingerprint(),
            "function": (module, function),
            "args": args,
        }
        trainer = TorchTrainer(
            _run_worker,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                use_gpu=on_gpus,
                resources_per_worker={"CPU": _CPUS_PER_WORKER},
            ),
            run_config=RunConfig(
                name="run", storage_path=str(scratch / "ray"), failure_config=FailureConfig(max_failures=_MAX_FAILURES)
            ),
        )
        log.info("train on Ray: %s, %d workers", describe(found), num_workers)
        try:
            with ThreadPoolExecutor(1) as thread:
                training = thread.submit(trainer.fit)
                try:
                    _follow(ray, journal, training)
                finally:
                    if not training.done():
                        ray.shutdown()  # ends the workers, and so the call in the thread
            training.result()
        except TrainingFailedError as error:
            raise _lost_workers(error) from None
        finally:
            shutil.rmtree(scratch / "ray", ignore_errors=True)


def _follow(ray: Any, journal: Any, training: Future[Any]) -> None:
    """Log what the first worker logs until training ends.

    Raises:
        UserError: a worker met it; Ray would start the workers anew, to meet it again.
    """
    is_last = False
    while not is_last:
        is_last = bool(wait([training], _POLL_S).done)
        for line in ray.get(journal.take.remote()):
            log.info("%s", line)
        error = ray.get(journal.error.remote())
        if error is not None:
            raise error


def _require_room(found: Sequence[Any], num_workers: int, on_gpus: bool) -> None:
    """Refuse what Ray would wait for without a word."""
    has_room = sum(node.num_gpus if on_gpus else node.num_cpus / _CPUS_PER_WORKER for node in found)
    if has_room < num_workers:
        problem = f"train.engine_workers is {num_workers}, expected at most {int(has_room)} ({describe(found)})"
        raise UserError("params.yaml", problem, "Lower it, or let nodes join.")


def _lost_workers(error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    problem = f"workers were lost {_MAX_FAILURES + 1} times, the last one: {lines[-1] if lines else error}"
    return UserError("train.engine", problem, "The same command goes on from the last checkpoint.")


class _JournalHandler(logging.Handler):
    """Sends a worker's log to the driver."""

    def __init__(self, journal: Any) -> None:
        super().__init__(logging.INFO)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self._journal.write.remote(record.getMessage())


def _run_worker(config: dict[str, Any]) -> None:
    """Run on a worker, which Ray has connected to the others."""
    import ray

    journal = config["journal"]
    logger = logging.getLogger("tasks")
    handler = _JournalHandler(journal)
    if is_main_process():  # one voice is enough
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        if software_fingerprint() != config["fingerprint"]:
            problem = "the code or the libraries of a node are others, expected those of this machine"
            raise UserError("train.engine", problem, "Use the same image on all nodes.")
        module, function = config["function"]
        getattr(importlib.import_module(module), function)(*config["args"])
        barrier()  # none leaves before the first has written
    except Exception as error:
        user_error = as_user_error("train", error)
        if user_error is not None:
            ray.get(journal.fail.remote(user_error))
        raise
    finally:
        logger.removeHandler(handler)
