# SPDX-License-Identifier: Apache-2.0
"""A request goes on in another worker with the grammar and the room that it needs."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.upstream

VOCABULARY = ["0", "1", "2", "a", "b", "</s>"]
PATTERN = "[0-2][ab][0-2][ab]"


def xgrammar_of(pattern: str) -> Any:
    """SGLang's grammar of the backend that it takes on a GPU."""
    import xgrammar
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammar

    info = xgrammar.TokenizerInfo(VOCABULARY, stop_token_ids=[len(VOCABULARY) - 1])
    compiled = xgrammar.GrammarCompiler(info).compile_regex(pattern)
    matcher = xgrammar.GrammarMatcher(compiled)
    return XGrammarGrammar(matcher, len(VOCABULARY), compiled, None, pattern)


def allowed(grammar: Any) -> set[str]:
    """What may come next."""
    import xgrammar

    mask = xgrammar.allocate_token_bitmask(1, len(VOCABULARY))
    grammar.matcher.fill_next_token_bitmask(mask)
    return {one for n, one in enumerate(VOCABULARY) if int(mask[0, 0]) >> n & 1}


@pytest.mark.parametrize(
    ("tokens", "then"), [("0", "ab"), ("0a", "012"), ("0a1", "ab")]
)
def test_a_grammar_stands_behind_the_newest_token(tokens: str, then: str) -> None:
    from sglang.semi_pd.workers.continuation import accept_by_grammar

    req: Any = SimpleNamespace(grammar=xgrammar_of(PATTERN), to_finish=None)
    accept_by_grammar(req, [VOCABULARY.index(one) for one in tokens])
    assert allowed(req.grammar) == set(then)
    assert req.to_finish is None
    assert req.grammar.current_token is not None, "SGLang would add the newest again"


def test_a_token_that_the_grammar_refuses_ends_the_request_only() -> None:
    from sglang.semi_pd.workers.continuation import accept_by_grammar

    req: Any = SimpleNamespace(grammar=xgrammar_of(PATTERN), to_finish=None)
    accept_by_grammar(req, [VOCABULARY.index("0"), VOCABULARY.index("1")])
    assert req.to_finish.to_json()["type"] == "abort"


def test_room_for_a_resumed_request_is_for_its_tokens_too() -> None:
    from sglang.semi_pd.workers.prefill_room import PrefillRoom

    allocator: Any = SimpleNamespace(page_size=16, demand_pages=0)
    table: Any = SimpleNamespace(layout=SimpleNamespace(num_pages=4096))
    room = PrefillRoom(SimpleNamespace(), allocator, table, batch_tokens=512)  # type: ignore[arg-type]
    resumed: Any = SimpleNamespace(origin_input_ids=[1] * 100, output_ids=[2] * 2000)
    room.demand([resumed])
    assert allocator.demand_pages * 16 >= 2100


THINK_END = [7, 8]
THOUGHTS = {
    "in the first token": ([7, 8], [7, 8, 3, 4, 5]),
    "before and after": (THINK_END, [3, 7, 8, 4, 5, 6]),
    "not yet": (THINK_END, [3, 4, 7, 5, 6]),
    "one token": ([7], [7, 3, 4]),
}


def thinking_req(thinks: bool) -> Any:  # noqa: FBT001
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    params = SamplingParams()
    return Req("r", "", array("q", [1, 2]), params, require_reasoning=thinks)


def adopted(output_ids: list[int], think_end: list[int] | None, thinks: bool) -> Any:  # noqa: FBT001
    """A request with tokens from elsewhere, as the decode worker takes it."""
    from sglang.semi_pd.workers.decode_scheduler import DecodeScheduler
    from sglang.semi_pd.workers.handover import handover_of
    from sglang.semi_pd.workers.messages import Loan

    there, here = thinking_req(thinks), thinking_req(thinks)
    there.semi_pd_request, there.kv_committed_len = None, 2
    there.output_ids.extend(output_ids)
    handover = handover_of(there, Loan(0, 1, 0), is_settled=False)
    worker: Any = SimpleNamespace(
        _unbuilt={"r": handover},
        row_of=lambda _: 0,
        model_config=SimpleNamespace(think_end_ids=think_end),
    )
    assert DecodeScheduler.adopt(worker, here)
    return here


@pytest.mark.parametrize("name", THOUGHTS)
def test_thoughts_are_counted_as_in_one_scheduler(name: str) -> None:
    """However many of the tokens come from another worker."""
    think_end, tokens = THOUGHTS[name]
    undivided = thinking_req(thinks=True)
    for token in tokens:
        undivided.update_reasoning_tokens([token], think_end)
    for handed_over in range(1, len(tokens) + 1):
        req = adopted(tokens[:handed_over], think_end, thinks=True)
        for token in tokens[handed_over:]:
            req.update_reasoning_tokens([token], think_end)
        assert req.reasoning_tokens == undivided.reasoning_tokens, handed_over


def test_no_thoughts_are_counted_where_none_are_asked_for() -> None:
    assert adopted([3, 4], THINK_END, thinks=False).reasoning_tokens == 0
    assert adopted([3, 4], None, thinks=True).reasoning_tokens == 0
