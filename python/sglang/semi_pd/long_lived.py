# SPDX-License-Identifier: Apache-2.0
"""What lives as long as its process is not looked at by the garbage collector again.

SGLang and torch come as more than a million objects. A full collection goes through all
of them: half a second in which nothing is sent, now and then, while serving.
"""

from __future__ import annotations

import gc


def set_aside() -> None:
    """Exempt everything that there is by now; at the end of a start."""
    gc.collect()
    gc.freeze()
