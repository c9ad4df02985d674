import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app


@pytest.fixture
def plan(walk: Path, colour_network: Path, tmp_path: Path):
    """Runs `submit --dry-run --config` with a config's text and more arguments; returns the result."""

    def run(text: str, *arguments: str, env: dict[str, str] | None = None):
        config = tmp_path / "job.toml"
        config.write_text(f'model = "{colour_network}"\n{text}')
        return CliRunner().invoke(app, ["submit", str(walk), "--dry-run", "--config", str(config), *arguments], env=env)

    return run


def test_a_config_file_gives_options(plan):
    result = plan('height = 128\nevery = 3\nfrom = "2"\n')
    assert result.exit_code == 0, result.output
    assert "height 128" in result.stdout
    assert "3 of 12 frames" in result.stdout


def test_the_environment_goes_before_the_file_and_flags_before_both(plan):
    assert "height 64" in plan("height = 128", env={"POSEJOB_HEIGHT": "64"}).stdout
    assert "height 32" in plan("height = 128", "--height", "32", env={"POSEJOB_HEIGHT": "64"}).stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heigth = 128", "job.toml: no option 'heigth'; did you mean height?"),
        ("overwrite = true", "job.toml: no option 'overwrite'"),
        ("height = ", "job.toml: not TOML"),
        ('height = "high"', "Invalid value for '--height'"),
    ],
)
def test_a_mistake_in_it_is_one_line(plan, text: str, message: str):
    result = plan(text)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "text",
    [
        "height = " + "[" * 100_000,
        '"\\u001b[2J" = 1',
        'height = "\\u001b[2J"',
        "height = 1\x1b[2J",
        'from = "\\u001b[2J"',
        "height = []",
        "height = " + "9" * 5000,
        'from = "' + "9" * 5000 + '"',
        "out = 7\nout = 8",
        "[out]\nx = 1",
    ],
)
def test_a_strangers_file_is_one_printable_refusal(plan, text: str):
    result = plan(text)
    assert result.exit_code == 2
    assert all(line.isprintable() for line in result.stderr.splitlines())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("out", ["a\\u0000b", "\\u001b[2J"])
def test_a_strangers_output_folder_is_a_name_like_any_other(plan, out: str):
    result = plan(f'out = "{out}"')
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert all(line.isprintable() for line in result.output.splitlines())


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_read(walk: Path, tmp_path: Path, kind: str):
    """A pipe would be waited for, a device has no end."""
    path = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    result = CliRunner().invoke(app, ["submit", str(walk), "--config", str(path)])
    assert result.exit_code == 2
    problem = "is a directory" if kind == "folder" else "not a regular file; options are read from files only"
    assert f"{path}: {problem}" in " ".join(result.stderr.split())


def test_a_file_that_would_fill_the_memory_is_not_read(walk: Path, tmp_path: Path):
    with (tmp_path / "job.toml").open("wb") as file:
        file.truncate(1 << 40)
    result = CliRunner().invoke(app, ["submit", str(walk), "--config", str(tmp_path / "job.toml")])
    assert result.exit_code == 2
    assert "job.toml: larger than 1 MiB; this is no file of options" in " ".join(result.stderr.split())


def test_a_missing_file_is_named(walk: Path):
    result = CliRunner().invoke(app, ["submit", str(walk), "--config", "nowhere.toml"])
    assert result.exit_code == 2
    assert "nowhere.toml: no such file or directory" in result.stderr
