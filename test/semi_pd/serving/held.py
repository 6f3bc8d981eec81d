# SPDX-License-Identifier: Apache-2.0
"""What a server's processes hold open, to tell what a trial has left behind."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import process_table
import psutil
from harness import Server

REPLACED = ("semi_pd_prefill", "semi_pd_decode")


def open_files(process: psutil.Process) -> Counter[str]:
    """How many descriptors of each kind a process has; files by name."""
    found: Counter[str] = Counter()
    directory = Path(f"/proc/{process.pid}/fd")
    for entry in os.listdir(directory):
        with suppress(FileNotFoundError):  # closed since
            found[os.readlink(directory / entry).split(":[")[0]] += 1
    return found


@dataclass(frozen=True)
class Held:
    """What the processes that outlive a worker hold open; what lies in /dev/shm.

    Of the latter, what no process beside the server has open, nor is named after one:
    others come and go.
    """

    descriptors: dict[str, Counter[str]]
    shared_memory: frozenset[str]

    @classmethod
    def by(cls, server: Server) -> Held:
        """Now."""
        mine = server.processes()
        staying = {
            process_table.title(process): process
            for process in mine
            if not any(role in process_table.title(process) for role in REPLACED)
        }
        pids = {process.pid for process in mine}
        others = [one for one in psutil.process_iter() if one.pid not in pids]
        theirs = {
            os.path.basename(name) for name in process_table.named_shared_memory(others)
        }
        shared = set(os.listdir("/dev/shm")) - theirs
        # Semaphores of joblib, which a resident has closed and keeps until it ends.
        numbers = {str(one.pid) for one in others}
        return cls(
            {title: open_files(process) for title, process in staying.items()},
            frozenset(one for one in shared if not numbers & set(one.split("-"))),
        )

    def beyond(self, before: Held) -> list[str]:
        """What is held that was not."""
        found = sorted(self.shared_memory - before.shared_memory)
        for title, files in self.descriptors.items():
            more = files - before.descriptors.get(title, Counter())
            if files.total() > before.descriptors.get(title, Counter()).total():
                found.append(f"{title[-60:]}: {dict(more)}")
        return found
