#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A fleet on one host: N Semi-PD instances behind SGLang's gateway.

    pip install '.[fleet]'          # in the clone
    python examples/semi_pd/fleet/fleet.py --model-path MODEL --instances 3 \\
        --port 30000 -- --enable-semi-pd --max-total-tokens 8192

Clients use the gateway's port. ``{index}`` in a flag becomes the instance's number, for
what instances must not share: ``--base-gpu-id {index}``. An instance that ends is
started again. ``rolling_restart.py``, or SIGHUP, restarts all, one after the other;
Ctrl-C lets what is under way finish and ends everything.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gateway as sglang_gateway
from gateway import Gateway, GatewayError
from server_process import ServerFailedError, ServerProcess, free_port

STATE_FILE = "fleet.json"
POLL_S = 0.5
GRACE_S = 600.0
READY_TIMEOUT_S = 1800.0
GATEWAY_TIMEOUT_S = 300.0


class Instance:
    """One instance; it keeps its port when it is started again."""

    def __init__(self, index: int, model: Path, flags: list[str], place: Path) -> None:
        self.name = f"instance-{index}"
        self._server = ServerProcess(
            model,
            [flag.replace("{index}", str(index)) for flag in flags],
            log=place / f"{self.name}.log",
        )
        self.url = self._server.url

    def start(self) -> None:
        """Spawn it; does not wait."""
        self._server.__enter__()

    def wait_ready(self) -> None:
        """Wait until it serves.

        Raises:
            ServerFailedError: it ended instead, with the end of its log.
        """
        self._server.wait_ready(timeout_s=READY_TIMEOUT_S)

    def stop(self) -> None:
        """Let it finish what is under way, and end it; nothing is left behind."""
        code = self._server.stop(GRACE_S)
        left = self._server.leftovers()
        if code or left:
            say(f"{self.name} ended with exit code {code}, left: {left or 'nothing'}")

    @property
    def pid(self) -> int:
        return self._server.pid

    @property
    def has_ended(self) -> bool:
        return self._server.exit_code is not None


class Fleet:
    """The instances and their gateway; ``place`` takes their logs and the state."""

    def __init__(
        self, model: Path, flags: list[str], *, count: int, port: int, place: Path
    ) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self._place = place
        self._gateway_command = sglang_gateway.command()
        self._port = port
        self.gateway = Gateway(f"http://127.0.0.1:{port}")
        self.instances = [Instance(n, model, flags, place) for n in range(count)]
        self._rolling_restarts = 0
        self._exit = ExitStack()

    def start(self) -> None:
        """Start everything; returns when every instance gets requests."""
        for instance in self.instances:
            instance.start()
            self._exit.callback(instance.stop)
        for instance in self.instances:
            instance.wait_ready()
            say(f"{instance.name} serves on {instance.url}")
        self._start_gateway()
        self._tell("serving")
        say(f"the fleet serves on {self.gateway.url}; logs are in {self._place}")

    def restart_ended(self) -> None:
        """Start again what ended by itself; the gateway finds it healthy later."""
        for instance in self.instances:
            if instance.has_ended:
                say(f"{instance.name} has ended; starting it again")
                instance.stop()
                instance.start()
                self._tell("serving")

    def rolling_restart(self) -> None:
        """Restart one instance after the other; no request fails over it.

        The gateway sends an instance nothing from before it is told to end until it
        serves again. One that does not come up ends it there: the others go on.
        """
        outcome = "serving"
        for instance in self.instances:
            self._tell(f"restarting {instance.name}")
            self.gateway.remove(instance.url)
            instance.stop()
            instance.start()
            try:
                instance.wait_ready()
            except ServerFailedError as error:
                outcome = f"{instance.name} did not come up"
                say(f"{outcome}; the others are left as they are: {error}")
                break
            self.gateway.add(instance.url)
            say(f"{instance.name} was restarted")
        self._rolling_restarts += 1
        self._tell(outcome)

    def stop(self) -> None:
        """End the gateway, then every instance."""
        self._exit.close()
        with suppress(FileNotFoundError):
            (self._place / STATE_FILE).unlink()

    def _start_gateway(self) -> None:
        arguments = ["--host", "127.0.0.1", "--port", str(self._port)]
        arguments += ["--prometheus-host", "127.0.0.1"]
        arguments += ["--prometheus-port", str(free_port())]
        arguments += [word for pair in sglang_gateway.SETTINGS.items() for word in pair]
        arguments += ["--worker-urls", *(one.url for one in self.instances)]
        with (self._place / "gateway.log").open("wb") as log:
            process = subprocess.Popen(
                [*self._gateway_command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._exit.callback(process.wait)
        self._exit.callback(process.terminate)
        deadline = time.monotonic() + GATEWAY_TIMEOUT_S
        while len(self.gateway.healthy()) < len(self.instances):
            if process.poll() is not None or time.monotonic() > deadline:
                raise GatewayError(f"no gateway: see {self._place / 'gateway.log'}")
            time.sleep(POLL_S)

    def _tell(self, state: str) -> None:
        """Write the state, for `rolling_restart.py` and for whoever looks."""
        told = {
            "pid": os.getpid(),
            "gateway": self.gateway.url,
            "state": state,
            "rolling_restarts": self._rolling_restarts,
            "instances": [
                {"name": one.name, "url": one.url, "pid": one.pid}
                for one in self.instances
            ],
        }
        new = self._place / f"{STATE_FILE}.new"
        new.write_text(json.dumps(told, indent=2))
        new.rename(self._place / STATE_FILE)


class Signals:
    """What the operator asked for; a signal is only noted, the loop acts on it."""

    def __init__(self) -> None:
        self.restart = False
        signal.signal(signal.SIGHUP, self._note_restart)
        signal.signal(signal.SIGTERM, self._end)

    def _note_restart(self, number: int, frame: FrameType | None) -> None:
        self.restart = True

    @staticmethod
    def _end(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--instances", type=int, default=3)
    parser.add_argument("--port", type=int, default=30000, help="of the gateway")
    parser.add_argument("--place", type=Path, default=Path(".fleet"))
    parser.add_argument("flags", nargs="*", help="of every instance, after --")
    return parser.parse_args()


def main() -> int:
    args = parse()
    signals = Signals()
    fleet = None
    try:
        fleet = Fleet(
            args.model_path,
            args.flags or ["--enable-semi-pd"],
            count=args.instances,
            port=args.port,
            place=args.place.resolve(),
        )
        fleet.start()
        while True:
            fleet.restart_ended()
            if signals.restart:
                signals.restart = False
                fleet.rolling_restart()
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        say("ending")
        return 0
    except (GatewayError, ServerFailedError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if fleet is not None:
            fleet.stop()


if __name__ == "__main__":
    sys.exit(main())
