"""The command line: parse, build a RunSpec, call one function, map errors to exit codes.

What takes long to import (Ray, OpenVINO, PyArrow) is imported by the command that needs it.
"""

import json
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import __version__
from jobs.console import say, tell
from jobs.discover import shown
from jobs.errors import EXIT_INTERRUPTED, EXIT_SOME_FAILED, EXIT_UNUSABLE, SinkError
from jobs.spec import Moment, RunSpec, Selection, parse_moment
from posecore.errors import PosejobError, reason

if TYPE_CHECKING:
    from jobs.executors.base import Executor, Layout
    from jobs.worker import WorkerSpec

app = typer.Typer(
    help="Every joint of every person in every frame of your videos, as Parquet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "POSEJOB"},
)
models_app = typer.Typer(
    help="The networks: which there are, fetch them, check them.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(models_app, name="models")

_MAX_CONFIG_BYTES = 1 << 20

# A flag --some-flag is also read from POSEJOB_SOME_FLAG, the same for every command that has it.
_DEFAULT_MODEL = "human-pose-estimation-0001"
_FLAT = {"auto_envvar_prefix": "POSEJOB"}
Json = Annotated[bool, typer.Option("--json", envvar="POSEJOB_JSON", help="Print one JSON object to stdout.")]
Device = Annotated[str, typer.Option(help="CPU, GPU, NPU or AUTO.")]
Model = Annotated[str, typer.Option(help="A model's name, or the path of an .xml or .onnx with its manifest.")]
Height = Annotated[
    int | None, typer.Option(help="Network input height in pixels; default: the model's.", show_default=False)
]
Out = Annotated[Path, typer.Argument(help="A job's output folder.")]


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


def _read_config(context: typer.Context, path: Path | None) -> None:
    """Take the options of a TOML file as defaults: flags and environment go before them."""
    if path is None:
        return
    try:
        values = tomllib.loads(_config_text(path))
    except OSError as error:
        raise typer.BadParameter(f"{shown(path)}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{shown(path)}: not TOML: {shown(str(error))}") from error
    options = {option.lstrip("-"): parameter.name for parameter in context.command.params for option in parameter.opts}
    allowed = {
        option: name for option, name in options.items() if name not in ("inputs", "overwrite", "config", "help")
    }
    for option in values:
        if option not in allowed:
            near = get_close_matches(option, allowed, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(allowed))}"
            raise typer.BadParameter(f"{shown(path)}: no option {option[:80]!r}; {hint}")
    context.default_map = {allowed[option]: value for option, value in values.items()}


def _config_text(path: Path) -> str:
    # Not waiting for a pipe, and not reading on for ever where there is no end.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise typer.BadParameter(f"{shown(path)}: not a regular file; options are read from files only")
        data = file.read(_MAX_CONFIG_BYTES + 1)
    if len(data) > _MAX_CONFIG_BYTES:
        raise typer.BadParameter(f"{shown(path)}: larger than 1 MiB; this is no file of options")
    return data.decode()


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            # POSEJOB_VERSION=1.2.3 is what a Dockerfile pins the installation with.
            allow_from_autoenv=False,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    pass


