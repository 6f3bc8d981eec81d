# SPDX-License-Identifier: Apache-2.0
"""SGLang's own key check, the file itself, without the rest of SGLang."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import distribution
from types import ModuleType

NAME = "sglang.srt.utils.auth"


def load() -> ModuleType:
    """SGLang's module, under its usual name from now on."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    path = distribution("sglang").locate_file("sglang/srt/utils/auth.py")
    spec = importlib.util.spec_from_file_location(NAME, str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module
