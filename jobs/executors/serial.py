"""One worker in this process: for tests, for benchmarks, and to see what Ray costs."""

from collections.abc import Callable, Generator, Iterable

from jobs.executors.base import UnitFailure, Verdict, Worker, one_line, verdict
from jobs.worker import PoseWorker, UnitReport, WorkerSpec, WorkUnit


class SerialExecutor:
    """Runs units one after the other, in order."""

    def __init__(self, spec: WorkerSpec, worker: Callable[[WorkerSpec], Worker] = PoseWorker) -> None:
        self._worker = worker(spec)

    def run(self, units: Iterable[WorkUnit]) -> Generator[UnitReport | UnitFailure, None, None]:
        self._worker.setup()
        for unit in units:
            yield self._attempt(unit)

    def _attempt(self, unit: WorkUnit) -> UnitReport | UnitFailure:
        attempts = 0
        while True:
            try:
                return self._worker.run(unit)
            except Exception as error:
                attempts += 1
                decision = verdict(error, attempts)
                if decision is Verdict.STOP:
                    raise
                if decision is Verdict.GIVE_UP:
                    return UnitFailure(unit.key, one_line(error))
