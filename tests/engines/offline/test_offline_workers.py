"""Worker processes: results, exceptions and deaths."""

import os

from compile_matrix.workers import WorkerError, run_in_workers


def work(task: int) -> int:
    if task == 3:
        raise ValueError("three")
    if task == 5:
        os.abort()
    return task * task


def test_a_dead_worker_costs_its_own_task_alone():
    results = dict(run_in_workers(work, range(8), workers=2))
    assert sorted(results) == list(range(8))
    assert {task: result for task, result in results.items() if task not in (3, 5)} == {
        task: task * task for task in (0, 1, 2, 4, 6, 7)
    }
    assert isinstance(results[3], WorkerError) and "ValueError: three" in str(results[3])
    assert isinstance(results[5], WorkerError) and "died with exit code -6" in str(results[5])


def test_no_task_starts_no_worker():
    assert list(run_in_workers(work, [], workers=2)) == []
