# SPDX-License-Identifier: Apache-2.0
"""Whether two servers gave the same answer, and if not, where they part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import client
from client import Answer, Body

TOLERANCE = 1e-4
COUNTERS = ("prompt_tokens", "completion_tokens", "finish_reason")
"""Not ``cached_tokens``: it depends on what a server was asked before."""
LOGPROBS = (
    "input_token_logprobs",
    "input_top_logprobs",
    "input_token_ids_logprobs",
    "output_token_logprobs",
    "output_top_logprobs",
    "output_token_ids_logprobs",
)


def content(answer: Answer) -> Any:
    """The part of a ``/generate`` answer that must not depend on the server."""
    if isinstance(answer, list):
        return [content(one) for one in answer]
    meta = answer["meta_info"]
    counters = {name: meta.get(name) for name in COUNTERS}
    return {"ids": answer["output_ids"], "text": answer["text"], **counters}


def logprobs(answer: Answer) -> dict[str, Any]:
    """All log-probabilities of an answer; lists of top tokens in a fixed order."""
    meta = answer["meta_info"]
    return {
        name: [_by_token(place) for place in meta[name]]
        if "ids" in name or "top" in name
        else meta[name]
        for name in LOGPROBS
        if name in meta
    }


def _by_token(place: Any) -> Any:
    """One position: a map from token to log-probability."""
    return {str(entry[1]): entry[0] for entry in place} if place else place


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Where two JSON values differ; floats may by ``TOLERANCE``."""
    if isinstance(left, dict) and isinstance(right, dict):
        return _dict_differences(left, right, path)
    if isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            return [f"{path}: {len(left)} entries, {len(right)} entries"]
        pairs = enumerate(zip(left, right, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}[{i}]")]
    if _is_float(left) and _is_float(right):
        is_close = math.isclose(left, right, abs_tol=TOLERANCE, rel_tol=0)
        return [] if is_close else [f"{path}: {left} and {right}"]
    return [] if left == right else [f"{path}: {_short(left)} and {_short(right)}"]


def _dict_differences(left: dict, right: dict, path: str) -> list[str]:
    found = [f"{path}.{k}: only in one" for k in sorted(left.keys() ^ right.keys())]
    for key in sorted(left.keys() & right.keys()):
        found += differences(left[key], right[key], f"{path}.{key}")
    return found


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and value == 0)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]} … {text[-50:]}"


def shape(value: Any) -> Any:
    """Names and types of a JSON value, without what it says."""
    if isinstance(value, dict):
        return {key: shape(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) else type(value).__name__


@dataclass(frozen=True)
class Mismatch:
    """One request that two servers answered differently."""

    place: int
    body: Body
    expected: Any
    got: Any

    def __str__(self) -> str:
        ids = self.body.get("input_ids") or self.body.get("text") or ()
        where = "; ".join(differences(self.expected, self.got)[:4])
        return f"request {self.place}, prompt of {len(ids)}: {where}"


def mismatches(
    bodies: Sequence[Body], expected: Sequence[Answer], got: Sequence[Answer]
) -> list[Mismatch]:
    """The requests whose answers differ in more than log-probabilities."""
    pairs = zip(bodies, expected, got, strict=True)
    return [
        Mismatch(place, body, content(a), content(b))
        for place, (body, a, b) in enumerate(pairs)
        if content(a) != content(b)
    ]


def unexplained(
    url: str, bodies: Sequence[Body], found: Sequence[Mismatch]
) -> list[Mismatch]:
    """Those mismatches on which plain SGLang does agree with itself.

    It is asked twice more: everything at once in another order, and one by one.
    """
    if not found:
        return []
    crowd = client.stream_all(url, list(reversed(bodies)))[::-1]
    alone = client.stream_all(url, [one.body for one in found], limit=1)
    return [
        one
        for one, by_itself in zip(found, alone, strict=True)
        if content(crowd[one.place]) == one.expected == content(by_itself)
    ]
