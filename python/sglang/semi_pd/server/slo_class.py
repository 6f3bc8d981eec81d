# SPDX-License-Identifier: Apache-2.0
"""Whether a request is interactive or batch, as its client says.

Said in the header ``X-SLO-Class``, or in the body as ``slo_class`` among SGLang's
``custom_params``: a field of ``/v1/chat/completions`` and ``/v1/completions``, and of
``sampling_params`` in ``/generate``. SGLang carries it with the request; nothing but a
custom logit processor reads it. The header wins.
"""

from __future__ import annotations

from typing import Any

from sglang.semi_pd.slo_types import SLOClass

HEADER = "x-slo-class"
FIELD = "slo_class"


def read(text: object) -> SLOClass:
    """Return the class that a client wrote.

    Raises:
        ValueError: there is no such class; SGLang answers 400 with it.
    """
    try:
        return SLOClass(str(text).lower())
    except ValueError:
        names = " or ".join(one.value for one in SLOClass)
        raise ValueError(f"{FIELD} {text!r} is refused: it must be {names}") from None


def note(obj: Any, http_request: Any) -> None:
    """Check the class of a request that has arrived; put the header's in its body.

    Args:
        obj: SGLang's ``GenerateReqInput``, normalised: its sampling parameters are one
            dictionary, or one for each prompt. Others have no output to wait for.
        http_request: what came over HTTP, None from Python.

    Raises:
        ValueError: there is no such class, or the custom parameters are no object: a
            worker could not read them.
    """
    params = getattr(obj, "sampling_params", None)
    header = http_request.headers.get(HEADER) if http_request is not None else None
    for one in params if isinstance(params, list) else [params]:
        if not isinstance(one, dict):
            continue
        custom = one.get("custom_params")
        if custom is None:
            custom = {}
        if not isinstance(custom, dict):
            raise ValueError("custom_params is refused: it must be an object")
        if header is not None:
            one["custom_params"] = {**custom, FIELD: read(header).value}
        elif FIELD in custom:
            read(custom[FIELD])


def of(tokenized: Any) -> SLOClass:
    """Return the class of a request that goes to the workers."""
    custom = getattr(tokenized.sampling_params, "custom_params", None) or {}
    return read(custom.get(FIELD, SLOClass.INTERACTIVE.value))
