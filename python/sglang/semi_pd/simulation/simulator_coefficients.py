# SPDX-License-Identifier: Apache-2.0
"""What the simulator knows of a GPU and a model: step times, shares, interference."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from sglang.semi_pd.control.split_offer import SplitOffer, WorkerSpeeds
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.simulation.forwards import RULES
from sglang.semi_pd.sm_allocation import SMAllocation

BUILTIN = Path(__file__).parent / "calibrations" / "h200_llama3_8b.json"
OFFER_KV_TOKENS = 96_000
"""A decode step's speed is offered as it is over so much KV (64 times 1500 tokens)."""


@dataclass(frozen=True, slots=True)
class StepFactors:
    """How many times longer a worker's step takes than alone on the whole GPU."""

    prefill_alone: float
    prefill_beside_decode: float
    decode_alone: float
    decode_beside_prefill: float
    decode_kv_beside_prefill: float


@dataclass(frozen=True, slots=True)
class SimulatorCoefficients:
    """Measured step times of one model on one instance.

    ``builtin`` is the 8B shape on one H200. A step on the whole GPU takes

        prefill: step + tokens * (per_token + per_context_token * context before it)

    where ``step`` is the host's, launching kernels: no split changes it;

        decode:  step + requests * per_request + KV tokens * per_kv_token

    all in seconds. ``*_speed`` are (percentage, speed relative to 100 %) of a worker
    that runs alone under a cap. ``interference`` has lines (prefill percentage, decode
    percentage, prefill factor, decode factor, KV factor): step time of each while both
    run, relative to alone on the whole GPU. The last is of the part of a decode step
    that grows with KV tokens; a line without it has one factor for the whole step.

    Args:
        chunk_tokens: ``--chunked-prefill-size``; None if the server was given none.
        forward_rule: how prefill's forwards are filled, of ``forwards.RULES``; a server
            of before decision 19 filled them as SGLang does.
        max_decode_batch: most requests in one decode step.
        kv_capacity_tokens: KV cache size, tokens.
        request_overhead_s: tokenising and transport before the first token.
        transport_s_per_stream: how much longer that takes for each running request.
        provenance: what was measured, on what, and what was not.
    """

    prefill_step_s: float
    prefill_s_per_token: float
    prefill_s_per_context_token: float
    decode_step_s: float
    decode_s_per_request: float
    decode_s_per_kv_token: float
    prefill_speed: tuple[tuple[float, float], ...]
    decode_speed: tuple[tuple[float, float], ...]
    interference: tuple[tuple[float, ...], ...]
    chunk_tokens: int | None
    max_decode_batch: int
    kv_capacity_tokens: int
    request_overhead_s: float
    provenance: str
    transport_s_per_stream: float = 0.0
    forward_rule: str = "prefill"

    def factors(self, allocation: SMAllocation) -> StepFactors:
        """Return the step factors under a split."""
        prefill = allocation.prefill_percentage
        decode = allocation.decode_percentage
        beside = self._beside(allocation)
        return StepFactors(
            prefill_alone=1.0 / _speed(self.prefill_speed, prefill),
            prefill_beside_decode=beside[0],
            decode_alone=1.0 / _speed(self.decode_speed, decode),
            decode_beside_prefill=beside[1],
            decode_kv_beside_prefill=beside[2],
        )

    def offers(self, allocations: Iterable[SMAllocation]) -> tuple[SplitOffer, ...]:
        """Return the splits with their speeds, for the controller to choose from."""
        return tuple(self._offer(allocation) for allocation in allocations)

    def _offer(self, allocation: SMAllocation) -> SplitOffer:
        factors = self.factors(allocation)
        fixed_s = self.decode_step_s
        kv_s = self.decode_s_per_kv_token * OFFER_KV_TOKENS
        beside_s = fixed_s * factors.decode_beside_prefill
        beside_s += kv_s * factors.decode_kv_beside_prefill
        speeds = WorkerSpeeds(
            prefill_beside=1 / factors.prefill_beside_decode,
            prefill_alone=1 / factors.prefill_alone,
            decode_beside=(fixed_s + kv_s) / beside_s,
            decode_alone=1 / factors.decode_alone,
        )
        return SplitOffer(allocation, speeds)

    def _beside(self, allocation: SMAllocation) -> tuple[float, float, float]:
        """Interpolate the interference table.

        Step time is taken as 1 / normalised share (the paper's Eq. 1) times a
        correction, and only the correction is interpolated, by the inverse
        fourth power of the distance: splits far from the table stay sensible.
        """
        share = (allocation.prefill_share, allocation.decode_share)
        shares = np.array([share[0], share[1], share[1]])
        if not self.interference:
            prefill, decode, kv = 1 / shares
            return float(prefill), float(decode), float(kv)
        # A line of four has one decode factor, for KV too.
        lines = [(*line, line[3])[:5] for line in self.interference]
        table = np.array(lines, dtype=float)
        caps, factors = table[:, :2], table[:, 2:]
        normalised = caps / np.maximum(100.0, caps.sum(axis=1))[:, None]
        corrections = factors * normalised[:, (0, 1, 1)]
        here = (allocation.prefill_percentage, allocation.decode_percentage)
        distance2 = ((caps - here) ** 2).sum(axis=1)
        weights = 1.0 / (distance2**2 + 1e-6)
        prefill, decode, kv = (weights @ corrections) / weights.sum() / shares
        return float(prefill), float(decode), float(kv)

    def as_dict(self) -> dict[str, object]:
        """Return the coefficients as JSON can hold them."""
        return asdict(self)

    @classmethod
    def builtin(cls) -> SimulatorCoefficients:
        """Return the calibration that comes with the package."""
        return cls._of(_read(BUILTIN))

    @classmethod
    def load(cls, path: Path) -> SimulatorCoefficients:
        """Read a JSON object; names it lacks are those of ``builtin``.

        Raises:
            ConfigError: the file is no calibration.
        """
        known = {field.name for field in fields(cls)}
        try:
            values = _read(path)
            unknown = sorted(set(values) - known)
            if unknown:
                raise ValueError(f"unknown names {unknown}")
            loaded = cls._of({**_read(BUILTIN), **values})
            loaded.offers([SMAllocation(50, 50)])  # words where numbers belong
            return loaded
        except (OSError, ValueError, TypeError, ArithmeticError, LookupError) as error:
            raise ConfigError(
                f"{path} is not a calibration",
                why=str(error),
                mend=f"write a JSON object with names among {sorted(known)}",
            ) from error

    @classmethod
    def _of(cls, values: dict[str, Any]) -> SimulatorCoefficients:
        for name in ("prefill_speed", "decode_speed", "interference"):
            values[name] = tuple(tuple(line) for line in values[name])
        if values.get("forward_rule", "prefill") not in RULES:
            raise ValueError(f"forward_rule is not one of {sorted(RULES)}")
        return cls(**values)


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _speed(curve: tuple[tuple[float, float], ...], percentage: int) -> float:
    """Interpolate a relative speed; no SMs, no speed."""
    caps, speeds = zip((0.0, 0.0), *curve, strict=True)
    return float(np.interp(percentage, caps, speeds))
