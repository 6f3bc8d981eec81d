# SPDX-License-Identifier: Apache-2.0
"""Token slots on the host, and the pages that they lie in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sglang.semi_pd.memory.id_pool import Ids

MANY_SLOTS = 10_000
"""From here on pages are marked, which is faster than to sort them: a whole prefix
cache is inherited while requests wait."""


class OnHost(NamedTuple):
    """Token slots on their way to the host, and what must finish before others may
    have them. The first event is the copy; without a GPU there is none."""

    slots: torch.Tensor
    finished: tuple[torch.cuda.Event, ...]

    @property
    def is_finished(self) -> bool:
        """Whether no forward that was launched before the copy still runs."""
        return all(event.query() for event in self.finished)

    def wait_for_copy(self) -> torch.Tensor:
        """The slots, while the forward may still run."""
        if self.finished:
            self.finished[0].synchronize()
        return self.slots


def pages_of(slots: torch.Tensor, page_size: int) -> Ids:
    """The distinct pages that token slots on the host lie in, ascending, int64."""
    pages = slots.numpy().astype(np.int64) // page_size
    if len(pages) < MANY_SLOTS:
        pages.sort()
        is_first = np.ones(len(pages), bool)
        np.not_equal(pages[1:], pages[:-1], out=is_first[1:])
        return pages[is_first]
    is_in = np.zeros(int(pages.max()) + 1, bool)
    is_in[pages] = True
    return np.flatnonzero(is_in)
