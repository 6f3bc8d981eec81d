# SPDX-License-Identifier: Apache-2.0
"""Every benchmark starts, finds what it imports, and says what it takes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmark" / "semi_pd"


def scripts() -> list[Any]:
    """Those that are run by themselves."""
    found = []
    for path in sorted(BENCHMARKS.glob("*.py")):
        if '__name__ == "__main__"' in path.read_text():
            found.append(pytest.param(path, id=path.stem))
    return found


@pytest.mark.parametrize("script", scripts())
def test_help(script: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(script), "--help"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


@pytest.mark.upstream
def test_what_is_imported_after_the_arguments_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert importlib.import_module("allocation_steps").measure
