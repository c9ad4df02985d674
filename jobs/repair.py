"""What of a published job is whole, and what a re-run has to mend: damage on disk, files that went away."""

from dataclasses import dataclass

from jobs.ledger import MANIFEST, PLAN, SUCCESS, Ledger, table_names
from jobs.manifest import Manifest, VideoReport, proves, read_manifest, seal_problem
from jobs.plan import Plan


@dataclass(frozen=True)
class Found:
    """What a run finds published in the folder of its own job.

    done:     the videos, if the job is done and every file of it whole: nothing is left to do.
    whole:    files that the manifest proves, or as much as there is of it.
    problems: a line for each published file that is damaged or gone; none if the job was never done.
    sealed:   `_SUCCESS` is there.
    manifest: the bytes of the manifest, None if it is not there. proven: they are what posejob wrote.
    """

    done: tuple[VideoReport, ...] | None
    whole: frozenset[str]
    problems: tuple[str, ...]
    sealed: bool
    manifest: bytes | None
    proven: bool


def look(ledger: Ledger, plan: Plan) -> Found:
    """Hash what is published and compare it with the manifest. Raises OutputError.

    Of a manifest whose seal does not hold only this is believed: a file whose SHA-256 is somewhere in it is whole.
    """
    success, text = ledger.read_bytes(SUCCESS), ledger.read_bytes(MANIFEST)
    uris = {
        name: video.source.uri
        for video in plan.videos
        if video.index is not None
        for name in table_names(video.video_id)
    }
    digests = {name: ledger.digest(name) for name in (PLAN, *uris)}
    manifest = _proven(success, text)
    proofs = ledger.digests()
    if manifest is not None:
        files = manifest.files
        whole = frozenset(name for name, digest in digests.items() if name in files and digest == files[name].sha256)
    else:
        whole = frozenset(name for name, digest in digests.items() if digest in proofs)
    problem = seal_problem(success, text) if text is not None or success is not None else None
    problems = [problem] if problem else []
    if proofs:
        problems += [
            f"{name} (of {uris[name]}): {'missing' if digests[name] is None else 'changed since the job was done'}"
            for name in uris
            if name not in whole
        ]
    done = None
    if manifest is not None and not problem and whole == digests.keys() == manifest.files.keys():
        done = manifest.videos
    return Found(done, whole, tuple(problems), success is not None, text, manifest is not None)


def _proven(success: bytes | None, text: bytes | None) -> Manifest | None:
    """The manifest if `_SUCCESS` proves it and posejob wrote it."""
    try:
        return read_manifest(text) if text is not None and proves(success, text) else None
    except ValueError:
        return None
