# SPDX-License-Identifier: Apache-2.0
"""Interactive or batch: what the client says is read, checked and carried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.semi_pd.server import slo_class
from sglang.semi_pd.slo_types import SLOClass


def arrived(params: Any, header: str | None = None) -> Any:
    headers = {} if header is None else {slo_class.HEADER: header}
    obj = SimpleNamespace(sampling_params=params)
    slo_class.note(obj, SimpleNamespace(headers=headers))
    return obj


def class_of(params: dict[str, Any]) -> SLOClass:
    custom = params.get("custom_params")
    sampling_params = SimpleNamespace(custom_params=custom)
    return slo_class.of(SimpleNamespace(sampling_params=sampling_params))


def test_a_request_is_interactive_unless_it_says_otherwise() -> None:
    assert class_of(arrived({}).sampling_params) is SLOClass.INTERACTIVE
    said = {"custom_params": {"slo_class": "batch"}}
    assert class_of(arrived(said).sampling_params) is SLOClass.BATCH


def test_the_header_wins_and_other_custom_params_stay() -> None:
    said = {"custom_params": {"slo_class": "interactive", "thinking_budget": 5}}
    params = arrived(said, "Batch").sampling_params
    assert params["custom_params"] == {"slo_class": "batch", "thinking_budget": 5}


def test_every_prompt_of_a_batch_of_prompts_is_marked() -> None:
    params = arrived([{}, {"custom_params": None}], "batch").sampling_params
    assert [class_of(one) for one in params] == [SLOClass.BATCH, SLOClass.BATCH]


@pytest.mark.parametrize("header", [None, "urgent"])
def test_another_word_is_refused(header: str | None) -> None:
    said = {"custom_params": {"slo_class": "urgent"}} if header is None else {}
    with pytest.raises(ValueError, match="must be interactive or batch"):
        arrived(said, header)


@pytest.mark.parametrize("header", [None, "batch"])
@pytest.mark.parametrize("custom", ["slo_class", ["slo_class"], 7, "", []])
def test_custom_params_that_are_no_object_are_refused(
    header: str | None, custom: object
) -> None:
    with pytest.raises(
        ValueError, match="custom_params is refused: it must be an object"
    ):
        arrived({"custom_params": custom}, header)


def test_what_samples_nothing_has_no_class() -> None:
    slo_class.note(SimpleNamespace(), None)
