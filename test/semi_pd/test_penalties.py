# SPDX-License-Identifier: Apache-2.0
"""Penalties of requests from another worker: exact, and counted without delay."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.upstream

VOCABULARY = 32
PROMPT = [3, 4]
ASKED: list[dict[str, float]] = [
    {"frequency_penalty": 0.3},
    {},
    {"presence_penalty": 0.7, "min_new_tokens": 3},
    {"repetition_penalty": 1.3},
]


class Batch:
    """Of SGLang's batch what penalties look at."""

    def __init__(self, reqs: list[Any]) -> None:
        from sglang.srt.sampling import penaltylib as upstream

        self.reqs, self.device = reqs, "cpu"
        kinds = {
            upstream.BatchedFrequencyPenalizer,
            upstream.BatchedMinNewTokensPenalizer,
            upstream.BatchedPresencePenalizer,
            upstream.BatchedRepetitionPenalizer,
        }
        orchestrator = upstream.BatchedPenalizerOrchestrator(VOCABULARY, self, kinds)  # type: ignore[arg-type]
        self.sampling_info = SimpleNamespace(penalizer_orchestrator=orchestrator)

    def logits(self) -> Any:
        """What penalties make of the same logits everywhere."""
        import torch

        logits = torch.linspace(-1, 1, VOCABULARY).repeat(len(self.reqs), 1)
        self.sampling_info.penalizer_orchestrator.apply(logits)
        return logits


def request(asked: dict[str, float], output_ids: list[int]) -> Any:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    req = Req("r", "", array("q", PROMPT), SamplingParams(**asked))  # type: ignore[arg-type]
    req.tokenizer = SimpleNamespace(additional_stop_token_ids=None, eos_token_id=1)
    req.output_ids.extend(output_ids)
    return req


def tokens(seed: int, count: int) -> list[int]:
    return [5 + (seed * 7 + n * n) % 20 for n in range(count)]


def copies_to_device(call: Any) -> int:
    """Tensors made of Python values in a call."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Count(TorchFunctionMode):
        made = 0

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.made += function is torch.tensor
            return function(*args, **(kwargs or {}))

    with Count() as count:
        call()
    return count.made


@pytest.mark.parametrize("newest_left_out", [0, 1])
def test_counts_are_those_of_one_scheduler(newest_left_out: int) -> None:
    """It counts the last token of the prompt at the first step, then each token."""
    import torch
    from sglang.semi_pd.workers.penalties import count_penalties

    steps = 40
    histories = [tokens(seed, steps) for seed in range(len(ASKED))]
    undivided = Batch([request(asked, []) for asked in ASKED])
    columns = zip(*([PROMPT[-1], *one] for one in histories), strict=True)
    for _, column in zip(range(steps - newest_left_out), columns, strict=False):
        orchestrator = undivided.sampling_info.penalizer_orchestrator
        orchestrator.cumulate_output_tokens(torch.tensor(column))

    pairs = zip(ASKED, histories, strict=True)
    adopted = Batch([request(*pair) for pair in pairs])
    count_penalties(adopted, newest_left_out=newest_left_out)  # type: ignore[arg-type]
    assert torch.equal(adopted.logits(), undivided.logits())


def test_nothing_is_counted_of_a_request_that_has_its_first_token_only() -> None:
    from sglang.semi_pd.workers.penalties import count_penalties

    fresh = request({"min_new_tokens": 1, "frequency_penalty": 0.5}, [5])
    adopted = Batch([fresh, request(ASKED[0], tokens(1, 9))])
    count_penalties(adopted, newest_left_out=1)  # type: ignore[arg-type]
    logits = adopted.logits()
    assert logits[0, 1] == float("-inf"), "it may end already"
    assert logits[0, PROMPT[-1]] > logits[1, PROMPT[-1]], "it is penalised"


def test_a_history_is_copied_once_and_only_where_it_counts() -> None:
    from sglang.semi_pd.workers.penalties import count_penalties

    def copies(length: int) -> int:
        batch = Batch([request(asked, tokens(1, length)) for asked in ASKED])
        return copies_to_device(lambda: count_penalties(batch, newest_left_out=1))  # type: ignore[arg-type]

    assert copies(500) == copies(5)
