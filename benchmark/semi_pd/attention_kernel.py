#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does FlashAttention-3 decode slower over memory of another process, or under MPS?

One decode step's attention and one product for each of 32 layers of Llama-3.1-8B's
shape, as a CUDA graph: over memory of its own, over the same amount mapped by CUDA IPC,
and that as the client of an MPS daemon. No server is started. With several orders it
also shows what it costs that a request's pages do not follow each other; with several
priorities, that the graph was captured on a stream that goes first; with a share, that
MPS limits its clients; with others beside it, that they are there and do nothing.

    python benchmark/semi_pd/attention_kernel.py --batch 1 32
    python benchmark/semi_pd/attention_kernel.py --order ascending descending scattered
    python benchmark/semi_pd/attention_kernel.py --priority 0 -1 -3 --batch 1 32
    python benchmark/semi_pd/attention_kernel.py --share 100 --beside 1
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

LAYERS, KV_HEADS, HEADS, HEAD_DIM = 32, 8, 32, 128
WIDTH, ROWS = 4096, 57344
CONTEXT = 131072
PAGE = 2 << 20
"""Imported memory of other sizes is read at half speed (decision 10)."""
PLACES = ("own", "own, MPS", "mapped", "mapped, MPS")
ORDERS = ("ascending", "descending", "interleaved", "scattered")
"""Of a request's pages: as they are first taken; as a stack returns them; a token of
each request in turn, as decode takes them; anywhere in the cache."""
REPLAYS = 50


