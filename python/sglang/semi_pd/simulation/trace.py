# SPDX-License-Identifier: Apache-2.0
"""Request traces for the simulator: recorded, or drawn at random."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sglang.semi_pd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Phase:
    """A load that lasts: requests per second, mean prompt and output, tokens."""

    rate: float
    input_length: int
    output_length: int

    @classmethod
    def parse(cls, text: str) -> Phase:
        """Read ``"7:4000:32"``: requests per second, prompt and output tokens."""
        try:
            rate, inputs, outputs = text.split(":")
            phase = cls(float(rate), int(inputs), int(outputs))
            if not (
                phase.rate > 0 and min(phase.input_length, phase.output_length) > 0
            ):
                raise ValueError("not positive")
        except ValueError as error:
            raise ConfigError(
                f"{text!r} is not a load",
                why="a load is written RATE:INPUT:OUTPUT",
                mend="write it like 7:4000:32",
            ) from error
        return phase


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival, one array element each.

    Args:
        arrival_s: when each request arrives, seconds, rising.
        input_length: prompt tokens.
        output_length: tokens generated, at least 1.
    """

    arrival_s: np.ndarray
    input_length: np.ndarray
    output_length: np.ndarray

    def __len__(self) -> int:
        return len(self.arrival_s)

    def part(self, index: int, of: int) -> Trace:
        """Return every ``of``-th request from ``index``: one instance's round robin."""
        chosen = slice(index, None, of)
        return Trace(
            self.arrival_s[chosen],
            self.input_length[chosen],
            self.output_length[chosen],
        )

    def scaled(self, rate: float) -> Trace:
        """Return the same requests with arrivals ``rate`` times as dense."""
        return Trace(self.arrival_s / rate, self.input_length, self.output_length)

    @classmethod
    def poisson(
        cls,
        rate: float,
        *,
        requests: int,
        input_length: int,
        output_length: int,
        seed: int = 0,
    ) -> Trace:
        """Draw Poisson arrivals at ``rate`` per second with random lengths.

        Lengths are log-normal with the given means and a coefficient of variation of
        0.5, at least one token.
        """
        random = np.random.default_rng(seed)
        sigma = np.sqrt(np.log(1.25))

        def lengths(mean: int) -> np.ndarray:
            drawn = random.lognormal(np.log(mean) - sigma**2 / 2, sigma, requests)
            return np.maximum(1, np.rint(drawn)).astype(np.int64)

        arrival_s = np.cumsum(random.exponential(1.0 / rate, requests))
        return cls(arrival_s, lengths(input_length), lengths(output_length))

    @classmethod
    def alternating(
        cls, phases: Sequence[Phase], *, phase_s: float, repeats: int, seed: int = 0
    ) -> Trace:
        """Draw Poisson arrivals from each phase in turn, ``phase_s`` seconds each."""
        parts = []
        for turn in range(repeats * len(phases)):
            phase = phases[turn % len(phases)]
            drawn = cls.poisson(
                phase.rate,
                requests=int(2 * phase.rate * phase_s) + 10,
                input_length=phase.input_length,
                output_length=phase.output_length,
                seed=seed * 10_000 + turn,
            )
            kept = drawn.arrival_s < phase_s
            parts.append(
                Trace(
                    drawn.arrival_s[kept] + turn * phase_s,
                    drawn.input_length[kept],
                    drawn.output_length[kept],
                )
            )
        return cls(
            np.concatenate([part.arrival_s for part in parts]),
            np.concatenate([part.input_length for part in parts]),
            np.concatenate([part.output_length for part in parts]),
        )

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read JSON lines with arrival_s, input_length and output_length."""
        rows: list[tuple[float, int, int]] = []
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(_read_row(path, number, line))
        if not rows:
            raise ConfigError(
                f"{path} holds no requests",
                why="every line is empty",
                mend="give one JSON object per request",
            )
        arrival_s, input_length, output_length = zip(*sorted(rows), strict=True)
        return cls(
            np.array(arrival_s, dtype=float),
            np.array(input_length, dtype=np.int64),
            np.array(output_length, dtype=np.int64),
        )


def _read_row(path: Path, number: int, line: str) -> tuple[float, int, int]:
    try:
        row = json.loads(line)
        fields = (row["arrival_s"], row["input_length"], row["output_length"])
        arrival_s, input_length, output_length = fields
        if not (arrival_s >= 0 and input_length >= 1 and output_length >= 1):
            raise ValueError("times are not negative, lengths are at least 1")
        return float(arrival_s), int(input_length), int(output_length)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}, line {number}, is not a request",
            why=f"{type(error).__name__}: {error}",
            mend='write {"arrival_s": 0.5, "input_length": 1024, "output_length": 256}',
        ) from error
