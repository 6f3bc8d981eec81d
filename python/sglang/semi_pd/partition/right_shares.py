# SPDX-License-Identifier: Apache-2.0
"""Which MPS shares compute right on this GPU, and the best split made of them.

Some shares give wrong matrix products (decision 11). Which ones depends on the GPU, the
driver and cuBLAS, so they are found by trying, once for each combination: the verdicts
are kept in the user's cache. A share that gave no answer, on a busy GPU for instance,
has no verdict: it is not used, and tried again at the next start. A stale or forged
cache costs splits or a start, never a wrong token: every worker checks its own share
before it serves.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import start_progress
from sglang.semi_pd.partition import matrix_products
from sglang.semi_pd.partition.matrix_products import WORST_ERROR
from sglang.semi_pd.partition.mps import MPSDaemon
from sglang.semi_pd.sm_allocation import (
    FULL_PERCENTAGE,
    LEAST_PERCENTAGE,
    SMAllocation,
)

logger = logging.getLogger(__name__)

CANDIDATES = tuple(range(FULL_PERCENTAGE, LEAST_PERCENTAGE - 1, -5))
PROBE_TIMEOUT_S = 180.0
SHOWN_CHARACTERS = 2000
NAMED = 3
"""Splits that a refusal names."""

Verdicts = dict[int, bool]
"""Whether products are right at a share; without those that gave no answer."""


def ranked(
    wanted: SMAllocation, verdicts: Mapping[int, bool], *, allow_overlap: bool
) -> list[SMAllocation]:
    """Splits of right shares, the best first.

    The best leaves the fewest SMs unused, then is the nearest to what is wanted, then
    the most even. Where caps may overlap the nearest is the best.
    """
    right = [share for share, is_right in verdicts.items() if is_right]

    def loss(split: SMAllocation) -> tuple[int, int, int]:
        prefill, decode = split.prefill_percentage, split.decode_percentage
        off = abs(prefill - wanted.prefill_percentage)
        off += abs(decode - wanted.decode_percentage)
        unused = 0 if allow_overlap else 100 - prefill - decode
        return unused, off, abs(prefill - decode)

    splits = (SMAllocation(*pair) for pair in product(right, right))
    return sorted(
        (s for s in splits if allow_overlap or not s.is_overlapping), key=loss
    )


def best(
    wanted: SMAllocation, verdicts: Mapping[int, bool], *, allow_overlap: bool
) -> SMAllocation:
    """The first of ``ranked``.

    Raises:
        ConfigError: there is none.
    """
    splits = ranked(wanted, verdicts, allow_overlap=allow_overlap)
    if not splits:
        raise ConfigError(
            "No split of this GPU can be served",
            why="BF16 products were wrong, or not computed, at every share tried",
            mend="use --sm-partition-backend none, and report GPU, driver and CUDA",
        )
    return splits[0]


def offered(
    current: SMAllocation, verdicts: Mapping[int, bool], *, allow_overlap: bool
) -> tuple[SMAllocation, ...]:
    """The splits of right shares that a controller is to choose from.

    First the one in force, which serves; for each share of prefill the one that leaves
    the fewest SMs unused; where caps may overlap also the one whose decode may use all
    SMs.
    """
    right = sorted(share for share, is_right in verdicts.items() if is_right)
    splits = [current]
    for share in right:
        beside = [other for other in right if share + other <= FULL_PERCENTAGE][-1:]
        if allow_overlap and FULL_PERCENTAGE in right:
            beside.append(FULL_PERCENTAGE)
        splits += [SMAllocation(share, other) for other in beside]
    return tuple(dict.fromkeys(splits))


def require(
    asked: SMAllocation, verdicts: Mapping[int, bool], *, allow_overlap: bool
) -> None:
    """Refuse a split with a share that computes wrong, or is not known to be right.

    Raises:
        ConfigError: naming the shares and the nearest right splits.
    """
    shares = sorted({asked.prefill_percentage, asked.decode_percentage})
    wrong = [share for share in shares if verdicts.get(share) is False]
    silent = [share for share in shares if share not in verdicts]
    whys = ["BF16 products are wrong on this GPU" + _at(wrong)] if wrong else []
    whys += ["no answer came when it was tried" + _at(silent)] if silent else []
    if not whys:
        return
    nearest = ranked(asked, verdicts, allow_overlap=allow_overlap)[:NAMED]
    raise ConfigError(
        f"The split {asked} is refused",
        why="; ".join(whys),
        mend="right splits near it: " + (", ".join(map(str, nearest)) or "none"),
    )


def _at(shares: Iterable[int]) -> str:
    return " at " + " and ".join(f"{share} %" for share in shares)


class RightShares:
    """The verdicts of one GPU, tried when they are first needed.

    Args:
        daemon: the MPS daemon, running, whose clients the probes are.
        gpu_id: CUDA's index of the GPU.
        cache: file to keep verdicts in.
    """

    def __init__(self, daemon: MPSDaemon, gpu_id: int, cache: Path) -> None:
        self._daemon, self._gpu_id, self._cache = daemon, gpu_id, cache
        self._key = machine_key()
        self._silent: set[int] = set()  # not tried twice in one start

    def verdicts(self, shares: Iterable[int]) -> Verdicts:
        """Whether each of the shares computes right, without those that do not say."""
        wanted = list(shares)
        known = self._load()
        missing = [s for s in wanted if s not in known and s not in self._silent]
        if missing:
            logger.info("Trying which shares of the GPU compute right: %s", missing)
            found = self._probe(missing)
            self._store(found)
            known |= found
        return {share: known[share] for share in wanted if share in known}

    def are_right(self, shares: Iterable[int]) -> bool:
        """Whether all of the shares compute right."""
        wanted = set(shares)
        return wanted <= {share for share, ok in self.verdicts(wanted).items() if ok}

    def _probe(self, shares: list[int]) -> Verdicts:
        said, complaint = self._listen(shares)
        found = {one["share"]: one["error"] <= WORST_ERROR for one in said}
        silent = [share for share in shares if share not in found]
        self._silent.update(silent)
        if silent:
            logger.warning(
                "Not used, and tried again at the next start: no answer%s: %s",
                _at(silent),
                complaint,
            )
        return found

    def _listen(self, shares: list[int]) -> tuple[list[dict[str, Any]], str]:
        """The probe's answers, counted as they come, and what it complained of."""
        environment = {**os.environ, **self._daemon.client_environment(100)}
        program = [sys.executable, matrix_products.__file__, str(self._gpu_id)]
        said: list[dict[str, Any]] = []
        start_progress.enter(_trying(0, len(shares)))
        with tempfile.TemporaryFile("w+") as errors:
            probe = subprocess.Popen(
                [*program, *map(str, shares)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            alarm = threading.Timer(PROBE_TIMEOUT_S, probe.kill)
            alarm.start()
            with probe:  # waits for its end
                for line in probe.stdout or ():
                    said.append(json.loads(line))
                    start_progress.enter(_trying(len(said), len(shares)))
            alarm.cancel()
            if probe.returncode == -signal.SIGKILL:
                return said, f"no answer in {PROBE_TIMEOUT_S:.0f} s"
            errors.seek(0)
            return said, errors.read()[-SHOWN_CHARACTERS:]

    def _load(self) -> Verdicts:
        try:
            kept = self._kept()[self._key]
            return {int(share): bool(right) for share, right in kept.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _kept(self) -> dict[str, Any]:
        """By machine: hosts of other kinds may share this user's cache."""
        try:
            kept = json.loads(self._cache.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _store(self, found: Verdicts) -> None:
        """Add verdicts to those that are kept."""
        if not found:
            return
        try:
            self._cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept = {**self._kept(), self._key: {**self._load(), **found}}
            with tempfile.NamedTemporaryFile(
                "w", dir=self._cache.parent, delete=False, encoding="utf-8"
            ) as fresh:
                json.dump(kept, fresh)
            os.replace(fresh.name, self._cache)
        except OSError as error:
            logger.warning("The shares that compute right are not kept: %s", error)


def _trying(done: int, total: int) -> str:
    bar = "#" * done + "." * (total - done)
    return f"trying which shares of the GPU compute right [{bar}] {done} of {total}"


def machine_key() -> str:
    """GPU models, driver, torch and cuBLAS: what the verdicts depend on."""
    root = Path("/proc/driver/nvidia")
    models = {_model(path) for path in sorted(root.glob("gpus/*/information"))}
    driver = _text(root / "version").partition("\n")[0]
    libraries = sorted(
        f"{d.metadata['Name']} {d.version}"
        for d in importlib.metadata.distributions()
        if str(d.metadata["Name"]).startswith(("torch", "nvidia-cublas"))
    )
    return " | ".join([*sorted(models), driver, *libraries])


def default_cache() -> Path:
    """Where verdicts are kept for this user."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "sglang-semi-pd" / "right-shares.json"


def _model(information: Path) -> str:
    lines = _text(information).splitlines()
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("Model")), ""
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
