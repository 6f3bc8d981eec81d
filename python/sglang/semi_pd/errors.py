# SPDX-License-Identifier: Apache-2.0
"""Errors a user can meet: each says what happened, why, and how to mend it."""

from __future__ import annotations

from typing import ClassVar

GUIDE = "docs/semi_pd_guide.md"
"""Relative to the repository; the guide in Chinese beside it has the same anchors."""


class SemiPDError(Exception):
    """A failure with its reason, its remedy and where to read on, each on a line.

    Args:
        what: what happened, one line.
        why: the cause, one line.
        mend: what the user can do about it, one line.

    Attributes:
        see: anchor of the guide's part on errors of this type.
    """

    see: ClassVar[str] = "messages"

    def __init__(self, what: str, *, why: str = "", mend: str = "") -> None:
        self.what, self.why, self.mend = what, why, mend
        lines = [what]
        if why:
            lines.append(f"  why:  {why}")
        if mend:
            lines.append(f"  mend: {mend}")
        if len(lines) > 1:  # one that says no more is for programmers, and one line
            lines.append(f"  docs: {GUIDE}#{self.see}")
        super().__init__("\n".join(lines))

    def in_one_line(self) -> str:
        """What happened, why, and how to mend it, as ``what: why; mend``."""
        line = self.what
        if self.why:
            line += f": {self.why}"
        if self.mend:
            line += f"; {self.mend}"
        return " ".join(line.split())


class ConfigError(SemiPDError, ValueError):
    """A flag, or a combination of flags, that cannot be served."""


class UpstreamMismatchError(SemiPDError):
    """SGLang is not the version, or not the shape, that the hooks rely on."""


class WorkerStartError(SemiPDError):
    """A resident, prefill or decode process did not become ready."""


class RotationError(SemiPDError):
    """A new split could not be brought into service; the old one serves on."""

    see = "moving-the-split"
