# SPDX-License-Identifier: Apache-2.0
"""Sends a load to a server, on top of SGLang's own benchmark module.

Arrivals, request and result types are SGLang's. Only the reading of the stream is our
own: SGLang's client spreads the time of a piece over the tokens in it, which hides the
longest gap, and it needs text, which a model without a tokenizer does not give.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

import aiohttp
from loads import Request
from records import Record
from sglang.benchmark.serving import (
    DatasetRow,
    RequestFuncInput,
    RequestFuncOutput,
    get_request,
)

READ_BUFFER = 10 << 20


def run_load(
    url: str,
    requests: Sequence[Request],
    prompts: Sequence[list[int]],
    *,
    drain_s: float,
) -> list[Record]:
    """Send each request at its time; what is not done ``drain_s`` later has failed."""
    return asyncio.run(_run(url, requests, prompts, drain_s))


async def _run(
    url: str,
    requests: Sequence[Request],
    prompts: Sequence[list[int]],
    drain_s: float,
) -> list[Record]:
    rows = [
        DatasetRow(
            prompt=prompt,
            prompt_len=request.input_len,
            output_len=request.output_len,
            timestamp=1e3 * request.arrival_s,
        )
        for request, prompt in zip(requests, prompts, strict=True)
    ]
    # SGLang's replay starts with the first timestamp; so does its clock here.
    first = requests[0].arrival_s if requests else 0.0
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        timeout=timeout, connector=connector, read_bufsize=READ_BUFFER
    ) as session:
        started = time.perf_counter()
        tasks = []
        async for row in get_request(rows, float("inf"), use_trace_timestamps=True):
            arrived = first + time.perf_counter() - started
            sent = _sent(session, url, row)
            tasks.append((arrived, row, asyncio.create_task(sent)))
        await asyncio.wait([task for *_, task in tasks], timeout=drain_s)
        for *_, task in tasks:
            task.cancel()
        await asyncio.gather(*(task for *_, task in tasks), return_exceptions=True)
    return [_record(arrived, row, task) for arrived, row, task in tasks]


async def _sent(
    session: aiohttp.ClientSession, url: str, row: DatasetRow
) -> RequestFuncOutput:
    """One streamed request; ``itl`` are the times between pieces, in seconds."""
    asked = RequestFuncInput(
        prompt=row.prompt,
        api_url=f"{url}/generate",
        prompt_len=row.prompt_len,
        output_len=row.output_len,
        model="",
        lora_name="",
        image_data=None,
        extra_request_body={},
    )
    result = RequestFuncOutput.init_new(asked)
    body = {
        "input_ids": asked.prompt,
        "stream": True,
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": asked.output_len,
            "ignore_eos": True,
        },
    }
    result.start_time = newest = time.perf_counter()
    last = b""
    async with session.post(asked.api_url, json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            now, last = time.perf_counter(), line
            if result.ttft:
                result.itl.append(now - newest)
            else:
                result.ttft = now - result.start_time
            newest = now
    result.latency = newest - result.start_time
    meta = json.loads(last[len(b"data: ") :] or b"{}").get("meta_info", {})
    result.output_len = meta.get("completion_tokens", 0)
    result.success = result.output_len == asked.output_len
    return result


def _record(
    arrived: float, row: DatasetRow, task: asyncio.Task[RequestFuncOutput]
) -> Record:
    is_done = task.done() and not task.cancelled() and task.exception() is None
    result = task.result() if is_done else RequestFuncOutput()
    steps = max(1, result.output_len - 1)
    return Record(
        arrival_s=round(arrived, 6),
        input_len=row.prompt_len,
        output_len=row.output_len,
        ttft_ms=round(1e3 * result.ttft, 3),
        tpot_ms=round(1e3 * (result.latency - result.ttft) / steps, 3),
        worst_gap_ms=round(1e3 * max(result.itl, default=0.0), 3),
        success=result.success,
    )
