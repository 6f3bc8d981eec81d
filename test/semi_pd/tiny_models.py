# SPDX-License-Identifier: Apache-2.0
"""Models of random weights, small enough to be served by two cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_tiny_model.py"


def make_tiny_model(out: Path, *, arch: str = "llama", seed: int = 0) -> Path:
    """A tiny model and its tokenizer, written unless they are there already."""
    if not (out / "config.json").exists():
        command = [sys.executable, str(SCRIPT), str(out)]
        command += ["--arch", arch, "--seed", str(seed)]
        subprocess.run(command, check=True, timeout=120)
    return out
