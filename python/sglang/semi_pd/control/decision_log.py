# SPDX-License-Identifier: Apache-2.0
"""One decision as one line of JSON, with all that it was made from.

The line is complete: ``decode_line`` gives back the inputs, so any policy can be run
on them again. NaN and infinity, which JSON lacks, are written as null and read as NaN.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sglang.semi_pd.control.decision_inputs import DecisionInputs
from sglang.semi_pd.slo_types import Decision

KIND = "semi_pd_decision"
VERSION = 1


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A recorded decision: its inputs, and what was decided then."""

    inputs: DecisionInputs
    decision: Decision


def encode_line(record: DecisionRecord) -> str:
    """Return the record as one line of JSON, without a line end."""
    payload = {"kind": KIND, "version": VERSION, **_to_plain(record)}
    return json.dumps(payload, separators=(",", ":"), allow_nan=False)


def decode_line(line: str) -> DecisionRecord:
    """Read one line back; ValueError says what is wrong with it."""
    payload = json.loads(line)
    if not isinstance(payload, dict) or payload.get("kind") != KIND:
        raise ValueError(f"not a line of kind {KIND!r}")
    if payload.get("version") != VERSION:
        raise ValueError(f"version {payload.get('version')!r}, not {VERSION}")
    try:
        record: DecisionRecord = _from_plain(DecisionRecord, payload)
        return record
    except (KeyError, TypeError) as error:
        raise ValueError(f"incomplete decision line: {error}") from error


def _to_plain(value: object) -> Any:
    """Turn nested dataclasses and enums into what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _to_plain(getattr(value, name)) for name in names}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    return value


def _from_plain(kind: type[Any], value: Any) -> Any:
    """Rebuild a dataclass from its plain form by the types of its fields."""
    hints = _field_types(kind)
    defaults = {f.name for f in dataclasses.fields(kind) if _has_default(f)}
    present = [name for name in hints if name in value or name not in defaults]
    return kind(**{name: _read(hints[name], value[name]) for name in present})


def _has_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a line of an older version may lack it."""
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _read(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return tuple(_read(typing.get_args(hint)[0], item) for item in value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _from_plain(hint, value)
    if hint is float:
        return math.nan if value is None else float(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    return value


_FIELD_TYPES: dict[type, dict[str, Any]] = {}


def _field_types(kind: type) -> dict[str, Any]:
    """Return the resolved field types of a dataclass, worked out once per class."""
    if kind not in _FIELD_TYPES:
        _FIELD_TYPES[kind] = typing.get_type_hints(kind)
    return _FIELD_TYPES[kind]
