"""Tasks in worker processes that may die: a compiler that aborts takes down its worker, not the run."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any


class WorkerError(Exception):
    """The failure of a task: its exception as text, or the death of its worker."""


def run_in_workers(
    function: Callable[[Any], Any], tasks: Sequence[Any], workers: int
) -> Iterator[tuple[Any, Any | WorkerError]]:
    """Call `function` on each task in one of `workers` fresh processes; yields (task, result) as they end.

    Args:
        function: a module-level function, so that a fresh process can import it.
        tasks: picklable arguments.
        workers: how many processes at once.

    Yields:
        The task and what the function returned, or a `WorkerError` if it raised or its process died.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads half-way
    waiting = deque(tasks)
    busy: dict[Connection, tuple[Any, Any]] = {}

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(function, theirs), daemon=True)
        process.start()
        theirs.close()
        assign(ours, process)

    def assign(connection: Connection, process: Any) -> None:
        task = waiting.popleft()
        busy[connection] = (process, task)
        connection.send(task)

    for _ in range(min(workers, len(waiting))):
        start()
    while busy:
        for connection in wait(list(busy)):
            assert isinstance(connection, Connection)
            process, task = busy.pop(connection)
            try:
                result = connection.recv()
            except EOFError:
                process.join()
                result = WorkerError(f"the worker process died with exit code {process.exitcode}")
                if waiting:
                    start()
            else:
                if waiting:
                    assign(connection, process)
                else:
                    connection.close()
                    process.join()
            yield task, result


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            result = function(task)
        except Exception as error:
            result = WorkerError(f"{type(error).__name__}: {error}")
        connection.send(result)
