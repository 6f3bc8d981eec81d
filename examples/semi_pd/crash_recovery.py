#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kill a worker while streams run, and watch the server carry on.

    python scripts/make_tiny_model.py .demo/tiny-llama
    python examples/semi_pd/crash_recovery.py --model-path .demo/tiny-llama

The same prompts are answered twice: undisturbed, and with SIGKILL for the decode worker
(--role prefill for the other one) in the middle. Clients see a pause, no error and no
other token. Exit code 0 means that this was so. --url uses a server that runs already,
on this machine: its worker is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from chosen_server import ChosenServer, parser, serve
from streaming import stream_all, table

TOKENS = 400
KILL_AFTER_S = 0.5
RECOVERY_TIMEOUT_S = 120.0
POLL_S = 0.1
PROMPTS = [f"Question {n}: why is the sky blue?" for n in range(1, 9)]


def kill(server: ChosenServer, role: str) -> None:
    """End a worker, and wait until another one serves in its place."""
    name = f"{role}_TP0"
    before = server.status()
    deaths = before["recovery_status"]["worker_deaths"]
    pid = before["components"][name]["pid"]
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    print(f"killed {name} (pid {pid})")
    while time.monotonic() - killed_s < RECOVERY_TIMEOUT_S:
        recovery = server.status()["recovery_status"]
        if recovery["worker_deaths"] > deaths and not recovery["is_recovering"]:
            pid = server.status()["components"][name]["pid"]
            took_s = time.monotonic() - killed_s
            print(f"{name} is pid {pid} now, {took_s:.1f} s later")
            return
        time.sleep(POLL_S)
    raise TimeoutError(f"no new {name} after {RECOVERY_TIMEOUT_S:.0f} s")


def main() -> int:
    """Exit code 0 if every client got the answer of an undisturbed run."""
    options = parser(__doc__, "crash_recovery")
    options.add_argument("--role", choices=("prefill", "decode"), default="decode")
    chosen = options.parse_args()
    with serve(chosen, ["--enable-semi-pd"]) as server:
        undisturbed = stream_all(server.url, PROMPTS, max_new_tokens=TOKENS)
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(
                stream_all, server.url, PROMPTS, max_new_tokens=TOKENS
            )
            time.sleep(KILL_AFTER_S)
            is_live = not running.done()
            kill(server, chosen.role)
            streams = running.result()
        print(table(streams))
        usage = server.status()["unified_memory_status"]["memory_usage"]
    is_same = [one.text for one in streams] == [one.text for one in undisturbed]
    print(f"killed while streams ran: {is_live}; same answers: {is_same}")
    print(f"audits of the memory that failed: {usage['audits_failed']}")
    return 0 if is_same and usage["audits_failed"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
