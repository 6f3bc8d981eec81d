# SPDX-License-Identifier: Apache-2.0
"""Are matrix products right on a share of the GPU? A check, and a program that probes.

Needs torch alone and imports nothing of SGLang, so that many shares can be probed in
the time one worker takes to start. As a program it is an MPS client for each share:

    CUDA_MPS_PIPE_DIRECTORY=… python matrix_products.py DEVICE SHARE [SHARE …]

It prints one line of JSON for each share: the share, the SMs visible there, the error;
none for a share on which there was no memory for a product.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys

import torch

logger = logging.getLogger(__name__)

NO_MEMORY = "CUBLAS_STATUS_ALLOC_FAILED"
WORST_ERROR = 1e-2
"""Relative Frobenius error; a right BF16 product is near 2e-3."""

SHAPES = (
    (1, 4096, 6144),
    (16, 4096, 6144),
    (64, 4096, 14336),
    (256, 14336, 4096),
    (512, 1024, 1024),
    (512, 4096, 4096),
    (1024, 4096, 6144),
    (3000, 4096, 4096),
)
"""(m, k, n) of products like a model's; which of them fail depends on the SM count."""

AT_ONCE = 5
SHARE_TIMEOUT_S = 60


class Products:
    """Products with known results, to be computed on one stream after another."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self._cases = [_Case(device, generator, shape) for shape in SHAPES]
        torch.cuda.synchronize(device)

    def worst_error(self, stream: torch.cuda.Stream) -> float:
        """The largest error of them all, computed on ``stream``.

        Raises:
            RuntimeError: one was not computed for want of memory.
        """
        return max(case.error(stream) for case in self._cases)


def is_for_want_of_memory(failure: RuntimeError) -> bool:
    """Whether a product failed because the GPU is full."""
    return isinstance(failure, torch.OutOfMemoryError) or NO_MEMORY in str(failure)


def visible_sms(device: torch.device) -> int:
    """How many SMs this process may use."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


class _Case:
    """One product."""

    def __init__(
        self,
        device: torch.device,
        generator: torch.Generator,
        shape: tuple[int, int, int],
    ) -> None:
        m, k, n = shape
        self._a = torch.randn(m, k, generator=generator, device=device).bfloat16()
        self._b = torch.randn(n, k, generator=generator, device=device).bfloat16()
        self._right = self._a.float() @ self._b.float().t()
        self._found = torch.empty(m, n, device=device, dtype=torch.bfloat16)

    def error(self, stream: torch.cuda.Stream) -> float:
        """Relative Frobenius error of computing it now; infinite for NaN or none."""
        try:
            with torch.cuda.stream(stream):
                # What is left unwritten must not be an earlier, right product.
                self._found.fill_(torch.nan)
                torch.mm(self._a, self._b.t(), out=self._found)
        except RuntimeError as failure:
            if is_for_want_of_memory(failure):
                raise  # the GPU is full: it says nothing of these SMs
            logger.exception("cuBLAS finds no room for a product's clusters")
            return float("inf")
        stream.synchronize()
        error = float((self._found - self._right).norm() / self._right.norm())
        return error if error == error else float("inf")


def _probe(device: torch.device, share: int) -> None:
    """In a process of its own: CUDA reads the share when it is first used."""
    os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(share)
    signal.alarm(SHARE_TIMEOUT_S)
    stream = torch.cuda.current_stream(device)
    error = Products(device).worst_error(stream)
    said = {"share": share, "sms": visible_sms(device), "error": min(error, 1e9)}
    os.write(sys.stdout.fileno(), json.dumps(said).encode() + b"\n")


def main() -> None:
    """Fork a process for each share, a few at a time; torch is imported once."""
    device = torch.device("cuda", int(sys.argv[1]))
    shares = [int(text) for text in sys.argv[2:]]
    running: set[int] = set()
    for share in shares:
        if len(running) == AT_ONCE:
            running.discard(os.wait()[0])
        pid = os.fork()
        if pid == 0:
            try:
                _probe(device, share)
            except RuntimeError as error:
                print(f"{share} %: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(0)
        running.add(pid)
    while running:
        running.discard(os.wait()[0])


if __name__ == "__main__":
    main()
