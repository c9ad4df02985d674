"""The documents and the command line name the same things."""

import re
from pathlib import Path

import typer

from jobs.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = typer.main.get_command(app)


def commands(group, prefix: str = "") -> dict[str, object]:
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[f"{prefix}{name}"] = command
    return found


def test_every_command_is_in_the_readme_and_has_help():
    text = (ROOT / "README.md").read_text()
    for name, command in commands(COMMAND).items():
        first, _, second = name.partition(" ")
        assert f"posejob {first}" in text
        assert not second or f"`{second}`" in text or f"posejob {name}" in text
        assert command.help


def test_every_flag_in_the_documents_exists():
    flags = {option for command in commands(COMMAND).values() for p in command.params for option in p.opts}
    for document in DOCUMENTS:
        text = re.sub(r"python -m benchmarks[^\n]*", "", document.read_text())
        for flag in re.findall(r"`(--[a-z-]+)", text):
            assert flag in flags, f"{document.name} names {flag}"


def test_links_between_documents_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
