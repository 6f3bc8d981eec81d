# SPDX-License-Identifier: Apache-2.0
"""What SGLang's ``PrefillAdder`` does otherwise, so that a forward is as planned.

It fills a forward first come, first served, and divides the prompt that does not fit.
``prefill_steps`` has the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.workers.prefill_steps import must_wait
from sglang.srt.managers.schedule_policy import AddReqResult

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.schedule_policy import PrefillAdder

_ADDER = "sglang.srt.managers.schedule_policy.PrefillAdder"


def share(
    original: Callable[..., Req | None], adder: PrefillAdder, req: Req
) -> Req | None:
    """Around upstream's next chunk of a prompt: it leaves room for those that join."""
    kept = adder.rem_chunk_tokens - req.semi_pd_step
    adder.rem_chunk_tokens -= kept
    rest = original(adder, req)
    adder.rem_chunk_tokens += kept
    return rest


def whole_or_later(
    original: Callable[..., AddReqResult],
    adder: PrefillAdder,
    req: Req,
    has_chunked_req: bool,  # noqa: FBT001 - upstream's signature
    **options: Any,
) -> AddReqResult:
    """Around upstream's admission: what the next forward can compute is not divided."""
    room = adder.rem_chunk_tokens
    if room is not None and adder.can_run_list:
        ceil = adder.ceil_paged_tokens
        filled = sum(ceil(one.extend_range.length) for one in adder.can_run_list)
        needed = ceil(len(req.full_untruncated_fill_ids) - len(req.prefix_indices))
        if must_wait(needed, room, filled, is_under_way=has_chunked_req):
            return AddReqResult.OTHER
    return original(adder, req, has_chunked_req, **options)


HOOKS: dict[str, Callable[..., Any]] = {
    f"{_ADDER}.add_chunked_req": share,
    f"{_ADDER}.add_one_req": whole_or_later,
}
