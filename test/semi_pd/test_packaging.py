# SPDX-License-Identifier: Apache-2.0
"""The wheel and the editable install: what they carry, and that they take effect.

Installs go into a bare environment without SGLang, which is enough to see whether
the finder is active and what is left after an uninstall.
"""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

OVERLAY_PTH = "sglang_semi_pd_overlay.pth"
PROBE = (
    "import sys, importlib.metadata as m;"
    "print(sys.meta_path[0].__name__,"
    " sys.modules['_sglang_semi_pd_overlay'].overlay_source());"
    "print(sorted(e.name for e in m.distribution('sglang-semi-pd').entry_points))"
)


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        str(out),
    ]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    return next(out.glob("*.whl"))


class Environment:
    """A bare virtual environment, and pip working on it from outside."""

    def __init__(self, root: Path) -> None:
        venv.create(root, with_pip=False)
        self.python = root / "bin" / "python"
        self.site = next(root.glob("lib/python3.*/site-packages"))

    def unzip(self, wheel: Path) -> None:
        """Install as pip would: a wheel is an archive of site-packages."""
        zipfile.ZipFile(wheel).extractall(self.site)

    def run(self, *arguments: str, **environment: str) -> list[str]:
        result = subprocess.run(
            [self.python, *arguments], capture_output=True, text=True, env=environment
        )
        assert result.returncode == 0, result.stderr
        assert not result.stderr
        return result.stdout.splitlines()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


def editable_wheel(repository: Path, out: Path) -> Path:
    """What ``pip install -e`` and ``uv pip install -e`` ask the backend for."""
    program = "import sys, hatchling.build as b;print(b.build_editable(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(out)]
    result = subprocess.run(
        command, cwd=repository, check=True, capture_output=True, text=True
    )
    return out / result.stdout.split()[-1]


def test_wheel_carries_no_file_of_upstream(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    in_sglang = {name for name in names if name.startswith("sglang/")}
    assert in_sglang
    assert all(name.startswith("sglang/semi_pd/") for name in in_sglang)


def test_wheel_is_complete(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        OVERLAY_PTH,
        "_sglang_semi_pd_fork_server.py",
        "_sglang_semi_pd_overlay.py",
        "sglang_semi_pd_overlay/server_args.py",
        "sglang/semi_pd/__init__.py",
        "sglang/semi_pd/py.typed",
        "sglang/semi_pd/monitoring/dashboard/page.html",
        "sglang/semi_pd/monitoring/dashboard/dashboard.js",
        "sglang/semi_pd/launch/preflight.py",
    } <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_takes_effect(wheel: Path, environment: Environment) -> None:
    environment.unzip(wheel)
    active, entry_points = environment.run("-c", PROBE)
    source = environment.site / "sglang_semi_pd_overlay" / "server_args.py"
    assert active == f"SemiPDFinder {source}"
    assert entry_points == "['semi-pd', 'semi_pd', 'semi_pd_cpu']"


def test_editable_install_takes_effect_from_the_source_tree(
    repository: Path, environment: Environment, tmp_path: Path
) -> None:
    environment.unzip(editable_wheel(repository, tmp_path))
    active, entry_points = environment.run("-c", PROBE)
    assert active == f"SemiPDFinder {repository}/python/sglang/srt/server_args.py"
    assert entry_points == "['semi-pd', 'semi_pd', 'semi_pd_cpu']"


def test_unzipped_wheel_takes_effect_by_a_sitecustomize(
    wheel: Path, environment: Environment, tmp_path: Path
) -> None:
    place = tmp_path / "unzipped"
    zipfile.ZipFile(wheel).extractall(place)
    (place / "sitecustomize.py").write_text("import _sglang_semi_pd_overlay\n")
    active, entry_points = environment.run("-c", PROBE, PYTHONPATH=str(place))
    assert active == f"SemiPDFinder {place}/sglang_semi_pd_overlay/server_args.py"
    assert entry_points == "['semi-pd', 'semi_pd', 'semi_pd_cpu']"


def test_a_left_over_pth_is_silent(repository: Path, environment: Environment) -> None:
    pth = (repository / OVERLAY_PTH).read_text()
    (environment.site / OVERLAY_PTH).write_text(pth)
    assert environment.run("-c", "print('plain')") == ["plain"]


def test_interpreter_start_costs_under_a_millisecond(
    wheel: Path, environment: Environment
) -> None:
    environment.unzip(wheel)
    costs_us = []
    for _ in range(20):
        result = subprocess.run(
            [environment.python, "-X", "importtime", "-c", "pass"],
            capture_output=True,
            text=True,
            env={},
        )
        lines = [line for line in result.stderr.splitlines() if "_overlay" in line]
        costs_us.append(int(lines[0].split("|")[1]))
    assert min(costs_us) < 1000
