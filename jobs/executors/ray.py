"""The only door to Ray: a few actors, at most two units each, and a small dispatcher.

Frames never travel: an actor is told which frames of which file and commits the result itself; what comes back is a
report of a few numbers.

An actor that dies is replaced. Which of its units killed it is not known: the report of one may be lost because the
next one began. Both are charged with an attempt, and from then on each runs alone, where guilt is plain.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from jobs.errors import WorkerError, WorkersLost
from jobs.executors.base import MAX_ATTEMPTS, Layout, UnitFailure, Verdict, Worker, deadline_s, one_line, verdict
from jobs.executors.surroundings import folder_of_our_own, inherited, stop_on_sigterm, working_in
from jobs.worker import PoseWorker, UnitReport, WorkerSpec, WorkUnit

_IN_FLIGHT = 2
_SETUP_DEADLINE_S = 300.0
_UNAVAILABLE_PAUSE_S = 1.0
_LOOK_AFTER_RAY_S = 2.0
# Nothing but small messages goes through the object store; this is the least Ray accepts, with a margin.
_OBJECT_STORE_BYTES = 100 * 1024**2


@contextlib.contextmanager
def private_ray(cpus: int) -> Iterator[None]:
    """A Ray of our own on this machine for as long as the block lasts: quiet, no dashboard.

    Workers import posejob from where this process did, and never from the user's folder, which may have a `models/` or
    a `jobs.py` of its own: Ray would put the working directory and the script's folder on their path.
    """
    root = str(Path(__file__).resolve().parents[2])
    with folder_of_our_own() as elsewhere, working_in(elsewhere), inherited(root):
        _tame_ray()
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=elsewhere,
            )
        except Exception as error:  # Ray raises bare ones when a process of its own ends too early
            raise WorkerError(f"Ray cannot be started on this machine: {one_line(error)}") from error
        stop_on_sigterm()
        try:
            yield
        finally:
            ray.shutdown()


def _tame_ray() -> None:
    """Two things that Ray has no switch for: it notes the command line, and fails if that names a file whose name is no
    UTF-8; and it prints to stdout, which is ours, when a worker dies."""
    ray._private.utils.get_entrypoint_name = lambda: "posejob"
    ray._private.worker.print_to_stdstream = lambda *args, **kwargs: None


@dataclass
class _Order:
    """A unit on its way. attempts: how often it has failed so far. alone: it may kill its worker, keep others away."""

    unit: WorkUnit
    attempts: int = 0
    alone: bool = False


@dataclass
class _Actor:
    """A worker process. orders: what it was given, oldest first, by reference. deadline: when the oldest is overdue."""

    handle: Any
    setup: Any
    orders: dict[Any, _Order] = field(default_factory=dict)
    deadline: float = 0.0

    @property
    def refs(self) -> list[Any]:
        return [self.setup] if self.setup is not None else list(self.orders)

    @property
    def room(self) -> int:
        if self.setup is not None or any(order.alone for order in self.orders.values()):
            return 0
        return _IN_FLIGHT - len(self.orders)


class RayExecutor:
    """Runs units on actors of the Ray this process is connected to."""

    def __init__(self, spec: WorkerSpec, layout: Layout, worker: Callable[[WorkerSpec], Worker] = PoseWorker) -> None:
        self._spec = spec
        self._layout = layout
        self._actor_class: Any = ray.remote(num_cpus=layout.threads, max_restarts=0, max_task_retries=0)(worker)
        self._actors: list[_Actor] = []
        self._again: deque[_Order] = deque()
        self._alone: deque[_Order] = deque()
        self._exhausted = False
        self._failed_starts = 0

    def run(self, units: Iterable[WorkUnit]) -> Generator[UnitReport | UnitFailure, None, None]:
        source = iter(units)
        self._actors = [self._start() for _ in range(self._layout.workers)]
        try:
            while self._fill(source):
                yield from self._wait()
        finally:
            for actor in self._actors:
                ray.kill(actor.handle)

    def _start(self) -> _Actor:
        handle = self._actor_class.remote(self._spec)
        return _Actor(handle, handle.setup.remote(), deadline=time.monotonic() + _SETUP_DEADLINE_S)

    def _fill(self, source: Iterator[WorkUnit]) -> bool:
        """Give every actor with room something to do. False when nothing is left and nothing is under way."""
        # One each before anyone gets a second, so that the last units spread over all actors.
        for load in range(_IN_FLIGHT):
            for actor in self._actors:
                if actor.room and len(actor.orders) <= load and (order := self._next(source, not actor.orders)):
                    self._give(actor, order)
        return bool(self._again or self._alone) or not self._exhausted or any(actor.orders for actor in self._actors)

    def _next(self, source: Iterator[WorkUnit], idle: bool) -> _Order | None:
        if self._alone and idle:
            return self._alone.popleft()
        if self._again:
            return self._again.popleft()
        unit = next(source, None)
        self._exhausted = unit is None
        return None if unit is None else _Order(unit)

    def _give(self, actor: _Actor, order: _Order) -> None:
        if not actor.orders:
            actor.deadline = time.monotonic() + deadline_s(order.unit.n_decoded)
        actor.orders[actor.handle.run.remote(order.unit)] = order

    def _wait(self) -> Iterator[UnitReport | UnitFailure]:
        """Wait until something comes back or is overdue, and deal with it."""
        busy = [actor for actor in self._actors if actor.refs]
        refs = [ref for actor in busy for ref in actor.refs]
        patience = min(actor.deadline for actor in busy) - time.monotonic()
        ray.wait(refs, timeout=min(max(0.0, patience), _LOOK_AFTER_RAY_S))
        _check_ray()
        # All that have answered, so that none is taken for hung after this process itself was held up.
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for actor in busy:
            # Oldest first: a report that is there counts, also when its worker died at the next unit.
            mine = [ref for ref in actor.refs if ref in ready]
            if mine:
                yield from self._receive(actor, mine[0])
            elif time.monotonic() > actor.deadline and not ray.wait(actor.refs, timeout=0)[0]:
                # Asked again, because whoever takes the answers may have been long at those before.
                # What it hung at is the oldest; the one behind it has not begun.
                orders = list(actor.orders.values())
                self._again.extend(orders[1:])
                yield from self._replace(actor, "the worker hung and was stopped", orders[:1])

    def _receive(self, actor: _Actor, ref: Any) -> Iterator[UnitReport | UnitFailure]:
        try:
            answer = ray.get(ref)
        except ActorUnavailableError as error:
            # A connection that comes back, or an actor about to be declared dead; neither is the unit's fault.
            time.sleep(_UNAVAILABLE_PAUSE_S)
            if ref is actor.setup:
                # What a reference has answered once it answers for ever.
                yield from self._replace(actor, one_line(error), [])
            else:
                self._again.append(self._done(actor, ref))
        except RayActorError:
            yield from self._replace(actor, "the worker died (it crashed or was killed)", list(actor.orders.values()))
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if ref is actor.setup:
                raise cause from None
            yield from self._failed(self._done(actor, ref), cause)
        except RayError as error:
            yield from self._replace(actor, one_line(error), list(actor.orders.values()))
        else:
            if ref is actor.setup:
                actor.setup, self._failed_starts = None, 0
            else:
                self._done(actor, ref)
                yield answer

    def _done(self, actor: _Actor, ref: Any) -> _Order:
        order = actor.orders.pop(ref)
        if actor.orders:
            following = next(iter(actor.orders.values()))
            actor.deadline = time.monotonic() + deadline_s(following.unit.n_decoded)
        return order

    def _failed(self, order: _Order, error: Exception) -> Iterator[UnitFailure]:
        order.attempts += 1
        decision = verdict(error, order.attempts)
        if decision is Verdict.STOP:
            raise error
        if decision is Verdict.GIVE_UP:
            yield UnitFailure(order.unit.key, one_line(error))
        else:
            (self._alone if order.alone else self._again).append(order)

    def _replace(self, actor: _Actor, reason: str, suspects: list[_Order]) -> Iterator[UnitFailure]:
        """Start a new actor for one that died or hung. The suspects pay for it, and run alone from now on."""
        ray.kill(actor.handle)
        if actor.setup is not None:
            self._failed_starts += 1
            if self._failed_starts >= MAX_ATTEMPTS and all(other.setup is not None for other in self._actors):
                raise WorkerError(f"workers die while starting: {reason}")
        self._actors[self._actors.index(actor)] = self._start()
        for order in suspects:
            order.alone = True
            yield from self._failed(order, WorkerCrash(reason))


def _check_ray() -> None:
    """Raise WorkersLost if the Ray that this process has started is no more.

    Ray has no public way to ask. Without its raylet, answers would never come; without its GCS, Ray ends this process
    after a minute.
    """
    node = ray._private.worker._global_node
    ended: set[str] = {str(name) for name, _ in node.dead_processes()} if node else set()
    if lost := ended & {"raylet", "gcs_server"}:
        raise WorkersLost(f"Ray ended on this machine ({', '.join(sorted(lost))}: killed, or out of memory)")


class WorkerCrash(Exception):
    """A worker process ended or hung while it was at a unit."""
