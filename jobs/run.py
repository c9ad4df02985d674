"""A job from the first look at the inputs to `_SUCCESS`."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from jobs.discover import Source, discover
from jobs.errors import EXIT_OK, EXIT_SOME_FAILED, ConfigError, OutputError, SinkError, VideoOpenError, WorkersLost
from jobs.events import Note, Observer, Planned, UnitDone, VideoDone
from jobs.executors.base import Executor, Layout, UnitFailure, layout, usable_cpus
from jobs.finalise import failed_video, finalise_video, kept_video
from jobs.frames import FrameIndex, file_state, probe
from jobs.ledger import MANIFEST, PLAN, SUCCESS, Ledger, chunk_name, seal, sha256, table_names
from jobs.manifest import VIDEO_OK, VIDEO_STATUSES, PublishedFile, VideoReport, manifest_bytes, tell_the_same
from jobs.plan import Chunk, Plan, VideoPlan, check_same_job, frame_range, make_plan, planned_chunk_frames
from jobs.repair import Found, look
from jobs.sink import chunk_bytes, chunk_is_whole
from jobs.spec import Options, RunSpec, Selection
from jobs.worker import WorkerSpec, WorkUnit, tables_without_reading
from models.registry import Network, find_network
from models.runtime import check_device
from posecore.errors import reason

StartExecutor = Callable[[WorkerSpec, Layout], contextlib.AbstractContextManager[Executor]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job that could start: the plan, the network, the inputs that are none."""

    plan: Plan
    network: Network
    device: str
    problems: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class JobReport:
    """How a job ended.

    problems:   (input as typed, what is wrong) of inputs that are no videos.
    n_inferred: frames inferred by this run; the rest was done before.
    seconds:    wall time of this run.
    again:      the job was done already, nothing was computed.
    """

    out: str
    videos: tuple[VideoReport, ...]
    problems: tuple[tuple[str, str], ...]
    n_inferred: int
    seconds: float
    again: bool = False

    @property
    def exit_code(self) -> int:
        ok = not self.problems and all(video.status == VIDEO_OK for video in self.videos)
        return EXIT_OK if ok else EXIT_SOME_FAILED

    def totals(self) -> dict[str, int]:
        return {
            "videos": len(self.videos),
            **{status: sum(v.status == status for v in self.videos) for status in VIDEO_STATUSES},
            "frames": sum(video.n_frames for video in self.videos),
            "people": sum(video.n_people for video in self.videos),
        }


def prepare(spec: RunSpec, observe: Observer) -> Prepared:
    """Find the network, the device, the videos; make the plan. Touches the output folder only to read it.

    Raises ConfigError, ModelError, OutputError: all before any work.
    """
    ledger = Ledger(spec.out.absolute())
    ledger.refuse_links()
    network = find_network(spec.model, report=lambda line: observe(Note(line)))
    device = check_device(spec.device)
    height = spec.height or network.manifest.height
    if height % network.manifest.stride:
        stride = network.manifest.stride
        raise ConfigError(
            f"--height {height}: must be a multiple of {stride}, try {height // stride * stride or stride}"
        )
    found = discover(spec.inputs, exclude=spec.out)
    if not found.sources:
        lines = "; ".join(f"{text}: {problem}" for text, problem in found.problems)
        raise ConfigError(lines or "no inputs")
    options = Options(height, spec.selection, spec.max_people, spec.min_score)
    indices = list(_probe_all(found.sources))
    plan = make_plan(indices, network, options, spec.chunk_frames)
    if not spec.overwrite and plan.digest not in ledger.digests():
        earlier = planned_chunk_frames(ledger.read_bytes(PLAN) or b"")
        plan = make_plan(indices, network, options, earlier or spec.chunk_frames)
    if not plan.n_selected and plan.n_frames:
        raise ConfigError("no frame is selected; are --from and --to within the videos?")
    return Prepared(plan, network, device, found.problems)


def run_job(spec: RunSpec, start: StartExecutor, observe: Observer) -> JobReport:
    """Do what a run asks for, or what is missing of it.

    start: gives the executor for a worker and a layout, as a context.
    """
    began = time.monotonic()
    job = prepare(spec, observe)
    for text, problem in job.problems:
        observe(Note(f"not used: {text}: {problem}"))
    ledger = Ledger(spec.out.absolute())
    job = replace(job, plan=_open_folder(ledger, job.plan, spec.overwrite, observe))
    run = _Run(ledger, job, observe)

    def already(done: tuple[VideoReport, ...]) -> JobReport:
        return JobReport(str(spec.out), done, job.problems, run.n_inferred, time.monotonic() - began, again=True)

    try:
        found = _take_up(ledger, job.plan, observe)
        if found.done is not None:
            _clean(ledger, observe)
            observe(Planned(job.plan, job.plan.n_selected))
            return already(found.done)
        run.all(found.whole, spec.workers, start)
    except (OutputError, SinkError):
        # Another run of the same command may have finished meanwhile, and cleaned up.
        if run.lost_the_folder() or (done := look(ledger, job.plan).done) is None:
            raise
        return already(done)
    videos = tuple(run.reports[video.video_id] for video in job.plan.videos)
    return JobReport(str(spec.out), videos, job.problems, run.n_inferred, time.monotonic() - began)


