#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Move the split while streams run: no token is lost, and none is another one.

    python scripts/make_tiny_model.py .demo/tiny-llama
    python examples/semi_pd/rotate_live.py --model-path .demo/tiny-llama

The same prompts are answered twice, undisturbed and while the split moves three times.
Exit code 0 means that both times every client got the same text. --backend mps moves by
new processes that take over, instead of by new cores or green contexts; --url uses a
server that runs already, with whatever backend it has.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from chosen_server import ChosenServer, parser, serve
from streaming import Stream, stream_all, table

SPLITS = ((40, 60), (80, 20), (70, 30))
TOKENS = 400
PAUSE_S = 0.3
PROMPTS = [f"Question {n}: why is the sky blue?" for n in range(1, 9)]


def move(server: ChosenServer) -> None:
    """Ask for each split in turn; each answer comes when that split serves."""
    for prefill, decode in SPLITS:
        time.sleep(PAUSE_S)
        body = {"prefill_percentage": prefill, "decode_percentage": decode}
        answer = server.post("/semi_pd/reallocate", body)
        print(f"split {prefill}/{decode} serves, took {answer['took_s']:.2f} s")


def answers(server: ChosenServer) -> list[Stream]:
    """What the clients get."""
    return stream_all(server.url, PROMPTS, max_new_tokens=TOKENS)


def main() -> int:
    """Exit code 0 if nothing changed for the clients."""
    options = parser(__doc__, "rotate_live")
    options.add_argument("--backend", choices=("auto", "mps", "green"), default="auto")
    chosen = options.parse_args()
    flags = ["--enable-semi-pd", f"--sm-partition-backend={chosen.backend}"]
    with serve(chosen, flags) as server:
        undisturbed = answers(server)
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(answers, server)
            move(server)
            is_live = not running.done()
            streams = running.result()
        print(table(streams))
        status = server.status()["process_rotation_status"]
        print(f"now {status['current_sm_allocation']}, moves: {status['moves']}")
    is_same = [one.text for one in streams] == [one.text for one in undisturbed]
    print(f"moved while streams ran: {is_live}; same answers: {is_same}")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
