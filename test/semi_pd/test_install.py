# SPDX-License-Identifier: Apache-2.0
"""Wheel and sdist in a real environment with SGLang, on every Python there is.

Takes minutes and some GiB on disk for each Python: only with ``SEMI_PD_SOAK=1``. What a
bare environment can show is in ``test_packaging.py``.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

UV = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
"""On the PATH, or where ``make venv`` put it."""
PYTHONS = ("3.10", "3.11", "3.12")
INSTALL_TIMEOUT_S = 1500
HAS_FLAG = (
    "from sglang.srt.server_args import ServerArgs;"
    "print(hasattr(ServerArgs, 'enable_semi_pd'), ServerArgs.__module__)"
)

pytestmark = [
    pytest.mark.upstream,
    pytest.mark.timeout(3 * INSTALL_TIMEOUT_S),
    pytest.mark.skipif(os.environ.get("SEMI_PD_SOAK") != "1", reason="SEMI_PD_SOAK=1"),
    pytest.mark.skipif(UV is None, reason="needs uv"),
]


def uv(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    assert UV is not None
    result = subprocess.run(
        [UV, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result


class Environment:
    """A virtual environment of one Python."""

    def __init__(self, root: Path, version: str) -> None:
        self.root = root
        self.python = root / "bin" / "python"
        uv("venv", "--python", version, str(root))

    @property
    def site(self) -> Path:
        return next(self.root.glob("lib/python3.*/site-packages"))

    def install(self, *what: str) -> None:
        uv("pip", "install", "--python", str(self.python), *what)

    def uninstall(self, name: str) -> None:
        uv("pip", "uninstall", "--python", str(self.python), name)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment, away from the source tree."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [str(self.root / "bin" / command[0]), *command[1:]],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def says(self, *command: str) -> str:
        result = self.run(*command)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout.strip()

    def changed_files_of(self, name: str) -> list[str]:
        """What is not as the distribution's own record has it, and what is too much."""
        record = next(self.site.glob(f"{name}-*.dist-info")) / "RECORD"
        changed, known = [], set()
        for path, given, _ in csv.reader(record.read_text().splitlines()):
            known.add(path)
            if given:
                kind, _, expected = given.partition("=")
                digest = hashlib.new(kind, (self.site / path).read_bytes()).digest()
                is_same = base64.urlsafe_b64encode(digest).decode() == f"{expected}="
                changed += [] if is_same else [path]
        there = (path for path in (self.site / name).rglob("*") if path.is_file())
        names = {str(path.relative_to(self.site)) for path in there}
        return [
            *changed,
            *(path for path in names - known if "__pycache__" not in path),
        ]

    def leftovers(self) -> list[str]:
        """What of ours is in site-packages."""
        found = [*self.site.glob("*semi_pd*"), *self.site.glob("sglang/semi_pd*")]
        return sorted(path.name for path in found)


@pytest.fixture(scope="module")
def distributions(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d"]
    subprocess.run(
        [*command, str(out)], cwd=repository, check=True, capture_output=True
    )
    source = next(out.glob("*.tar.gz"))
    uv("build", "--wheel", "--out-dir", str(out), str(source))
    return out


@pytest.fixture(params=PYTHONS)
def environment(
    request: pytest.FixtureRequest, tmp_path: Path, distributions: Path
) -> Iterator[Environment]:
    if uv_has_no_python(request.param):
        pytest.skip(f"uv can get no Python {request.param}")
    made = Environment(tmp_path / "venv", request.param)
    yield made
    shutil.rmtree(made.root)


def uv_has_no_python(version: str) -> bool:
    assert UV is not None
    command = [UV, "python", "find", version]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        return False
    command = [UV, "python", "install", version]
    return bool(subprocess.run(command, capture_output=True, check=False).returncode)


def test_install_use_uninstall(
    environment: Environment, distributions: Path, tiny_model: Path
) -> None:
    wheel = str(next(distributions.glob("*.whl")))
    sdist = str(next(distributions.glob("*.tar.gz")))
    environment.install(wheel)
    assert environment.says("python", "-c", HAS_FLAG).startswith("True sglang.srt")
    report = json.loads(environment.run("semi-pd", "doctor", "--json").stdout)
    states = {one["check"]: one["state"] for one in report["checks"]}
    for check in ("python", "sglang", "torch", "semi-pd", "plugins", "hooks"):
        assert states[check] == "ok", report

    environment.uninstall("sglang-semi-pd")
    assert environment.leftovers() == []
    plain = environment.says("python", "-c", HAS_FLAG)
    assert plain.startswith("False sglang.srt")
    assert environment.changed_files_of("sglang") == []
    assert "Semi-PD" not in environment.says("sglang", "serve", "--help")

    environment.install("--no-deps", sdist)
    assert environment.says("python", "-c", HAS_FLAG).startswith("True sglang.srt")

    version = environment.site / "sglang" / "_version.py"
    text = version.read_text().replace("0.5.17", "0.5.18")
    version.unlink()  # it may be a hard link into uv's cache
    version.write_text(text)
    flags = ["--model-path", str(tiny_model), "--enable-semi-pd"]
    refused = environment.run("python", "-m", "sglang.launch_server", *flags)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "SGLang 0.5.18 is refused" in line
    assert "tested with 0.5.17" in line