def _take_up(ledger: Ledger, plan: Plan, observe: Observer) -> Found:
    """See what is published. A job that was done and is damaged is from here on one that is not done."""
    while (found := look(ledger, plan)).done is None:
        ledger.prepare()
        # Looking takes a while. Another run may have ended the job, and cleaned up what this one would start from.
        if ledger.unseal(found.manifest, found.proven) if found.sealed else not ledger.sealed():
            for problem in found.problems:
                observe(Note(f"repairing {problem}"))
            break
    return found


def _clean(ledger: Ledger, observe: Observer) -> None:
    try:
        # Unless another run has begun the job afresh, or a repair: these folders are that run's now.
        if ledger.sealed():
            ledger.clean()
    except OSError as error:
        observe(Note(f"_chunks and _tmp are no longer needed and cannot be removed ({reason(error)})"))


def _probe_all(sources: Iterable[Source]) -> Iterator[tuple[Source, FrameIndex | str]]:
    """Indices of all sources in order, several files read at once: PyAV gives the GIL away while it reads."""

    def attempt(source: Source) -> tuple[Source, FrameIndex | str]:
        try:
            return source, probe(source)
        except VideoOpenError as error:
            return source, error.problem

    with ThreadPoolExecutor(max_workers=usable_cpus()) as pool:
        yield from pool.map(attempt, sources)


def _open_folder(ledger: Ledger, plan: Plan, overwrite: bool, observe: Observer) -> Plan:
    """Make the output folder this job's own, or see that it already is. Returns the plan as the folder has it."""
    # A manifest that lists this very plan makes the folder this job's, whatever has become of plan.json.
    known = ledger.digests()
    proven = plan.digest in known
    if not proven and ledger.foreign():
        raise OutputError(str(ledger.out), "is not empty and holds no posejob job; choose another folder")
    if overwrite:
        ledger.clear()
    try:
        if proven and not overwrite and (digest := ledger.digest(PLAN)) not in known:
            observe(Note(f"repairing {PLAN}: {'changed since the job was done' if digest else 'missing'}"))
            ledger.prepare()
            ledger.mend(PLAN, plan.text)
        elif ledger.read_bytes(PLAN) is None:
            ledger.prepare()
            ledger.publish_bytes(PLAN, plan.text)
    except (OutputError, SinkError):
        # Another run of the same command may have finished meanwhile, and cleaned up.
        if ledger.read_bytes(PLAN) is None:
            raise
    text = ledger.read_bytes(PLAN) or b""
    # The same network may go by another path today. What is published already holds the first name.
    return replace(plan, model=check_same_job(text, plan, str(ledger.out)))


def work_unit(video: VideoPlan, chunk: Chunk, selection: Selection) -> WorkUnit:
    """A chunk of the plan as it travels to a worker."""
    index = video.index
    assert index is not None
    return WorkUnit(
        key=chunk.key,
        video_id=video.video_id,
        frames=frame_range(video, chunk, selection),
        size=index.size,
        start_pts=None if index.size is None else int(index.pts[0]),
    )


