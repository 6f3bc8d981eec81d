# SPDX-License-Identifier: Apache-2.0
"""What a new prefill worker keeps of the dead, with SGLang's own radix tree."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.server.dead_slots import DeadSlots
from sglang.semi_pd.utils import InstanceRole, row_label
from table_processes import assert_in_order
from test_prefix_tree import Pair, Worker, no_published_args

pytestmark = pytest.mark.upstream
__all__ = ["no_published_args"]

PROMPT, ANSWER = list(range(10, 22)), [50, 51, 52, 53, 54, 55]


@pytest.fixture
def pair(no_published_args: None) -> Pair:
    """A request runs: its prompt is lent, its answer is decode's."""
    pair = Pair()
    there = pair.hand_over(pair.compute(PROMPT))
    pair.generate(there, ANSWER)
    return pair


def resume(rid: str = "r", answer: list[int] = ANSWER) -> Any:
    from sglang.semi_pd.workers.succession_messages import Resume
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    request = TokenizedGenerateReqInput(
        rid=rid,
        input_text="",
        input_ids=PROMPT,
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=SamplingParams(),
        return_logprob=False,
        logprob_start_len=0,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=True,
    )
    return Resume(request=request, output_ids=answer)


def start(pair: Pair, generation: int) -> Worker:
    """The prefill worker of the next pair."""
    make, roles = Worker.make, (InstanceRole.DECODE, InstanceRole.PREFILL)
    return [make(pair.table, pair.req_to_token, one, generation) for one in roles][1]


def recover(one: Worker, generation: int, running: list[Any]) -> None:
    from sglang.semi_pd.workers.succession import recover
    from sglang.semi_pd.workers.succession_messages import Recover

    message = Recover(range(1, generation), running)
    recover(pickle.loads(pickle.dumps(message)), one.table, one.tree, one.rows)
    assert_in_order(one.table)


def require_kept(one: Worker, tokens: int) -> None:
    """So many tokens of the request, all pages accounted for, no slot of the dead."""
    assert one.cached == one.tree.total_size() == tokens
    usage = one.table.usage()
    assert usage.pages_used == tokens // usage.page_size
    assert usage.rows_free == usage.rows_total
    assert usage.borrows == 0
    assert len(usage.pages_by_slot) == 2


@pytest.mark.parametrize("early", [0, 1, 12])
def test_the_kv_is_kept_however_many_pairs_die_early(pair: Pair, early: int) -> None:
    """17 tokens have their KV: 4 full pages of 4."""
    dead = DeadSlots([pair.table])
    for generation in range(2, 2 + early):
        start(pair, generation)
        dead.join([generation])
    last = 2 + early
    one = start(pair, last)
    recover(one, last, [resume()])
    require_kept(one, 16)


def test_the_kv_is_kept_though_a_pair_died_amid_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had taken over one of the two slots."""
    second = start(pair, 2)
    reclaim = BlockTable.reclaim
    slots: list[int] = []

    def reclaim_one(table: BlockTable, slot: int, **options: Any) -> Any:
        if slots:
            raise InterruptedError
        slots.append(slot)
        return reclaim(table, slot, **options)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(BlockTable, "reclaim", reclaim_one)
        recover(second, 2, [resume()])
    third = start(pair, 3)
    recover(third, 3, [resume()])
    require_kept(third, 16)


def test_no_more_is_kept_than_the_client_has(pair: Pair) -> None:
    one = start(pair, 2)
    recover(one, 2, [resume(answer=ANSWER[:2])])
    require_kept(one, 12)


def test_an_id_that_has_two_rows_says_nothing(pair: Pair) -> None:
    """It was used again while the row of the first was on its way back."""
    table = pair.prefill.table
    rows = table.take_rows(1)
    assert rows is not None
    decode = table.slot_of(InstanceRole.DECODE)
    (mine,) = table.labelled_rows(decode)
    pair.req_to_token[rows[0]] = pair.req_to_token[mine.row]
    table.move_row(rows[0], decode, row_label("r", 99))
    one = start(pair, 2)
    recover(one, 2, [resume()])
    require_kept(one, 0)


def test_pages_that_are_not_the_dead_ones_any_more_are_left_alone(pair: Pair) -> None:
    """The worker that recovers has taken one of them, freed meanwhile."""
    decode = pair.decode.table
    own = [
        page for page, o in enumerate(decode.page_owners()) if o == decode.lease.slot
    ]
    decode.give_pages(own[:1])
    one = start(pair, 2)
    free = one.table.usage().pages_free
    taken = one.table.take_pages(free)
    recover(one, 2, [resume()])
    assert one.cached == 0
    one.table.give_pages(taken)
    require_kept(one, 0)
