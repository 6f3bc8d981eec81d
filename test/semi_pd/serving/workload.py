# SPDX-License-Identifier: Apache-2.0
"""How much the tests ask for; prompts of random token ids, the same on every run."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence

from client import Body

IS_SOAK = os.environ.get("SEMI_PD_SOAK") == "1"
SERVER_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
"""A process of a server shares few cores with others: threads would wait for each other
and take the cores meanwhile."""
if not IS_SOAK:
    # Else each process compiles for 20 s, on a CPU, before its first mask of a grammar.
    SERVER_ENVIRONMENT["TORCHDYNAMO_DISABLE"] = "1"
FIRST_TOKEN, LAST_TOKEN = 3, 511
LONGEST_PROMPT = 1500
CHUNK = 512
EDGE_LENGTHS = (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, 1500)


def prompt(length: int, seed: int) -> list[int]:
    """Random token ids without special tokens."""
    source = random.Random(f"{seed}-{length}")
    return [source.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(length)]


def lengths(count: int, *, seed: int = 0, longest: int = LONGEST_PROMPT) -> list[int]:
    """Prompt lengths from 1 to ``longest``, short ones more often, edges first."""
    source = random.Random(seed)
    edges = [edge for edge in EDGE_LENGTHS if edge <= longest][:count]
    drawn = [
        round(math.exp(source.uniform(0, math.log(longest))))
        for _ in range(count - len(edges))
    ]
    return edges + drawn


def greedy(input_ids: Sequence[int], max_new_tokens: int, **sampling: object) -> Body:
    """A greedy request."""
    parameters = {"temperature": 0, "max_new_tokens": max_new_tokens, **sampling}
    return {"input_ids": list(input_ids), "sampling_params": parameters}


def endless(input_ids: Sequence[int], max_new_tokens: int) -> Body:
    """A greedy request that runs to its last token."""
    return greedy(input_ids, max_new_tokens, ignore_eos=True)


def mixed_requests(count: int, *, seed: int = 0, most_tokens: int = 64) -> list[Body]:
    """Greedy requests of every length, 1 to ``most_tokens`` new tokens each."""
    source = random.Random(seed)
    return [
        greedy(
            prompt(length, seed + place),
            source.randint(1, most_tokens),
            ignore_eos=bool(place % 2),
        )
        for place, length in enumerate(lengths(count, seed=seed))
    ]
