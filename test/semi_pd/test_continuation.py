# SPDX-License-Identifier: Apache-2.0
"""A request goes on in another worker with the grammar and the room that it needs."""

from __future__ import annotations

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
