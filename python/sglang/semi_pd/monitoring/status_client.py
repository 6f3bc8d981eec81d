# SPDX-License-Identifier: Apache-2.0
"""Asks a server for its status, over HTTP, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request

from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.monitoring.instance_view import InstanceView

TIMEOUT_S = 10.0
LONGEST_ANSWER_BYTES = 1 << 22
_UNAUTHORIZED, _NOT_FOUND = 401, 404


class StatusError(SemiPDError):
    """The server did not tell its status."""

    see = "the-dashboard-and-the-terminal"


class StatusClient:
    """One server.

    Args:
        url: where it answers, such as ``http://127.0.0.1:30000``.
        api_key: sent as a bearer token; empty for none.
    """

    def __init__(self, url: str, api_key: str = "") -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._request = urllib.request.Request(
                f"{self.url}/semi_pd/status", headers=headers
            )
        except ValueError:
            raise self._not_an_address() from None
        if self._request.type not in ("http", "https"):
            raise self._not_an_address()

    def view(self) -> InstanceView:
        """The instance as it is now.

        Raises:
            StatusError: nobody answers, or not with a status.
        """
        try:
            return InstanceView.from_status(json.loads(self._answer()))
        except (ValueError, KeyError, TypeError) as error:
            raise StatusError(
                f"{self.url} does not answer with a status",
                why=f"{type(error).__name__}: {error}",
                mend="use the semi-pd of the server's version",
            ) from error

    def _answer(self) -> bytes:
        try:
            with urllib.request.urlopen(self._request, timeout=TIMEOUT_S) as reply:
                answer: bytes = reply.read(LONGEST_ANSWER_BYTES)
                return answer
        except urllib.error.HTTPError as error:
            raise self._refused(error.code) from None
        except http.client.InvalidURL:  # a port that is no number is seen only now
            raise self._not_an_address() from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise StatusError(
                f"{self.url} does not answer",
                why=str(reason),
                mend="is the server up? give its address with --url",
            ) from None
        except http.client.HTTPException as error:
            raise StatusError(
                f"{self.url} does not answer in HTTP",
                why=f"{type(error).__name__}: {error}",
                mend="is it the server's port? give its address with --url",
            ) from None

    def _refused(self, code: int) -> StatusError:
        ways = {
            _UNAUTHORIZED: "the server wants its API key: set SEMI_PD_API_KEY",
            _NOT_FOUND: "is it a server with Semi-PD? see the guide, section 1",
        }
        return StatusError(
            f"{self.url} refuses to tell its status",
            why=f"HTTP {code}",
            mend=ways.get(code, "see the server's log"),
        )

    def _not_an_address(self) -> StatusError:
        return StatusError(
            f"--url {self.url} is not an address",
            mend="write it like http://127.0.0.1:30000",
        )
