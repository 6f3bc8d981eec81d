# SPDX-License-Identifier: Apache-2.0
"""What SGLang's scheduler would make of our messages."""

from __future__ import annotations

import dataclasses

import pytest
from sglang.semi_pd.workers import messages, succession_messages

OURS = [
    kind
    for module in (messages, succession_messages)
    for kind in vars(module).values()
    if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
]


@pytest.mark.parametrize("message", OURS, ids=lambda message: message.__name__)
def test_none_can_be_taken_for_a_health_check(message: type) -> None:
    """SGLang drops what has the ``rid`` of a health check while it is busy."""
    assert "rid" not in {field.name for field in dataclasses.fields(message)}


def test_all_are_looked_at() -> None:
    assert len(OURS) >= 20
