# SPDX-License-Identifier: Apache-2.0
"""The dashboard as one self-contained page: it loads nothing from anywhere else.

It holds no data of the instance. It asks ``status`` and ``history`` beside it, with the
key that its reader types in where the server wants one.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "dashboard"
_SCRIPTS = ("format.js", "chart.js", "timeline.js", "dashboard.js")


@dataclass(frozen=True, slots=True)
class DashboardPage:
    """The page and the headers that it is to be served with."""

    html: str
    headers: dict[str, str]

    @classmethod
    def load(cls) -> DashboardPage:
        """Put the page together from its parts; only they may run in it."""
        style = _read("style.css")
        script = "\n".join(map(_read, _SCRIPTS))
        html = _read("page.html").replace("/* style */", style)
        policy = {
            "default-src": "'none'",
            "style-src": _hash(style),
            "script-src": _hash(script),
            "connect-src": "'self'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        headers = {
            "Content-Security-Policy": "; ".join(map(" ".join, policy.items())),
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        return cls(html.replace("/* script */", script), headers)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
