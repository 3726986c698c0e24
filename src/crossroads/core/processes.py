"""Independent calls over the cores of one machine, one BLAS thread each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def unordered(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], jobs: int | None = None
) -> Iterator[T]:
    """Yield what ``function`` returns for each tuple of arguments, as the calls finish.

    ``jobs`` is the number of processes, by default one per core; 1 runs the calls in this process.
    Raises what a call raises.
    """
    import joblib

    jobs = min(jobs or joblib.cpu_count(), max(len(calls), 1))
    if jobs == 1:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        # The same number of threads as in a worker, so that figures agree to the last digit.
        with threadpool_limits(1):
            for given in calls:
                yield function(*given)
        return
    with joblib.parallel_config("loky", inner_max_num_threads=1), warnings.catch_warnings():
        # A worker whose memory grew is replaced between two calls, which is no user's concern; and
        # a warning that is an error ends the thread that replaces it, so that nothing follows.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        # Batches of one: a batch would hold finished calls back from whoever keeps them.
        run = joblib.Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")
        yield from run(joblib.delayed(function)(*given) for given in calls)
