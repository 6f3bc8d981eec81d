# SPDX-License-Identifier: Apache-2.0
"""What ``shifting.py`` measures of one server, step by step."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import aiohttp
import shifting_report
from controller_cost import interval, round_ms
from loads import Request
from records import Slo, attainment
from shifting_client import Flight, Server, send_all
from shifting_load import DECODE_HEAVY, PREFILL_HEAVY, Prompts, Stretch, arrivals
from shifting_probe import PREFILL_LOAD, Probes, within

RUNS = 3.8
"""So many whole runs are to fit into the time that is left after the probes."""
SHORTEST_RUN_S = 40.0
"""With less time left a split that stays is not begun."""
OUT_OF_TIME = "not completed, out of time"
CLEARLY_WORSE = 0.1
"""A split that stays is given up once it must end so far below the best of those before
it: the controller is compared with the best one and this much more."""


class Trial:
    """What is measured of one server, kept in one file."""

    def __init__(self, options: argparse.Namespace, server: Server) -> None:
        self._options, self._server = options, server
        self._deadline = options.deadline
        self._prompts = Prompts(options.vocabulary, options.seed)
        self._parts = [
            part.shrunk(options.shrink) for part in (PREFILL_HEAVY, DECODE_HEAVY)
        ]
        self._slo = Slo("both", options.slo_ttft)
        self.found: dict[str, Any] = {"options": _plain(options), "runs": []}

    def run(self) -> None:
        """All of it, in the order of what matters most."""
        self._warm_up()
        requests = self.recall() if self._options.more else self._set_up()
        runs = {run["name"]: run["attainment"] or 0.0 for run in self.found["runs"]}
        if "controller" not in runs:
            self._controlled(requests)
        best = max([0.0, *(runs[name] for name in runs if name != "controller")])
        for split in [one for one in self._options.static if one not in runs]:
            if self._left() < SHORTEST_RUN_S:
                self._say(f"{split}: not begun, no time is left")
                continue
            best = max(best, self._static(split, requests, best))

    def _set_up(self) -> list[Request]:
        rates = self._probe()
        self._cost()
        requests = arrivals(self._stretches(*rates), self._options.seed)
        self.found["requests"] = len(requests)
        return requests

    def recall(self) -> list[Request]:
        """The load and targets of an earlier run; what it completed is not repeated."""
        options = self._options
        path = options.out / shifting_report.FILE
        earlier = json.loads(path.read_text(encoding="utf-8"))
        runs = [run for run in earlier["runs"] if run.get("stopped") != OUT_OF_TIME]
        self.found |= earlier | {"options": _plain(options), "runs": runs}
        self._slo = Slo("both", **earlier["slo"])
        options.phase_seconds = earlier["phase_s"]
        options.edge_seconds = options.least_edge_seconds = earlier["edge_s"]
        rates = earlier["rates"]
        stretches = self._stretches(rates["prefill_heavy"], rates["decode_heavy"])
        requests = arrivals(stretches, options.seed)
        if len(requests) != earlier["requests"]:
            raise ValueError("--more: --seed or --shrink is another than it was")
        return requests

    def _stretches(self, prefill_rate: float, decode_rate: float) -> list[Stretch]:
        prefill, decode = self._parts
        edge_s = self._edge_s()
        self._keep(
            edge_s=edge_s,
            phase_s=self._options.phase_seconds,
        )
        return [
            Stretch(decode, decode_rate, edge_s),
            Stretch(prefill, prefill_rate, self._options.phase_seconds),
            Stretch(decode, decode_rate, edge_s),
        ]

    def _edge_s(self) -> float:
        """As long as wanted, or as time is left for three whole runs and a part."""
        options = self._options
        run_s = self._left() / RUNS - options.drain
        return float(
            min(
                options.edge_seconds,
                max(options.least_edge_seconds, (run_s - options.phase_seconds) / 2),
            )
        )

    def _warm_up(self) -> None:
        """Each split's first products and kernels are slow; none is measured."""
        first = [Request(0.0, self._parts[0].input_len, 2)]
        # A server without a warm-up of its own moves no split before its first request.
        send_all(self._server, first, self._prompts.draw, drain_s=60.0)
        for split in dict.fromkeys([*self._options.static, *self._options.favouring]):
            self._server.move(split)
            for part in self._parts:
                shape = [Request(0.0, part.input_len, 16)] * 4
                send_all(self._server, shape, self._prompts.draw, drain_s=30.0)
        self._say("warm")

    def _probe(self) -> tuple[float, float]:
        """Set the TPOT target; return the rates of both parts, per second."""
        options, (prefill, decode) = self._options, self._parts
        probes = Probes(
            self._server,
            self._prompts,
            favouring=tuple(options.favouring),
            ttft_target_ms=options.slo_ttft,
            seconds=options.probe_seconds,
            seed=options.seed,
        )
        found = probes.of(prefill, decode)
        self._slo = Slo("both", options.slo_ttft, found.tpot_target_ms)
        decode_rate = within(found.wanted_rate, found.tokens_per_s, decode)
        prefill_rate = PREFILL_LOAD * found.tokens_per_s / prefill.input_len
        self._keep(
            slo={"ttft_ms": self._slo.ttft_ms, "tpot_ms": self._slo.tpot_ms},
            rates={"prefill_heavy": prefill_rate, "decode_heavy": decode_rate},
            probe={
                "prompt_tokens_per_s": found.tokens_per_s,
                "decode_levels": [asdict(level) for level in found.levels],
                "decode_rate_wanted": found.wanted_rate,
                "records": [[asdict(one) for one in run.records] for run in found.runs],
            },
        )
        levels = "; ".join(
            f"{one.streams} streams {one.streams / one.stays_s:.2f}/s, "
            f"TTFT {one.ttft_ms:.0f} and TPOT {one.tpot_ms:.2f} ms"
            for one in found.levels
        )
        self._say(
            f"capacity {found.tokens_per_s:.0f} tokens/s; TPOT {self._slo.tpot_ms:.2f} "
            f"ms; prefill-heavy {prefill_rate:.2f}/s, decode-heavy "
            f"{decode_rate:.2f}/s ({levels})"
        )
        return prefill_rate, decode_rate

    def _cost(self) -> None:
        """Time between tokens with the controller off and on, in turns."""
        options = self._options
        measured = SimpleNamespace(
            host="127.0.0.1",
            input=64,
            streams=16,
            tokens=max(16, 192 // options.shrink),
        )

        async def rounds() -> list[tuple[float, float]]:
            timeout, pairs = aiohttp.ClientTimeout(total=None), []
            async with aiohttp.ClientSession(timeout=timeout) as http:
                for number in range(options.cost_rounds + 1):
                    took = {}
                    modes = ["off", "advise"]
                    for mode in modes if number % 2 else modes[::-1]:
                        self._server.control(mode=mode)
                        took[mode] = await round_ms(
                            http, options.port, measured, number
                        )
                    if number:  # the first warms up
                        pairs.append((took["off"], took["advise"]))
            return pairs

        pairs = asyncio.run(rounds())
        self._server.control(mode="off")
        off, on = (statistics.median(column) for column in zip(*pairs, strict=True))
        self._keep(
            controller_cost={
                "off_ms": off,
                "on_ms": on,
                "difference_95": interval(pairs),
                "rounds": pairs,
            }
        )
        self._say(f"decode step: controller off {off:.3f} ms, on {on:.3f} ms")

    def _controlled(self, requests: Sequence[Request]) -> None:
        self._server.move(self._options.static[0])
        targets = {
            "ttft_target_ms": self._slo.ttft_ms,
            "tpot_target_ms": self._slo.tpot_ms,
        }
        self._server.control(mode="follow", **targets)
        try:
            self._serve("controller", requests, never)
        finally:
            self._server.control(mode="off")

    def _static(self, split: str, requests: Sequence[Request], best: float) -> float:
        self._server.move(split)
        most_misses = (1 - best + CLEARLY_WORSE) * len(requests)
        return self._serve(split, requests, self._gives_up(most_misses))

    def _gives_up(self, most_misses: float) -> Callable[[list[Flight], float], bool]:
        looked_s = 0.0

        def is_over(flights: list[Flight], now: float) -> bool:
            nonlocal looked_s
            if now - looked_s < 1.0:
                return False
            looked_s = now
            missed = sum(flight.has_missed(self._slo, now) for flight in flights)
            return missed > most_misses or self._left() < 0

        return is_over

    def _serve(
        self,
        name: str,
        requests: Sequence[Request],
        is_over: Callable[[list[Flight], float], bool],
    ) -> float:
        """Return the attainment, or 0 if the run was given up."""
        run = send_all(
            self._server,
            requests,
            self._prompts.draw,
            drain_s=self._options.drain,
            is_over=is_over,
        )
        # Out of time says nothing of the split: it might have been the best.
        why = OUT_OF_TIME if self._left() < 0 else "given up"
        self._server.settle()
        records = run.records
        if not run.was_given_up:
            share, at_most = attainment(records, self._slo), None
        else:
            missed = sum(one.has_missed(self._slo, run.ended_s) for one in run.flights)
            share, at_most = 0.0, 1 - missed / len(requests)
        self.found["runs"].append(
            {
                "name": name,
                "attainment": share if at_most is None else None,
                "at_most": at_most,
                "stopped": why if at_most is not None else None,
                "records": [asdict(one) for one in records],
                "samples": run.samples,
            }
        )
        self._keep()
        said = f"{share:.1%}" if at_most is None else f"at most {at_most:.1%}, {why}"
        self._say(f"{name}: {said}, {len(records)} of {len(requests)} requests")
        return share

    def _left(self) -> float:
        return float(self._deadline - time.monotonic())

    def _keep(self, **found: Any) -> None:
        self.found |= found
        path = self._options.out / shifting_report.FILE
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(self.found), encoding="utf-8")
        partial.replace(path)

    def _say(self, text: str) -> None:
        print(f"[{self._left():5.0f} s left] {text}", flush=True)


def never(flights: list[Flight], now: float) -> bool:
    """A run that is served to its end."""
    return False


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) for name, value in vars(options).items()}
