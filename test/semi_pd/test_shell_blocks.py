# SPDX-License-Identifier: Apache-2.0
"""Every shell command of the documents is one that works: run, or held to its parser.

What takes no server is run. A server's command line goes through the checks that a
launch begins with. For the rest it is checked that what it names exists.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_port
from sglang.semi_pd.cli.command_line import build_parser
from sglang.semi_pd.launch import preflight, upstream_source

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = REPOSITORY / "python"
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "examples/semi_pd/**/*.md")
LAUNCHES = (
    ["python", "-m", "sglang.launch_server"],
    ["sglang", "serve"],
    ["semi-pd", "serve"],
)
RUN = {"simulate"}
"""Sub-commands of ``semi-pd`` that are run as printed."""
FILES = (".json", ".jsonl")
"""What a command with such a name in it needs is not there to be read."""
INSTALLERS = {"pip", "docker", "kubectl", "uv"}
"""What they name cannot be tried here; their syntax can."""
SHELL_WORDS = {"export", "ps", "kill", "cd", "git", "unset", "watch", "nvidia-smi"}

_BLOCK = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.M | re.S)
_ASSIGNMENT = re.compile(r"^([A-Z_]+)=(.*)$", re.S)
_SIBLING = re.compile(r"^from (\w+) import", re.M)
_EXAMPLE_FLAG = re.compile(r"[\"'](--[a-z][a-z-]*)[\"']")


def blocks() -> Iterator[tuple[str, str]]:
    """Each block of shell, and the page it is on."""
    for pattern in PAGES:
        for page in sorted(REPOSITORY.glob(pattern)):
            for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
                yield page.name, block


def commands() -> list[tuple[str, str]]:
    """Each command by itself, with the variables that its block sets before it."""
    found = []
    for page, block in blocks():
        variables: dict[str, str] = {"$MODEL": "MODEL"}
        for command in block_commands(block):
            assignment = _ASSIGNMENT.match(command)
            if assignment:
                variables[f"${assignment[1]}"] = " ".join(shlex.split(assignment[2]))
                continue
            for name, value in reversed(variables.items()):
                command = command.replace(name, value)
            found.append((page, command))
    return found


def block_commands(block: str) -> Iterator[str]:
    command = ""
    for line in block.splitlines():
        command += line.removesuffix("\\") + (" " if line.endswith("\\") else "")
        is_open = command.count("'") % 2 or command.count('"') % 2
        if line.endswith("\\") or is_open:
            continue
        words = shlex.split(command, comments=True)
        if words:
            yield command.strip()
        command = ""


COMMANDS = commands()


@pytest.mark.parametrize(
    ("page", "block"), list(blocks()), ids=lambda text: text.splitlines()[0][:50]
)
def test_a_shell_understands_every_block(page: str, block: str) -> None:
    result = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
    assert result.returncode == 0, f"{page}: {result.stderr}"


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda text: text[:60])
def test_command(page: str, command: str, model: str) -> None:
    words = [word.strip() for word in shlex.split(command, comments=True)]
    words = words[: words.index("|")] if "|" in words else words
    if words[:2] == ["echo", "quit"] or words[0] in INSTALLERS | SHELL_WORDS:
        return
    for launch in LAUNCHES:
        if words[: len(launch)] == launch:
            check_launch(words[len(launch) :], model)
            return
    if words[0] == "make":
        check_make(words[1])
    elif words[0] == "curl":
        check_curl(words[1:])
    elif words[0] == "semi-pd":
        check_semi_pd(words[1:])
    elif words[0] == "scripts/check":
        assert os.access(REPOSITORY / words[0], os.X_OK)
    elif words[0] in ("python", "examples/semi_pd/serve.sh"):
        check_program(words[1:] if words[0] == "python" else words)
    else:
        pytest.fail(f"{page}: nobody checks what {words[0]} is")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """As much of a model as a launch looks at before it imports anything."""
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(bytes(64))
    return str(tmp_path)


def check_launch(words: list[str], model: str) -> None:
    words = [model if word in ("MODEL", "$MODEL") else word for word in words]
    if "--port" not in words:
        words += ["--port", str(free_port())]
    line = preflight.read(words)
    assert line.flags_are_known
    assert line.model_path == model
    preflight.check(line)


def check_make(target: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.M), target


def check_curl(words: list[str]) -> None:
    (address,) = [word for word in words if "localhost:" in word or "//" in word]
    path = "/" + address.partition("localhost:")[2].partition("/")[2]
    ours = (PYTHON / "sglang" / "semi_pd" / "server").glob("*.py")
    upstream = Path(upstream_source.root()) / "srt" / "entrypoints" / "http_server.py"
    routes = "".join(file.read_text() for file in (*ours, upstream))
    assert f'"{path.partition("?")[0]}"' in routes, path
    if "-d" in words:
        assert isinstance(json.loads(words[words.index("-d") + 1]), dict)


def check_semi_pd(words: list[str]) -> None:
    build_parser().parse_args(words)
    if words[0] in RUN and not any(word.endswith(FILES) for word in words):
        program = [sys.executable, str(PYTHON / "semi_pd_cli.py"), *words]
        result = subprocess.run(program, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        assert result.stdout


def check_program(words: list[str]) -> None:
    """A program of this repository, and flags that stand in its text, or in that of a
    module beside it."""
    program = REPOSITORY / words[0]
    assert program.is_file(), words[0]
    own = words[1 : words.index("--")] if "--" in words else words[1:]
    text = program.read_text(encoding="utf-8")
    for module in _SIBLING.findall(text):
        sibling = program.with_name(f"{module}.py")
        text += sibling.read_text(encoding="utf-8") if sibling.is_file() else ""
    known = {"--help", *_EXAMPLE_FLAG.findall(text)}
    if program.suffix == ".py":
        given = {word.partition("=")[0] for word in own if word.startswith("--")}
        assert given <= known, f"{words[0]} has no {given - known}"
