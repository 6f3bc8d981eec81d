#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""See it work: a tiny model, a real server, six streams, and a tidy stop.

    python examples/semi_pd/demo.py             # what `make demo` runs
    python examples/semi_pd/demo.py --compare   # also how long plain SGLang takes

Needs no GPU and no download. The model's weights are random, so its text means
nothing; TTFT and TPOT say that streaming works here, not how fast Semi-PD is.
Exit code 0 means that everything below was seen to hold.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import psutil
from server_process import ServerFailedError, ServerProcess
from streaming import Stream, stream_all, table

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".demo"
ROLES = ("resident", "prefill", "decode")
OUTPUT_TOKENS = 32
SENTENCE = "A long prompt makes everybody else wait, and the even pace is lost. "
PROMPTS = [
    "Where does the river meet the sea? " + SENTENCE * n for n in (0, 2, 5, 10, 20, 40)
]
INTERRUPTED = 130


class Demo:
    """The steps of the demonstration, and what went wrong on the way."""

    def __init__(self, model: Path, flags: list[str]) -> None:
        self._model = model
        self._flags = flags
        self.problems: list[str] = []

    def run(self) -> float:
        """Serve, look and stop; returns the seconds until the server was ready."""
        flags = ["--enable-semi-pd-coordinator", *self._flags]
        log = PLACE / "server.log"
        with ServerProcess(self._model, flags, log=log) as server:
            self._start(server)
            self._say("6 concurrent streaming requests")
            streams = stream_all(server.url, PROMPTS, max_new_tokens=OUTPUT_TOKENS)
            print(table(streams))
            self._check_streams(streams)
            print(f"text of request 1: {streams[0].text!r}")
            self._say("processes")
            status = server.get("/semi_pd/status")
            self._show_processes(server, status)
            self._say("split and memory")
            self._show_status(status)
            self._stop(server)
        return server.ready_s

    def start_plain(self) -> float:
        """Start plain SGLang with the same flags; returns its ready time, seconds."""
        log = PLACE / "plain.log"
        with ServerProcess(self._model, self._flags, log=log) as server:
            self._start(server)
            return server.ready_s

    def _start(self, server: ServerProcess) -> None:
        self._say(f"starting: {server.command}")
        print(f"   log: {_shown(server.log)}")
        server.wait_ready(lambda phase, at_s: print(f"{at_s:6.1f} s  {phase}"))
        print(f"{server.ready_s:6.1f} s  ready: {server.url}/health answers 200")

    def _check_streams(self, streams: list[Stream]) -> None:
        for place, one in enumerate(streams, start=1):
            if one.output_tokens != OUTPUT_TOKENS or not one.text:
                self._fault(f"request {place} ended after {one.output_tokens} tokens")

    def _show_processes(self, server: ServerProcess, status: dict[str, Any]) -> None:
        print("    pid  cores       RSS MiB  PSS MiB  process")
        for process in server.processes():
            try:
                memory, cores = process.memory_full_info(), process.cpu_affinity()
                name = _title(process)
            except psutil.Error:
                continue
            shown = ",".join(map(str, cores))
            print(
                f"{process.pid:7d}  {shown:10s}{memory.rss >> 20:8d}"
                f"{memory.pss >> 20:9d}  {name}"
            )
        print("   PSS counts a page shared by n processes as 1/n of a page in each.")
        components = status["components"]
        for role in ROLES:
            one = components.get(f"{role}_TP0")
            if not (one and one["is_alive"] and psutil.pid_exists(one["pid"])):
                self._fault(f"the status shows no living {role} process")

    def _show_status(self, status: dict[str, Any]) -> None:
        split = status["process_rotation_status"]["current_sm_allocation"]
        shares = (split["prefill_percentage"], split["decode_percentage"])
        print(f"split: prefill {shares[0]} %, decode {shares[1]} %")
        usage = status["unified_memory_status"]["memory_usage"]
        print(
            f"KV cache: {usage['total_memory_bytes'] / 2**20:.1f} MiB, peak "
            f"{usage['peak_blocks']} of {usage['total_blocks']} blocks, now "
            f"{usage['allocated_blocks']} in use by requests"
        )
        if not status["is_running"]:
            self._fault("the status says that the instance is not running")
        if usage["audits_failed"]:
            self._fault(f"{usage['audits_failed']} audits of the memory failed")

    def _stop(self, server: ServerProcess) -> None:
        self._say("stopping with SIGTERM")
        code, left = server.stop(), server.leftovers()
        print(f"exit code {code}; left behind: {', '.join(left) or 'nothing'}")
        if code:
            self._fault(f"the server ended with exit code {code}")
        if left:
            self._fault(f"left behind: {', '.join(left)}")

    def _fault(self, problem: str) -> None:
        self.problems.append(problem)

    @staticmethod
    def _say(step: str) -> None:
        print(f"\n== {step}", flush=True)


def make_model(model: Path) -> None:
    """Write the tiny model unless it is there."""
    if not (model / "config.json").exists():
        script = ROOT / "scripts" / "make_tiny_model.py"
        subprocess.run([sys.executable, str(script), str(model)], check=True)


def describe_host() -> str:
    """What the figures were measured on."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = psutil.virtual_memory().total / 2**30
    return (
        f"{cores} cores, {memory_gib:.0f} GiB, {platform.machine()}, "
        f"Python {platform.python_version()}"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", type=Path, default=PLACE / "tiny-llama")
    parser.add_argument(
        "--compare", action="store_true", help="also start plain SGLang, for its time"
    )
    parser.add_argument(
        "--flags", default="--dtype=float32", help="flags of both servers"
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Exit code 0 if all went well, 1 if not, 130 after Ctrl-C."""
    options = parse()
    signal.signal(signal.SIGTERM, _interrupt)
    demo = Demo(options.model_path, shlex.split(options.flags))
    print(f"Semi-PD demonstration on {describe_host()}")
    try:
        make_model(options.model_path)
        ready_s = demo.run()
        if options.compare:
            plain_s = demo.start_plain()
            print(
                f"\nready after: Semi-PD {ready_s:.1f} s, "
                f"plain SGLang {plain_s:.1f} s, ratio {ready_s / plain_s:.2f}"
            )
    except KeyboardInterrupt:
        print("\ninterrupted; the server has been stopped", file=sys.stderr)
        return INTERRUPTED
    except (ServerFailedError, OSError) as error:
        demo.problems.append(str(error))
    for problem in demo.problems:
        print(f"PROBLEM: {problem}", file=sys.stderr)
    if not demo.problems:
        print(f"\nEverything worked; the server was ready after {ready_s:.1f} s.")
    return 1 if demo.problems else 0


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _title(process: psutil.Process) -> str:
    title = " ".join(process.cmdline()).strip()
    return title if title.startswith("sglang::") else _known_names(title)


def _known_names(title: str) -> str:
    """Short names for processes that carry no title of their own."""
    for part, name in (
        ("launch_server", "main: HTTP server, tokenizer, coordinator"),
        ("forkserver", "fork server"),
        ("resource_tracker", "multiprocessing's resource tracker"),
    ):
        if part in title:
            return name
    return title[:60]


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    sys.exit(main())
