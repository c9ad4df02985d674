"""What a person sees: progress on stderr, the summary on stdout."""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from jobs.console import Stderr, tell
from jobs.discover import shown
from jobs.events import Event, Note, Observer, Planned, UnitDone, VideoDone
from jobs.executors.base import UnitFailure
from jobs.manifest import VIDEO_OK, VideoReport
from jobs.plan import Plan
from jobs.run import JobReport

if TYPE_CHECKING:
    from jobs.bench import Bench

_LINE_EVERY_S = 10.0


@contextmanager
def watching() -> Iterator[Observer]:
    """An observer that shows progress: a bar on a terminal, plain lines elsewhere."""
    console = _terminal()
    if console is None:
        yield _Lines()
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        yield _Bar(bar)


def _terminal() -> Console | None:
    """stderr as rich sees it; None if it is no terminal, or one that cannot show a bar."""
    # Not what FORCE_COLOR says: a bar in a log is a page of bars.
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    # What is printed are names, and `:dog:` in one is no animal.
    console = Console(file=cast(TextIO, Stderr()), emoji=False, markup=False, highlight=False, soft_wrap=True)
    return console if console.is_terminal else None


class _Rate:
    """Frames per second since the first result was due."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.frames = 0

    def add(self, frames: int) -> None:
        self.frames += frames

    @property
    def fps(self) -> float:
        return self.frames / max(1e-9, time.monotonic() - self._began)


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("planning", total=None, count="")
        self._rate = _Rate()
        self._done = self._total = self._failed = 0

    def __call__(self, event: Event) -> None:
        match event:
            case Planned(plan, done):
                self._rate, self._done, self._total = _Rate(), done, plan.n_selected
                self._show("starting")
            case UnitDone(result, n_frames):
                self._failed += isinstance(result, UnitFailure)
                self._rate.add(n_frames)
                self._done += n_frames
                self._show("inferring", f"  {self._rate.fps:.1f}/s")
        if text := line_for(event):
            self._bar.console.print(shown(text))

    def _show(self, what: str, pace: str = "") -> None:
        failed = f"  {count(self._failed, 'chunk')} failed" if self._failed else ""
        told = f"{self._done:,}/{count(self._total, 'frame')}{pace}{failed}"
        self._bar.update(self._task, description=what, total=self._total, completed=self._done, count=told)


class _Lines:
    def __init__(self) -> None:
        self._rate = _Rate()
        self._done = self._total = 0
        self._told = time.monotonic()

    def __call__(self, event: Event) -> None:
        match event:
            case Planned(plan, done):
                self._rate, self._done, self._total = _Rate(), done, plan.n_selected
            case UnitDone(_, n_frames):
                self._rate.add(n_frames)
                self._done += n_frames
                if time.monotonic() - self._told >= _LINE_EVERY_S:
                    self._told = time.monotonic()
                    self._tell(f"{self._done:,} of {self._total:,} frames, {self._rate.fps:.1f} frames/s")
        if text := line_for(event):
            self._tell(text)

    @staticmethod
    def _tell(text: str) -> None:
        tell(shown(text))


def line_for(event: Event) -> str | None:
    """The line that an event deserves by itself."""
    match event:
        case Note(text):
            return text
        case Planned(plan, done):
            earlier = f", {done:,} of them done by an earlier run" if done else ""
            videos, chunks = count(len(plan.videos), "video"), count(plan.n_chunks, "chunk")
            return f"{videos}, {count(plan.n_selected, 'frame')} in {chunks}{earlier}"
        case UnitDone(UnitFailure(key, reason), n_frames):
            return f"chunk {key[:8]} ({count(n_frames, 'frame')}) given up: {reason}"
        case VideoDone(report) if report.status != VIDEO_OK:
            return _bad_line(report)
    return None


def plan_text(plan: Plan, seconds_a_frame: float | None) -> str:
    """The plan for `--dry-run`. seconds_a_frame: measured on this machine, or None."""
    lines = [f"model {shown(plan.model)}, height {plan.options.height}"]
    for video in plan.videos:
        index = video.index
        if index is None:
            lines.append(f"  {video.source.uri}: cannot be used: {shown(video.problem or '')}")
            continue
        size = f"{index.size[0]}x{index.size[1]}" if index.size else "pictures"
        selected = "" if video.n_selected == len(index) else f" of {len(index):,}"
        lines.append(
            f"  {video.source.uri}: {size}, {video.n_selected:,}{selected} frames, {count(len(video.chunks), 'chunk')}"
        )
        lines += [f"    damaged: {doubt}" for doubt in index.doubts]
    lines.append(f"{count(len(plan.videos), 'video')}, {plan.n_selected:,} frames, {count(plan.n_chunks, 'chunk')}")
    if seconds_a_frame is not None:
        whole = duration(plan.n_selected * seconds_a_frame)
        lines.append(f"estimated {whole} on this machine ({1 / seconds_a_frame:.0f} frames/s)")
    return "\n".join(lines)


def bench_text(bench: "Bench") -> str:
    """The table of `posejob bench`."""
    fps = f", {bench.fps:.4g} frames/s" if bench.fps else ""
    lines = [
        f"{shown(bench.video)}: {bench.size[0]}x{bench.size[1]}{fps}",
        f"{shown(bench.model)} at {bench.network_size[0]}x{bench.network_size[1]} on {bench.device}, "
        f"{count(bench.cpus, 'CPU')}",
        "",
        f"{'':14}{'frames/s':>10}{'of the limit':>14}{'CPU ms/frame':>14}",
    ]
    lines += [
        f"{kind:14}{bench.fps_of(kind):10.1f}{bench.of_the_limit(kind):14.3f}{bench.cpu_ms_of(kind):14.2f}"
        for kind in bench.paces
    ]
    stages = ", ".join(f"{stage} {ms:.2f}" for stage, ms in bench.stages.items())
    lines += ["", f"CPU ms per frame, one stage at a time: {stages}"]
    if bench.fps:
        lines.append(f"an hour of this video takes {duration(bench.hour_s)} on this machine")
    return "\n".join(lines)


def summary_text(report: JobReport) -> str:
    """The last lines of a run."""
    totals = report.totals()
    bad = [f"{totals[status]} {status}" for status in ("degraded", "failed") if totals[status]]
    lines = [
        f"{count(totals['videos'], 'video')}{' (' + ', '.join(bad) + ')' if bad else ''}, "
        f"{count(totals['frames'], 'frame')}, {totals['people']:,} people found"
    ]
    if report.again:
        lines.append("all of it done by an earlier run, nothing to do")
        lines += [_bad_line(video) for video in report.videos if video.status != VIDEO_OK]
    else:
        rate = f", {report.n_inferred / report.seconds:.1f} frames/s with start-up" if report.n_inferred else ""
        lines.append(f"{count(report.n_inferred, 'frame')} inferred in {duration(report.seconds)}{rate}")
    lines.append(f"results in {shown(report.out)}")
    # JSON's quotes leave the single ones to the shell, in which nothing is special.
    out = json.dumps(report.out, ensure_ascii=not report.out.isprintable())
    read = f"posecore.read_poses({out}" + (', to="pandas")' if find_spec("pandas") else ").slice(0, 3).to_pylist()")
    lines.append("python -c " + shlex.quote(f"import posecore; print({read})"))
    return "\n".join(lines)


def _bad_line(video: VideoReport) -> str:
    return shown(f"{video.status}: {video.uri}: {'; '.join(video.problems)}")


def count(n: int, what: str) -> str:
    """`1 video`, `2 videos`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
