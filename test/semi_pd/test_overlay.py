# SPDX-License-Identifier: Apache-2.0
"""The overlay in real interpreters: any import order, spawned children, the finder.

Each program runs in a fresh interpreter and pays for SGLang's imports, so each
checks several things.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.upstream

OURS_FIRST = """
import multiprocessing
import pickle

from sglang.semi_pd.errors import ConfigError
from sglang.srt.server_args import SemiPDPortArgs, ServerArgs
import sglang
import sglang.srt.server_args as module


def in_child(server_args, answers):
    from sglang.srt.server_args import ServerArgs as in_child

    answers.put((type(server_args) is in_child, server_args.enable_semi_pd))


if __name__ == "__main__":
    assert issubclass(ConfigError, ValueError)
    assert sglang.semi_pd.errors.ConfigError is ConfigError
    assert ServerArgs.__module__ == SemiPDPortArgs.__module__ == module.__name__
    assert module.prepare_server_args.__globals__["ServerArgs"] is ServerArgs
    assert module.__doc__ == "The arguments of the server."

    server_args = ServerArgs()
    server_args.enable_semi_pd = True
    assert pickle.loads(pickle.dumps(server_args)) == server_args
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=in_child, args=(server_args, answers))
    child.start()
    assert answers.get(timeout=300) == (True, True)
    child.join()
"""

UPSTREAM_FIRST = """
import dataclasses
import sys

from sglang.srt import server_args as module
import sglang
from sglang.srt.server_args import PortArgs, SemiPDPortArgs, ServerArgs
import sglang.semi_pd.config

upstream = ServerArgs.__base__
options = dict(model_path=sys.argv[1], device="cpu", random_seed=1, nccl_port=4321)
# SGLang's first resolution sets environment variables that later ones see.
upstream(**options)
plain, ours = (dataclasses.asdict(made(**options)) for made in (upstream, ServerArgs))
differing = [name for name in plain if str(plain[name]) != str(ours[name])]
assert not differing, differing
assert ours.keys() - plain.keys() == module.SEMI_PD_FIELDS
assert not ours["enable_semi_pd"] and not ours["semi_pd_unified_memory"]

made = SemiPDPortArgs.init_new(ServerArgs(**options, port=31234))
assert (made.port, made.nccl_port) == (31234, 4321)
assert made.scheduler_input_ipc_name.startswith("ipc://")
assert isinstance(SemiPDPortArgs(), PortArgs)
"""


@pytest.mark.parametrize(
    "program", [OURS_FIRST, UPSTREAM_FIRST], ids=["ours first", "upstream first"]
)
def test_fresh_interpreter(program: str, tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    result = subprocess.run(
        [sys.executable, str(script), str(tiny_model)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_overlay_that_does_not_fit_leaves_upstream_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import _sglang_semi_pd_overlay as overlay
    from sglang.srt import server_args

    broken = tmp_path / "server_args.py"
    broken.write_text("ServerArgs = None\nraise AttributeError('moved')\n")
    monkeypatch.setattr(overlay, "overlay_source", lambda: str(broken))
    before = dict(vars(server_args))
    with pytest.warns(RuntimeWarning, match="AttributeError: moved"):
        overlay._extend_server_args(server_args)
    assert vars(server_args) == before
