# SPDX-License-Identifier: Apache-2.0
"""One private directory per running instance: its sockets and its MPS daemon's.

Everything in it belongs to one main process, which holds a lock on it for as long as it
lives. The next start sweeps a directory whose owner is gone, and ends the MPS daemon in
it: a killed server leaves nothing behind. The pid in its name says who made it; to
containers that share ``/tmp`` it says nothing, the lock does.

No child keeps the lock of a main process that died: the descriptor closes when another
program is executed, and so start all its children, the fork server among them, of which
workers are forked. A child forked with it would keep the directory until its own end.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import mps_daemons

if TYPE_CHECKING:
    from sglang.srt.server_args import PortArgs

_BASE = "sglang-semi-pd"
_PREFIX = "run-"

_held: dict[Path, int] = {}  # descriptors with the locks of this process's directories


def create() -> Path:
    """A new directory, mode 0700, for this process; sweeps what dead ones left.

    Raises:
        ConfigError: the place for it belongs to somebody else, or is open to others.
    """
    base = base_directory()
    pid = os.getpid()
    name = f"{_PREFIX}{pid}-{start_time(pid)}-"
    with _locked(base):  # or another sweeps what has been made and not locked yet
        places = {Path(daemon.pipes).parent for daemon in mps_daemons.running()}
        for place in {*base.glob(f"{_PREFIX}*"), *places}:
            if place.parent == base and not owner_is_alive(place):
                remove(place)
        directory = Path(tempfile.mkdtemp(prefix=name, dir=base))
        _held[directory] = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(_held[directory], fcntl.LOCK_EX)
    return directory


def remove(directory: Path) -> None:
    """Remove what nobody uses any more; first end its MPS daemon, if one is left."""
    for daemon in mps_daemons.in_directory(directory):
        mps_daemons.end(daemon)
    shutil.rmtree(directory, ignore_errors=True)
    fd = _held.pop(directory, None)
    if fd is not None:
        os.close(fd)


def base_directory() -> Path:
    """``$XDG_RUNTIME_DIR/sglang-semi-pd``, or a directory of this user in ``/tmp``.

    Short on purpose: a socket's path must fit 107 bytes.

    Raises:
        ConfigError: it cannot be made, or is not a private directory of this user.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    private = Path(runtime) / _BASE
    shared = Path("/tmp") / f"{_BASE}-{os.geteuid()}"
    base = private if os.path.isdir(runtime) else shared
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        _require_private(base)
    except OSError as error:
        raise ConfigError(
            f"{base} cannot be used for the sockets of a server",
            why=str(error),
            mend="set XDG_RUNTIME_DIR to a directory of this user",
        ) from error
    return base


def is_one(directory: Path) -> bool:
    """Whether it has the name of a run directory, of whichever user."""
    is_ours = directory.parent.name.startswith(_BASE)
    return is_ours and directory.name.startswith(_PREFIX)


def start_time(pid: int) -> int:
    """Start of a process in clock ticks since boot: with the pid, names it for good.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        raise ProcessLookupError(pid) from None
    return int(line.rpartition(")")[2].split()[19])


def adopt_sockets(directory: Path, port_args: PortArgs) -> None:
    """Move the sockets that SGLang would make in ``/tmp`` into ``directory``."""
    for field in dataclasses.fields(port_args):
        address = getattr(port_args, field.name)
        if isinstance(address, str) and address.startswith("ipc://"):
            Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
            setattr(port_args, field.name, f"ipc://{directory}/{field.name}")


def _require_private(directory: Path) -> None:
    found = directory.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not is_ours or stat.S_IMODE(found.st_mode) != 0o700:
        raise ConfigError(
            f"{directory} is not a private directory of this user",
            why=f"mode {stat.S_IMODE(found.st_mode):o}, owner {found.st_uid}",
            mend=f"remove it, or run chmod 700 {directory}",
        )


def owner_is_alive(directory: Path) -> bool:
    """Whether the main process that made this directory still runs."""
    try:
        _, pid, started, _ = directory.name.split("-", 3)
        if start_time(int(pid)) == int(started):
            return True
    except (ValueError, ProcessLookupError):
        pass  # but it may run in another container
    return _is_held(directory)


def _is_held(directory: Path) -> bool:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it is gone
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
