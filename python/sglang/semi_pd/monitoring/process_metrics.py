# SPDX-License-Identifier: Apache-2.0
"""SGLang's metrics of all processes, without what the dead among them leave behind.

SGLang's processes write their metrics into files of one directory, a few for each
process, which the main process adds up. Files outlast their process. What a dead one
counted did happen, so it stays in the sum; what it measured is no longer so.
"""

from __future__ import annotations

import glob
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

_RETIRED = "retired"
_GAUGE = "gauge"
_DEAD_STATES = ("Z", "X")


class ProcessMetrics(Collector):
    """What the processes of the instance export.

    With a directory of its own the instance folds the files of dead processes into one,
    so that their number does not grow with every rotation.

    Args:
        directory: SGLang's ``PROMETHEUS_MULTIPROC_DIR``.
        is_private: False where other servers may write there too: nothing is removed.
    """

    def __init__(self, directory: Path, *, is_private: bool) -> None:
        self._directory = directory
        self._is_private = is_private
        self._one_scrape = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """The sum over all processes; gauges of living ones only."""
        with self._one_scrape:
            living, dead = self._files()
            if dead and self._is_private:
                self._fold(dead)
                living, dead = self._files()
            counted = [path for path in dead if _type_of(path) != _GAUGE]
            return list(MultiProcessCollector.merge([*living, *counted]))

    def _files(self) -> tuple[list[str], list[str]]:
        """The files of living and of dead processes."""
        living: list[str] = []
        dead: list[str] = []
        for path in glob.glob(str(self._directory / "*.db")):
            pid = _pid_of(path)
            (living if pid == _RETIRED or is_alive(pid) else dead).append(path)
        return living, dead

    def _fold(self, dead: list[str]) -> None:
        """Add the counts of dead processes to the file of the retired."""
        by_type: dict[str, list[str]] = defaultdict(list)
        for path in dead:
            by_type[_type_of(path)].append(path)
        for kind, paths in by_type.items():
            if kind != _GAUGE:
                retired = self._directory / f"{kind}_{_RETIRED}.db"
                _add_up(retired, _values(paths))
            for path in paths:
                os.remove(path)


def is_alive(pid: str) -> bool:
    """Whether a process of that id runs; one that nobody waited for does not."""
    try:
        stat = Path("/proc", pid, "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in _DEAD_STATES


def _type_of(path: str) -> str:
    return os.path.basename(path).partition("_")[0]


def _pid_of(path: str) -> str:
    return os.path.basename(path).removesuffix(".db").rpartition("_")[2]


def _values(paths: list[str]) -> Iterator[tuple[str, float]]:
    for path in paths:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(path):
            yield key, value


def _add_up(path: Path, values: Iterable[tuple[str, float]]) -> None:
    total = MmapedDict(str(path))
    try:
        for key, value in values:
            total.write_value(key, total.read_value(key)[0] + value, 0.0)
    finally:
        total.close()