class _Run:
    """The part of a job that changes: what is under way, what is published."""

    def __init__(self, ledger: Ledger, job: Prepared, observe: Observer) -> None:
        self.ledger, self.job, self.observe = ledger, job, observe
        self.reports: dict[str, VideoReport] = {}
        self.devices: set[str] = set()
        self.n_inferred = 0
        self._began = datetime.now(UTC)
        self._plan_state = file_state(ledger.path(PLAN))
        self._plan_bytes = ledger.read_bytes(PLAN)

    def all(self, whole: Container[str], workers: int | None, start: StartExecutor) -> None:
        """From what earlier runs have left to `_SUCCESS`. whole: published tables that need no computing."""
        plan = self.job.plan
        self._keep(whole)
        missing = self._missing()
        to_do = sum(self._n_selected(video, chunk) for video, chunk in missing)
        self.observe(Planned(plan, plan.n_selected - to_do))
        division = layout(usable_cpus(), workers)
        worker = WorkerSpec(self.job.network, self.job.device, division.threads, plan.options, self.ledger)
        while True:
            waiting = Counter(video.video_id for video, _ in missing)
            for video in plan.videos:
                if video.video_id not in waiting and video.video_id not in self.reports:
                    self._finish(video)
            if not missing:
                break
            try:
                with start(worker, division) as executor:
                    self._work(executor, missing, waiting)
                missing = []
            except WorkersLost as error:
                still = self._missing()
                if len(still) >= len(missing):
                    raise
                self.observe(Note(f"{error}; going on with new workers"))
                missing = still
        self._publish_manifest()
        _clean(self.ledger, self.observe)

    def lost_the_folder(self) -> bool:
        """Whether another job has taken the output folder over since this one began (`--overwrite`)."""
        # Asked for each video, and the plan of many is long: it is read again only if it is another file.
        state = file_state(self.ledger.path(PLAN))
        if state != self._plan_state:
            if self.ledger.read_bytes(PLAN) != self._plan_bytes:
                return True
            self._plan_state = state
        return False

    def _keep(self, whole: Container[str]) -> None:
        """Take over the videos both of whose tables are whole: their chunks may be gone, and are not missed."""
        for video in self.job.plan.videos:
            names = table_names(video.video_id)
            if video.index is None or not all(name in whole for name in names):
                continue
            report = kept_video(self.ledger, self.job.plan, video, self.job.network.manifest.skeleton)
            if report is None:
                for name in names:
                    self.observe(Note(f"repairing {name} (of {video.source.uri}): not what this job makes of it"))
            else:
                self.reports[video.video_id] = report
                self.observe(VideoDone(report))

    def _missing(self) -> list[tuple[VideoPlan, Chunk]]:
        """Chunks still to do, in order. Those that were damaged on disk are among them."""
        done = self.ledger.committed()
        missing = []
        for video in self.job.plan.videos:
            for chunk in () if video.video_id in self.reports else video.chunks:
                if chunk.key in done and not self._chunk_is_whole(chunk):
                    self.observe(
                        Note(f"repairing {chunk_name(chunk.key)} (of {video.source.uri}): damaged, computed again")
                    )
                    self._discard(chunk_name(chunk.key))
                    done.remove(chunk.key)
                if chunk.key not in done:
                    missing.append((video, chunk))
        return missing

    def _chunk_is_whole(self, chunk: Chunk) -> bool:
        try:
            return chunk_is_whole(self.ledger.read_chunk(chunk.key) or b"")
        except OutputError:
            return False

    def _discard(self, name: str) -> None:
        try:
            self.ledger.discard(name)
        except OSError as error:
            raise OutputError(
                str(self.ledger.out), f"{name} is damaged and cannot be removed ({reason(error)})"
            ) from error

    def _n_selected(self, video: VideoPlan, chunk: Chunk) -> int:
        return int(work_unit(video, chunk, self.job.plan.options.selection).frames.wanted.sum())

    def _work(self, executor: Executor, missing: list[tuple[VideoPlan, Chunk]], waiting: Counter[str]) -> None:
        """Run the missing chunks; publish each video when its last one is in."""
        by_key = {chunk.key: (video, chunk) for video, chunk in missing}
        selection, skeleton = self.job.plan.options.selection, self.job.network.manifest.skeleton
        units = (work_unit(video, chunk, selection) for video, chunk in missing)
        with contextlib.closing(executor.run(units)) as results:
            for result in results:
                video, chunk = by_key[result.key]
                if isinstance(result, UnitFailure):
                    # Committed like any other result, so that a job stopped before its end does not find another one.
                    tables = tables_without_reading(work_unit(video, chunk, selection), skeleton, result.reason)
                    self.ledger.commit_chunk(chunk.key, chunk_bytes(*tables))
                else:
                    self.n_inferred += result.n_inferred
                    self.devices.add(result.device)
                self.observe(UnitDone(result, self._n_selected(video, chunk)))
                waiting[video.video_id] -= 1
                if not waiting[video.video_id]:
                    self._finish(video)

    def _finish(self, video: VideoPlan) -> None:
        self._check_folder()
        if video.index is None:
            report = failed_video(video)
        else:
            skeleton = self.job.network.manifest.skeleton
            report = finalise_video(self.ledger, self.job.plan, video, skeleton)
        self.reports[video.video_id] = report
        self.observe(VideoDone(report))

    def _check_folder(self) -> None:
        if self.lost_the_folder():
            raise OutputError(str(self.ledger.out), "another job has taken it over; nothing more is written")

    def _publish_manifest(self) -> None:
        """The manifest, which seals the files, then `_SUCCESS`, which seals the manifest."""
        self._check_folder()
        plan, network = self.job.plan, self.job.network
        videos = [self.reports[video.video_id] for video in plan.videos]
        plan_file = self.ledger.path(PLAN)
        of_the_run = {
            "device": self.job.device,
            "execution_devices": sorted(self.devices),
            "began": self._began.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "frames_inferred": self.n_inferred,
        }
        plan_entry = PublishedFile(PLAN, plan_file.stat().st_size, sha256(plan_file), None)
        text = manifest_bytes(plan_entry, plan.options, network, videos, of_the_run)
        if not self.ledger.publish_bytes(MANIFEST, text):
            # Of a run that was stopped between the manifest and the seal, or is there now: the files are the same.
            found = self.ledger.read_bytes(MANIFEST)
            if not tell_the_same(found, text):
                self.ledger.unseal(found, keep=False)
                self.ledger.publish_bytes(MANIFEST, text)
        self._seal()

    def _seal(self) -> None:
        """Publish `_SUCCESS` for the manifest that is there: two runs may have mended the same folder."""
        for _ in range(3):
            text = self.ledger.read_bytes(MANIFEST)
            if text is not None:
                if self.ledger.publish_bytes(SUCCESS, seal(text)) or self.ledger.read_bytes(SUCCESS) == seal(text):
                    return
                self._discard(SUCCESS)
        raise SinkError(f"{self.ledger.path(MANIFEST)}: taken away by another run")
