# SPDX-License-Identifier: Apache-2.0
"""``semi-pd serve``: what is wrong costs under a second, what is right is served."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sglang.semi_pd.cli import command_serve
from sglang.semi_pd.launch import flag_rules, typed_flags

PYTHON = Path(__file__).parents[2] / "python"
OF_UPSTREAM = {"--enable-unified-memory"}


def semi_pd(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PYTHON / "semi_pd_cli.py"), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refusal(*arguments: str, **environment: str) -> str:
    """The one line, and the proof that it was cheap."""
    before = processor_s()
    result = semi_pd("serve", *arguments, **environment)
    assert processor_s() - before < 1.0
    assert result.returncode == 2
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    return line


def processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(bytes(64))
    return str(tmp_path)


def test_a_taken_port(model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        line = refusal("--model-path", model, "--port", port)
    assert f"in use by pid {os.getpid()} (" in line
    assert re.search(r"or use --port \d+ \(docs", line)


def test_a_bad_path_a_bad_flag_no_model(model: str) -> None:
    assert "no such folder" in refusal("--model-path", f"{model}/none")
    assert "did you mean --slo-ttft-target?" in refusal(model, "--slo-ttft-targt", "9")
    assert "whole percentage" in refusal(model, "--initial-prefill-sm", "0")
    assert "use semi-pd serve --model-path MODEL" in refusal()


def test_a_kind_of_model_that_is_not_served(tmp_path: Path, model: str) -> None:
    (tmp_path / "config.json").write_text('{"vision_config": {"depth": 2}}')
    assert "multimodal" in refusal("--model-path", model)


def test_an_ill_host_is_told_before_anything_starts(model: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sglang-semi-pd").mkdir(mode=0o755)
    result = semi_pd("serve", model, XDG_RUNTIME_DIR=str(tmp_path / "run"))
    assert result.returncode == 2
    assert "✗ run directory" in result.stderr
    assert "chmod 700" in result.stderr


def test_the_recommended_switch_is_added_where_none_is_given() -> None:
    added = ["--model-path", "m", command_serve.DEFAULT_SWITCH]
    assert command_serve._with_switch(["--model-path", "m"]) == added
    for switch in flag_rules.SWITCHES:
        given = ["m", flag_rules.flag(switch)]
        assert command_serve._with_switch(given) == given


@pytest.mark.upstream
@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, str(PYTHON / "semi_pd_cli.py"), "serve"],
        [sys.executable, "-m", "sglang.launch_server"],
    ],
    ids=["semi-pd serve", "python -m sglang.launch_server"],
)
def test_help_has_the_flags_in_a_group_with_units_and_defaults(
    command: list[str],
) -> None:
    """``semi-pd serve`` has become ``sglang serve`` by then: it is its help."""
    result = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, timeout=300, check=True
    )
    section = re.search(r"^Semi-PD:\n(.*?)(?=^\S|\Z)", result.stdout, re.M | re.S)
    assert section is not None
    entries = re.split(r"^  (?=--)", section.group(1), flags=re.M)[1:]
    helps = {entry.split()[0]: " ".join(entry.split()) for entry in entries}
    assert helps.keys() == typed_flags.OUR_FLAGS - OF_UPSTREAM
    for flag, text in helps.items():
        assert "default" in text.lower(), flag
    for field, (_, default, unit) in flag_rules.NUMBERS.items():
        if field != "unified_memory_blocks":
            assert f"(default: {default})" in helps[flag_rules.flag(field)]
        assert unit in helps[flag_rules.flag(field)].lower()
    for field, share in flag_rules.SHARES.items():
        text = helps[flag_rules.flag(field)]
        assert "in percent" in text and f"(default: {share}" in text
