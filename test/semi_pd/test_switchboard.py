# SPDX-License-Identifier: Apache-2.0
"""Who waits for the event loop does not wait for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.upstream

TIMEOUT_S = 10.0


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Any]:
    """Of a server whose event loop has not begun."""
    from sglang.semi_pd.server.switchboard import Switchboard

    manager: Any = SimpleNamespace(
        event_loop=None, skip_tokenizer_init=False, send_to_scheduler=None
    )
    ports: Any = SimpleNamespace(detokenizer_ipc_name=f"ipc://{tmp_path}/detokenizer")
    board = Switchboard(manager, ports, tmp_path, lambda _: None, lambda: 0)
    yield board
    board._to_detokenizer.close(linger=0)
    board.router._pair.decode.close(linger=0)


def test_a_loop_that_never_began_holds_nobody_up_at_the_end(board: Any) -> None:
    errors: list[str] = []

    def wait() -> None:
        try:
            board.hold()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    board.end()
    thread.join(TIMEOUT_S)
    assert errors == ["the server ended before its event loop began"]


def test_a_late_answer_is_a_timeout_in_every_python() -> None:
    from sglang.semi_pd.server import switchboard

    with pytest.raises(TimeoutError, match="within 0.01 s"):
        switchboard._result(Future(), 0.01)
    done: Future[int] = Future()
    done.set_result(7)
    assert switchboard._result(done, 0.01) == 7