def sizes(tokens: int) -> list[int]:
    """Bytes of each buffer: K and V of every layer, then what products read."""
    kv = -(-tokens * KV_HEADS * HEAD_DIM * 2 // PAGE) * PAGE
    return [kv] * 2 * LAYERS + [ROWS * WIDTH * 2] * LAYERS


def checked(result: Any) -> Any:
    error, *values = result
    if int(error):
        raise RuntimeError(str(error))
    return values[0] if values else None


def lend(tokens: int, handles: Path) -> None:
    """Own the buffers and say where they are, until killed."""
    import torch
    from cuda.bindings import runtime

    torch.zeros(1, device="cuda")
    lent = []
    for size in sizes(tokens):
        pointer = int(checked(runtime.cudaMalloc(size)))
        checked(runtime.cudaMemset(pointer, 0, size))
        handle = checked(runtime.cudaIpcGetMemHandle(pointer))
        lent.append(bytes(handle.reserved).hex())
    handles.with_suffix(".part").write_text(json.dumps(lent))
    handles.with_suffix(".part").rename(handles)
    time.sleep(3600)


def idle() -> None:
    """Be a client that has computed once, until killed."""
    import torch

    torch.zeros(1, device="cuda").item()
    print("idle", flush=True)
    time.sleep(3600)


class Buffer:
    """What torch needs to see a pointer as a tensor."""

    def __init__(self, pointer: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (pointer, False),
            "strides": None,
            "version": 3,
        }


def buffers(tokens: int, handles: Path | None) -> list[Any]:
    import torch
    from cuda.bindings import runtime

    if handles is None:
        return [torch.zeros(n, dtype=torch.uint8, device="cuda") for n in sizes(tokens)]
    found = []
    for text, size in zip(json.loads(handles.read_text()), sizes(tokens), strict=True):
        handle = runtime.cudaIpcMemHandle_t()
        handle.reserved = bytes.fromhex(text)
        flags = runtime.cudaIpcMemLazyEnablePeerAccess
        pointer = int(checked(runtime.cudaIpcOpenMemHandle(handle, flags)))
        found.append(torch.as_tensor(Buffer(pointer, size), device="cuda"))
    return found


def in_order(order: str, batch: int, length: int, tokens: int) -> Any:
    """The pages (int32, shape (batch, length)) of requests; page 0 is nobody's."""
    import torch

    first = torch.arange(1, 1 + batch * length, dtype=torch.int32)
    if order == "descending":
        return first.flip(0).view(batch, length)
    if order == "interleaved":
        return first.view(length, batch).T
    if order == "scattered":
        generator = torch.Generator().manual_seed(1)
        anywhere = 1 + torch.randperm(tokens - 1, generator=generator)
        return anywhere[: batch * length].to(torch.int32).view(batch, length)
    return first.view(batch, length)


def use(options: argparse.Namespace, batch: int, handles: Path | None) -> None:
    """Print milliseconds of a step and microseconds of its kernels, for each case."""
    import torch
    from sgl_kernel.flash_attn import flash_attn_with_kvcache
    from torch.profiler import ProfilerActivity, profile

    torch.zeros(1, device="cuda")
    memory = buffers(options.tokens, handles)
    used = options.tokens * KV_HEADS * HEAD_DIM * 2
    kv = [
        one[:used].view(torch.bfloat16).view(options.tokens, 1, KV_HEADS, HEAD_DIM)
        for one in memory[: 2 * LAYERS]
    ]
    weights = [
        one.view(torch.bfloat16).view(ROWS, WIDTH) for one in memory[2 * LAYERS :]
    ]
    length = options.length
    pages = torch.zeros(batch, CONTEXT, dtype=torch.int32, device="cuda")
    pages[:, :length] = in_order(options.order[0], batch, length, options.tokens)
    query = torch.randn(batch, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    x = torch.randn(batch, WIDTH, dtype=torch.bfloat16, device="cuda")
    lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    begins = torch.arange(batch + 1, dtype=torch.int32, device="cuda")

    def step() -> None:
        for layer in range(LAYERS):
            torch.nn.functional.linear(x, weights[layer])
            flash_attn_with_kvcache(
                q=query,
                k_cache=kv[2 * layer],
                v_cache=kv[2 * layer + 1],
                page_table=pages,
                cache_seqlens=lengths,
                cu_seqlens_q=begins,
                max_seqlen_q=1,
                causal=True,
                softmax_scale=HEAD_DIM**-0.5,
            )

    for priority, order in product(options.priority, options.order):
        stream = torch.cuda.Stream(priority=priority)
        with torch.cuda.stream(stream):
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        pages[:, :length] = in_order(order, batch, length, options.tokens)
        graph.replay()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
        step_ms = round(1e3 * (time.perf_counter() - began) / REPLAYS, 3)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            graph.replay()
            torch.cuda.synchronize()
        kernels = {
            event.key[:60]: round(event.device_time_total / event.count, 2)
            for event in seen.key_averages()
            if event.count >= LAYERS
        }
        about = {"priority": priority, "order": order}
        said = {**about, "step_ms": step_ms, "kernels_us": kernels}
        print(json.dumps(said), flush=True)


def measure(options: argparse.Namespace, directory: Path) -> None:
    from sglang.semi_pd.partition.mps import MPSDaemon

    daemon = MPSDaemon(directory)
    client = os.environ | daemon.client_environment(options.share or 100)
    if options.share is None:
        del client["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"]
    me = [sys.executable, __file__, "--tokens", str(options.tokens)]
    handles = directory / "handles.json"
    daemon.start()
    beside: list[subprocess.Popen[str]] = []
    try:
        for _ in range(options.beside):
            command = [sys.executable, __file__, "--idle"]
            beside.append(
                subprocess.Popen(command, env=client, stdout=subprocess.PIPE, text=True)
            )
            assert beside[-1].stdout is not None
            beside[-1].stdout.readline()
        for place in options.places:
            lender = None
            if "mapped" in place:
                lender = subprocess.Popen([*me, "--lend", str(handles)])
                while not handles.exists() and lender.poll() is None:
                    time.sleep(0.2)
            for batch in options.batch:
                command = [*me, "--length", str(options.length), "--use", str(batch)]
                command += ["--order", *options.order]
                command += ["--priority", *map(str, options.priority)]
                command += ["--handles", str(handles)] if lender else []
                environment = client if "MPS" in place else {**os.environ}
                print(f"{place}, batch {batch}:", flush=True)
                subprocess.run(command, env=environment, check=True)
            if lender is not None:
                lender.kill()
                lender.wait()
                handles.unlink()
    finally:
        for one in beside:
            one.kill()
            one.wait()
        daemon.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--length", type=int, default=400, help="tokens of a request")
    parser.add_argument("--tokens", type=int, default=300_000, help="of the KV cache")
    parser.add_argument(
        "--order", nargs="+", choices=ORDERS, default=["ascending"], help="of pages"
    )
    parser.add_argument(
        "--priority", type=int, nargs="+", default=[0], help="of streams: 0 to -3"
    )
    parser.add_argument(
        "--places", nargs="+", choices=PLACES, default=PLACES, help="of the memory"
    )
    parser.add_argument("--share", type=int, help="percent of the SMs, by MPS")
    parser.add_argument("--beside", type=int, default=0, help="idle clients of MPS")
    parser.add_argument("--idle", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--lend", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--use", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--handles", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.idle:
        idle()
    elif options.lend is not None:
        lend(options.tokens, options.lend)
    elif options.use is not None:
        use(options, options.use, options.handles)
    else:
        with tempfile.TemporaryDirectory(prefix="spd-", dir="/tmp") as directory:
            measure(options, Path(directory))


if __name__ == "__main__":
    main()
