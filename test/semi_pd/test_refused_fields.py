# SPDX-License-Identifier: Apache-2.0
"""What a request may not ask for is refused in one line of Semi-PD's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from sglang.semi_pd.server import refused_fields


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("return_sampling_mask", True),
        ("return_sampling_mask", [False, True]),
        ("input_embeds", [[0.1, 0.2]]),
        ("input_embeds", [None, [[0.1, 0.2]]]),
    ],
)
def test_what_cannot_be_served_is_refused(field: str, asked: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} is not supported with Semi-PD: "):
        refused_fields.check(SimpleNamespace(**{field: asked}))


@pytest.mark.parametrize("asked", [None, False, [False, False], []])
def test_what_is_not_asked_for_is_not_refused(asked: object) -> None:
    fields = {"return_sampling_mask": asked, "input_embeds": asked}
    refused_fields.check(SimpleNamespace(**fields))
    refused_fields.check(SimpleNamespace())
