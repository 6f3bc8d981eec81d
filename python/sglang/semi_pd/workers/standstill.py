# SPDX-License-Identifier: Apache-2.0
"""Where a worker stands that stands still: it writes it to the log when it is told to.

A step that does not end is mostly in a call of CUDA or of a compiler. No Python runs in
its thread then, but a handler of the interpreter's own does.
"""

from __future__ import annotations

import faulthandler
import signal

SIGNAL = signal.SIGUSR2


def tell_on_signal() -> None:
    """From now on the signal writes the stack of the main thread to stderr.

    Of no other thread: reading the stack of one that runs may crash the process.
    """
    faulthandler.register(SIGNAL, all_threads=False)
