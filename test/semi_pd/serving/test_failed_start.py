# SPDX-License-Identifier: Apache-2.0
"""A start that fails after the checks says why in a few lines and leaves nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness import COMMON_FLAGS, GRACE_S, START_TIMEOUT_S, Server
from workload import IS_SOAK, SERVER_ENVIRONMENT

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

ONE_MORE = pytest.mark.skipif(not IS_SOAK, reason="SEMI_PD_SOAK=1: one more start")


def test_a_cache_too_small_for_any_request(
    tiny_model: Path, second_flags: list[str]
) -> None:
    """Refused as a bad flag is, though only the loaded model tells."""
    flags = [*COMMON_FLAGS, "--unified-memory-blocks=2", *second_flags]
    server = Server(name="small", model=tiny_model, flags=flags)
    try:
        code = server.start().wait_exit(START_TIMEOUT_S + GRACE_S)
        assert code == 2, server.failure(f"exit code {code}")
        said = server.log()
        assert "a KV cache of 16 tokens: it is refused" in said
        assert "or drop the flag" in said
        assert "Traceback" not in said
    finally:
        server.clean()


@ONE_MORE
def test_weights_of_which_only_sglang_knows_that_they_are_quantised(
    tiny_model: Path, tmp_path: Path, second_flags: list[str]
) -> None:
    """ModelOpt says so in a file of its own, not in ``config.json``."""
    quantised = shutil.copytree(tiny_model, tmp_path / "quantised")
    said_there = '{"quantization": {"quant_algo": "FP8"}}'
    (quantised / "hf_quant_config.json").write_text(said_there)
    flags = [*COMMON_FLAGS, *second_flags]
    server = Server(name="quantised", model=quantised, flags=flags)
    try:
        code = server.start().wait_exit(START_TIMEOUT_S + GRACE_S)
        assert code == 2, server.failure(f"exit code {code}")
        assert "its weights are quantised (modelopt_fp8)" in server.log()
        assert "Traceback" not in server.log()
    finally:
        server.clean()


def test_a_run_directory_that_is_open_to_others(
    tiny_model: Path, tmp_path: Path, second_flags: list[str]
) -> None:
    """As a bad flag too, by SGLang's own commands: they do not ask the doctor."""
    (tmp_path / "sglang-semi-pd").mkdir(mode=0o755)
    environment = {**SERVER_ENVIRONMENT, "XDG_RUNTIME_DIR": str(tmp_path)}
    flags = [*COMMON_FLAGS, *second_flags]
    server = Server(name="open", model=tiny_model, flags=flags, environment=environment)
    try:
        code = server.start().wait_exit(START_TIMEOUT_S)
        assert code == 2, server.failure(f"exit code {code}")
        assert not server.leftovers()
        assert "Traceback" not in server.log()
        assert f"  mend: remove it, or run chmod 700 {tmp_path}" in server.log()
    finally:
        server.clean()


@pytest.mark.parametrize("level", ["info", pytest.param("debug", marks=ONE_MORE)])
def test_weights_that_end_too_early(
    level: str, tiny_model: Path, tmp_path: Path, second_flags: list[str]
) -> None:
    """As a download that broke off leaves them. A traceback is for ``debug`` only."""
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    flags = [*COMMON_FLAGS, f"--log-level={level}", *second_flags]
    server = Server(name="broken", model=broken, flags=flags)
    try:
        what, why = cause_of_failure(server)
        assert "sglang::semi_pd_resident" in what
        assert why.startswith("  why:  SafetensorError: ")
        assert ("Traceback" in server.log()) is (level == "debug")
    finally:
        server.clean()


@ONE_MORE
def test_an_attention_backend_that_this_host_cannot_run(
    tiny_model: Path, second_flags: list[str]
) -> None:
    """Prefill and decode build it, inside SGLang's scheduler; the resident does not."""
    flags = [*COMMON_FLAGS, "--attention-backend=fa3", *second_flags]
    server = Server(name="attention", model=tiny_model, flags=flags)
    try:
        what, why = cause_of_failure(server)
        assert "sglang::semi_pd_prefill" in what or "sglang::semi_pd_decode" in what
        assert len(why) > len("  why:  ")
        assert "Traceback" not in server.log()
    finally:
        server.clean()


def cause_of_failure(server: Server) -> tuple[str, str]:
    """Let it start, fail and end; the lines of what failed, and why."""
    code = server.start().wait_exit(START_TIMEOUT_S + GRACE_S)
    assert code == 1, server.failure(f"exit code {code}")
    assert not server.leftovers()
    said = server.log()
    place = said.index("Failed to initialize Semi-PD Coordinator: ")
    what, why, mend, docs = said[place:].splitlines()[:4]
    assert why.startswith("  why:  ")
    assert mend.startswith("  mend: ")
    assert docs == "  docs: docs/semi_pd_guide.md#messages"
    return what, why
