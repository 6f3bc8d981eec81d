# SPDX-License-Identifier: Apache-2.0
"""What the fork server imports before it forks anything.

Runs in the fork server only, and there within ``gpu_answers``.
"""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1

# The server may be killed while this process is still importing.
ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
# Sent to all processes of a server, it is for the main process alone (``fork_server``).
signal.signal(signal.SIGTERM, signal.SIG_IGN)
# A worker that fails sends its parent SIGQUIT, upstream's way to end a server. Here the
# parent is the fork server, and the coordinator decides what a death means.
signal.signal(signal.SIGQUIT, signal.SIG_IGN)

import sglang.srt.managers.detokenizer_manager  # noqa: E402, F401
import sglang.srt.managers.scheduler  # noqa: E402, F401
import sglang.srt.models.registry  # noqa: E402, F401
from sglang.semi_pd import long_lived  # noqa: E402
from sglang.semi_pd.resident import resident_worker  # noqa: E402, F401
from sglang.semi_pd.workers import (  # noqa: E402, F401
    decode_scheduler,
    prefill_scheduler,
    worker_process,
)

# Once for every process that is forked; a collection would also unshare its pages.
long_lived.set_aside()
