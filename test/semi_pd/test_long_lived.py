# SPDX-License-Identifier: Apache-2.0
"""A full collection does not go through what was there when serving began."""

from __future__ import annotations

import gc

from sglang.semi_pd import long_lived


def test_what_is_there_is_exempt_and_what_comes_later_is_not() -> None:
    there = [[number] for number in range(1000)]
    try:
        long_lived.set_aside()
        later = [[number] for number in range(1000)]
        looked_at = {id(one) for one in gc.get_objects()}
        assert not looked_at & {id(one) for one in there}
        assert looked_at >= {id(one) for one in later}
    finally:
        gc.unfreeze()
