# SPDX-License-Identifier: Apache-2.0
"""GPUs and MPS, as a server would meet them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from sglang.semi_pd.doctor.finding import (
    Finding,
    State,
    by_rule,
    failed,
    note,
    ok,
    skipped,
)
from sglang.semi_pd.doctor.installation import torch_cuda
from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.launch import gpu_rules, mps_daemons
from sglang.semi_pd.launch.gpu import Driver, Gpu, read_driver, visible
from sglang.semi_pd.partition.mps import MPSDaemon
from sglang.semi_pd.server import run_directory

_GIB = 2**30


def examine(driver: Driver, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything about the driver, its GPUs and MPS."""
    yield _driver(driver)
    gpus = visible(driver, environ)
    if not gpus:
        yield _none_visible(environ)
        return
    for gpu in gpus:
        yield _gpu(gpu)
        yield _memory(gpu)
    yield from _mps(gpus, environ)


def read() -> tuple[Driver | None, Finding | None]:
    """The driver, and what to say if there is none or it does not answer."""
    try:
        driver = read_driver()
    except SemiPDError as error:
        return None, failed("GPU", f"{error.what}: {error.why}", error.mend)
    if driver is not None:
        return driver, None
    without = by_rule("GPU", gpu_rules.no_gpu)
    if without.state is State.FAILED:
        return None, without
    return None, note("GPU", without.said)


def _driver(driver: Driver) -> Finding:
    said = f"{driver.version}, serves CUDA {'.'.join(map(str, driver.cuda))}"
    built = torch_cuda()
    if not built:
        return note("driver", f"{said}; torch is built without CUDA", "install torch")
    rule = by_rule("driver", lambda: gpu_rules.require_cuda(driver, built))
    return rule if rule.mend else ok("driver", f"{said}; torch is built for {built}")


def _none_visible(environ: Mapping[str, str]) -> Finding:
    hidden = environ.get("CUDA_VISIBLE_DEVICES")
    why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden})"
    return note("GPU", f"no GPU may be used{why}: the server would use the CPU")


def _gpu(gpu: Gpu) -> Finding:
    check = f"GPU {gpu.index}"
    capability = ".".join(map(str, gpu.capability))
    said = f"{gpu.name}, capability {capability}, compute mode {gpu.compute_mode}"
    return by_rule(check, lambda: gpu_rules.require_shared(gpu), said)


def _memory(gpu: Gpu) -> Finding:
    said = f"{gpu.free_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB free"
    if not gpu.holders:
        return ok(f"GPU {gpu.index} memory", said)
    holders = ", ".join(
        f"{gpu_rules.describe(one.pid)} {one.used_bytes / _GIB:.1f} GiB"
        for one in gpu.holders
    )
    return note(f"GPU {gpu.index} memory", f"{said}; held by {holders}")


def _mps(gpus: tuple[Gpu, ...], environ: Mapping[str, str]) -> Iterator[Finding]:
    for gpu in gpus:
        divisible = by_rule("SM shares", partial(gpu_rules.require_divisible, gpu))
        if divisible.mend:
            yield note(divisible.check, divisible.said, divisible.mend)
            return
    yield by_rule(
        "MPS of others",
        lambda: mps_daemons.require_no_stranger(environ),
        "none that this server would join",
    )
    yield _own_daemon()


def _own_daemon() -> Finding:
    """Start one, ask it for its clients, end it: binary and rights in one answer."""
    if shutil.which(mps_daemons.CONTROL) is None:
        return note(
            "MPS",
            f"{mps_daemons.CONTROL} is not on the PATH: the SMs would not be divided",
            "install the driver's MPS tools (in a container, "
            "NVIDIA_DRIVER_CAPABILITIES=all)",
        )
    place = Path(tempfile.mkdtemp(prefix="doctor-", dir=run_directory.base_directory()))
    try:
        daemon = MPSDaemon(place)
        daemon.start()
        try:
            daemon.clients()
        finally:
            daemon.stop()
    except SemiPDError as error:
        return note("MPS", f"{error.what}: {error.why}", error.mend)
    finally:
        run_directory.remove(place)  # and the daemon, if it is left
    return ok("MPS", "a daemon of our own starts, answers and ends")


def without_gpu() -> Finding:
    """What is said of MPS where there is nothing to divide."""
    return skipped("MPS", "not needed without a GPU")
