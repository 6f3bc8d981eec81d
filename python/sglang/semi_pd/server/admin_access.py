# SPDX-License-Identifier: Apache-2.0
"""Who may change a running server.

SGLang's key check stands in front of every route. It is asked once more here, about a
fixed path: it opens whatever begins with ``/health`` or ``/metrics``, and it is not
there in each of SGLang's ways to serve. Without an admin key, being on this machine is
the only proof of being its operator.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import Request

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

UNAUTHORIZED, FORBIDDEN = 401, 403
_FORWARDING = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller may not: an HTTP status and a sentence."""

    status_code: int
    message: str


class AdminAccess:
    """The rule for routes that change something.

    With an admin key: whoever has it, from anywhere. Without one: only a caller on this
    machine, who also has the API key if there is one.
    """

    def __init__(self, server_args: ServerArgs) -> None:
        self._api_key = server_args.api_key
        self._admin_api_key = server_args.admin_api_key

    def refusal(self, request: Request) -> Refusal | None:
        """None for those who may."""
        from sglang.srt.utils.auth import AuthLevel, decide_request_auth

        decision = decide_request_auth(
            method="POST",
            path="/semi_pd",
            authorization_header=request.headers.get("authorization"),
            api_key=self._api_key,
            admin_api_key=self._admin_api_key,
            auth_level=AuthLevel.ADMIN_OPTIONAL,
        )
        if not decision.allowed:
            wanted = "admin API key" if self._admin_api_key else "API key"
            return Refusal(UNAUTHORIZED, f"this route needs the server's {wanted}")
        if self._admin_api_key or is_from_this_machine(request):
            return None
        return Refusal(
            FORBIDDEN,
            "without --admin-api-key this route answers callers on the server's own "
            "machine only, at localhost; start the server with --admin-api-key",
        )


def is_from_this_machine(request: Request) -> bool:
    """Whether a program on this machine asks for itself.

    Not so for what a proxy passes on, nor for a page of another site in a browser that
    runs here: its requests carry that site's name.
    """
    if request.client is None or not _is_loopback(request.client.host):
        return False
    if any(header in request.headers for header in _FORWARDING):
        return False
    sites = [f"//{request.headers.get('host', '')}", request.headers.get("origin")]
    return all(_is_loopback(_host_of(site)) for site in sites if site is not None)


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
