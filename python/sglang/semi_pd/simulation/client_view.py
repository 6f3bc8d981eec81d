# SPDX-License-Identifier: Apache-2.0
"""What the clients of a simulated instance would see of each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sglang.semi_pd.simulation.simulator import InstanceSimulator


def ttft_s(instance: InstanceSimulator) -> np.ndarray:
    """Return time to first token, seconds, tokenising and transport included.

    Requests and tokens pass through one event loop, which also carries every token of
    the running streams: it is a step's worth of them late.
    """
    costs = instance.coefficients
    carried_s = costs.transport_s_per_stream * instance.streams_at_first_token
    waited_s = instance.first_token_s - instance.trace.arrival_s
    return waited_s + costs.request_overhead_s + carried_s


def tpot_s(instance: InstanceSimulator) -> np.ndarray:
    """Return time per output token after the first; NaN for one-token outputs."""
    steps = instance.trace.output_length - 1
    decode_s = instance.completion_s - instance.first_token_s
    return np.where(steps > 0, decode_s / np.maximum(1, steps), np.nan)


def worst_gap_s(instance: InstanceSimulator) -> np.ndarray:
    """Return each request's longest wait between two tokens; NaN without one."""
    ends_s = np.array(instance.step_ends_s)
    gaps_s = np.full(len(instance.trace), np.nan)
    done = np.flatnonzero(np.isfinite(instance.completion_s))
    done = done[instance.trace.output_length[done] > 1]
    if not len(done):
        return gaps_s
    first = instance.first_step[done]
    gaps_s[done] = ends_s[first] - instance.first_token_s[done]
    between_s = np.append(np.diff(ends_s), 0.0)
    last = first + instance.trace.output_length[done] - 2
    many = last > first
    bounds = np.column_stack((first[many], last[many])).ravel()
    longest_s = np.maximum.reduceat(between_s, bounds)[::2]
    gaps_s[done[many]] = np.maximum(gaps_s[done[many]], longest_s)
    return gaps_s