@app.command(context_settings=_FLAT)
def submit(
    inputs: Annotated[
        list[str], typer.Argument(metavar="VIDEO...", help="Videos, folders, globs, pictures.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("posejob-out"),
    device: Device = "CPU",
    model: Model = _DEFAULT_MODEL,
    height: Height = None,
    every: Annotated[int, typer.Option(help="Look at every N-th frame only.")] = 1,
    from_: Annotated[
        str | None, typer.Option("--from", envvar="POSEJOB_FROM", help="Start here: a frame, 12.5s or 00:01:23.5.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="Stop before this.")] = None,
    max_people: Annotated[int | None, typer.Option(help="Keep the N best people of a frame.")] = None,
    min_score: Annotated[float, typer.Option(help="Keep people with at least this pose score.")] = 0.0,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; default: one for about four CPUs.", show_default=False)
    ] = None,
    chunk_frames: Annotated[int, typer.Option(help="Frames a worker takes at a time.")] = 128,
    overwrite: Annotated[
        bool,
        # Never from the environment: a forgotten variable must not discard a job.
        typer.Option("--overwrite", allow_from_autoenv=False, help="Discard the job in the output folder first."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(callback=_read_config, is_eager=True, metavar="FILE.toml", help="Options, as `height = 368`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the people in every frame and write them to Parquet.

    The same command again does only what is missing. Exit code 0: all videos ok; 1: some are degraded or failed; 2: the
    job could not start, or not go on (a full disk, an input that went away); 130: stopped with Ctrl-C.
    """
    with _errors_as_lines():
        spec = RunSpec(
            inputs=tuple(inputs),
            out=out,
            model=model,
            device=device,
            height=height,
            selection=Selection(every, _moment(from_, "--from"), _moment(to, "--to")),
            max_people=max_people,
            min_score=min_score,
            workers=workers,
            chunk_frames=chunk_frames,
            overwrite=overwrite,
        )
        if dry_run:
            _dry_run(spec, as_json)
            return
        from jobs.report import summary_text, watching
        from jobs.run import run_job

        with watching() as observer:
            report = run_job(spec, _start_ray, observer)
        if as_json:
            _print_json(
                report.totals()
                | {
                    "out": report.out,
                    "frames_inferred": report.n_inferred,
                    "seconds": round(report.seconds, 3),
                    "problems": [{"input": text, "problem": problem} for text, problem in report.problems],
                    "details": [video.to_json() for video in report.videos],
                }
            )
        else:
            _say(summary_text(report))
        raise typer.Exit(report.exit_code)


def _moment(text: str | None, flag: str) -> Moment | None:
    return None if text is None else parse_moment(text, flag)


def _dry_run(spec: RunSpec, as_json: bool) -> None:
    from jobs.estimate import seconds_a_frame
    from jobs.report import plan_text
    from jobs.run import prepare

    job = prepare(spec, lambda event: None)
    pace = seconds_a_frame(job)
    if as_json:
        estimate = None if pace is None else round(pace * job.plan.n_selected, 1)
        _print_json(json.loads(job.plan.text) | {"estimated_s": estimate, "problems": job.problems})
    else:
        for text, problem in job.problems:
            tell(shown(f"not used: {text}: {problem}"))
        _say(plan_text(job.plan, pace))


@contextmanager
def _start_ray(worker: "WorkerSpec", layout: "Layout") -> Iterator["Executor"]:
    from jobs.executors.ray import RayExecutor, private_ray

    with private_ray(layout.workers * layout.threads):
        yield RayExecutor(worker, layout)


@app.command()
def status(out: Out, as_json: Json = False) -> None:
    """Say how far a job is."""
    with _errors_as_lines():
        from jobs.ledger import Ledger
        from jobs.verify import progress

        state = progress(Ledger(out))
        done, total = state.chunks
        if as_json:
            videos = [
                dict(zip(("video_id", "chunks_done", "chunks", "frames"), video, strict=True)) for video in state.videos
            ]
            _print_json(
                {"done": state.done, "chunks_done": done, "chunks": total, "status": state.statuses, "videos": videos}
            )
            return
        for video_id, video_done, video_total, frames in state.videos:
            _say(f"{video_id}: {video_done}/{video_total} chunks, {frames:,} frames")
        ended = ", ".join(f"{n} {name}" for name, n in sorted(state.statuses.items()))
        _say(
            f"done: {ended}"
            if state.done
            else f"not done: {done} of {total} chunks; run the same command again to go on"
        )


@app.command(context_settings=_FLAT)
def bench(
    video: Annotated[str, typer.Argument(help="A video like those to be done.", show_default=False)],
    model: Model = _DEFAULT_MODEL,
    device: Device = "CPU",
    height: Height = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each measurement.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Measure how fast this machine is on a video, and what is lost around the network."""
    with _errors_as_lines():
        from jobs.bench import measure
        from jobs.report import bench_text

        spec = RunSpec(inputs=(video,), out=Path("unused"), model=model, device=device, height=height)
        result = measure(spec, rounds, seconds, tell)
        if as_json:
            _print_json(result.to_json())
        else:
            _say(bench_text(result))


@app.command()
def verify(out: Out, as_json: Json = False) -> None:
    """Prove that a finished job's folder is whole, byte for byte."""
    with _errors_as_lines():
        from jobs.ledger import Ledger
        from jobs.verify import verify as find_problems

        problems = find_problems(Ledger(out))
        if as_json:
            _print_json({"whole": not problems, "problems": problems})
        elif problems:
            _say("\n".join(problems))
        else:
            _say(f"{shown(out)}: whole")
        raise typer.Exit(EXIT_SOME_FAILED if problems else 0)


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """List the networks posejob knows and which are here."""
    with _errors_as_lines():
        from models.errors import ModelError
        from models.registry import find_network, known_manifests

        rows: list[dict[str, Any]] = []
        for manifest in known_manifests():
            for variant in manifest.variants:
                name = f"{manifest.name}/{variant.name}"
                try:
                    where = str(find_network(name, fetch=False).path.parent)
                except ModelError:
                    where = ""
                rows.append(
                    {"name": name, "where": where, "license": manifest.license, "description": manifest.description}
                )
        if as_json:
            _print_json({"models": rows})
            return
        for row in rows:
            _say(f"{row['name']}  {row['where'] or 'not here: posejob models fetch ' + row['name']}")


@models_app.command("fetch")
def models_fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Default: the default model.", show_default=False)] = None,
) -> None:
    """Download networks to the cache and check them."""
    with _errors_as_lines():
        from models.registry import DEFAULT_MODEL, find_network

        for name in names or [DEFAULT_MODEL]:
            network = find_network(name, report=tell)
            _say(f"{network.name}  {network.path.parent}")


@models_app.command("verify")
def models_verify(
    names: Annotated[list[str] | None, typer.Argument(help="Default: the default model.", show_default=False)] = None,
) -> None:
    """Check networks that are here against their manifests: size and SHA-384."""
    with _errors_as_lines():
        from models.registry import DEFAULT_MODEL, find_network

        for name in names or [DEFAULT_MODEL]:
            _say(f"{find_network(name, fetch=False).name}: whole")


@contextmanager
def _errors_as_lines() -> Iterator[None]:
    """One line on stderr and an exit code for what a user can mend; tracebacks are for bugs."""
    try:
        yield
    except PosejobError as error:
        # Names of files, and texts out of them, may hold what would command the terminal.
        tell(f"posejob: {shown(str(error))}")
        if isinstance(error, SinkError):
            tell("posejob: what is done is kept; run the same command again when this is mended")
        raise typer.Exit(EXIT_UNUSABLE) from error
    except OSError as error:
        # Of the surroundings, where nobody nearer had better words for it.
        tell(f"posejob: {shown(_about(error))}")
        raise typer.Exit(EXIT_UNUSABLE) from error
    except KeyboardInterrupt:
        tell("\nposejob: stopped; what is done is kept, run the same command again to go on")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _about(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not names:
        try:
            os.getcwd()
        except OSError:
            return "the working directory is not there any more; change to another one"
    return ": ".join([*names, reason(error)])


def _print_json(value: dict[str, Any]) -> None:
    _say(json.dumps(value, indent=1))


def _say(text: str) -> None:
    if not say(text):
        tell("posejob: cannot write to stdout; what was asked for is done, only this text is lost")
        raise typer.Exit(EXIT_UNUSABLE)
