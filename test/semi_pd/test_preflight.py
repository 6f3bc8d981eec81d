# SPDX-License-Identifier: Apache-2.0
"""Bad input ends a launch with one line and exit code 2, before any heavy import."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import flag_rules, ports, preflight, upstream_source

SERVER = [sys.executable, "-m", "sglang.launch_server"]
SERVE = [f"{sysconfig.get_path('scripts')}/sglang", "serve"]
LIMIT_S = 1.0
"""Of processor time: what else the machine does must not count."""


@pytest.fixture(scope="module")
def warm() -> None:
    """Compiled bytecode and a warm file cache, so that times mean something."""
    launch([*SERVER, "--model-path", "/nowhere", "--enable-semi-pd"])


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(bytes(64))
    return str(tmp_path)


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def launch(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def processor_s() -> float:
    """What children have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def refusal(command: list[str], **environment: str) -> str:
    """The one line a refused launch prints."""
    before_s = processor_s()
    result = launch(command, **environment)
    took_s = processor_s() - before_s
    lines = (result.stdout + result.stderr).splitlines()
    assert result.returncode == 2, lines[-5:]
    assert len(lines) == 1, lines
    assert took_s < LIMIT_S
    return lines[0]


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--enable-semi-pd --initial-prefill-sm 0", "from 10 to 100"),
        ("--enable-semi-pd --initial-decode-sm=101", "from 10 to 100"),
        ("--enable-semi-pd --initial-prefill-sm 93 --initial-decode-sm 7", "-sm 7 is"),
        ("--enable-semi-pd --initial-decode-sm half", "whole number"),
        ("--enable-semi-pd --initial-prefill-sm 80", "--enable-sm-overlap"),
        ("--enable-semi-pd-coordinator --slo-ttft-target -5", "--slo-ttft-target -5"),
        ("--enable-slo-aware --slo-tpot-target 0", "positive number of milliseconds"),
        ("--enable-slo-aware --slo-tpot-target nan", "positive number"),
        ("--enable-slo-aware --slo-window-size inf", "positive number of seconds"),
        ("--enable-slo-aware --slo-monitoring-interval 0", "positive number"),
        ("--enable-unified-memory --unified-memory-blocks 0", "positive whole number"),
        ("--enable-unified-memory --unified-memory-block-size -1", "bytes"),
        ("--enable-unified-memory --unified-memory-page-size 1.5", "whole number"),
        ("--enable-semi-pd --slo-ttft-targt 80", "did you mean --slo-ttft-target?"),
        ("--enable-semi-pd --tensor-paralel-size 2", "--tensor-parallel-size?"),
        ("--enable-semi-pd --enable-slo-aware", "exclude each other"),
        ("--enable-semi-pd --enable-pdmux", "choose one"),
        ("--enable-semi-pd --disaggregation-mode prefill", "choose one"),
        ("--enable-semi-pd --dp-size 2", "one server per replica"),
        ("--enable-semi-pd --data-parallel-size 2", "one server per replica"),
        ("--enable-semi-pd --speculative-algorithm EAGLE", "does not support it yet"),
        ("--enable-semi-pd --enable-lora", "merge the adapter"),
        ("--enable-semi-pd --tensor-parallel-size 1000", "--tp-size 1000 is refused"),
        ("--enable-semi-pd --log-level LOUD", "supported: critical"),
        ("--enable-semi-pd --sm-partition-backend mig", "supported: auto"),
        ("--enable-semi-pd --port 70000", "from 1 to 65535"),
    ],
)
def test_bad_flags(model: str, flags: str, expected: str) -> None:
    assert expected in refusal([*SERVER, "--model-path", model, *flags.split()])


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("text", ["no JSON", "[]", '{"x": 1}', '{"decode_step_s": ""}'])
def test_a_file_that_is_no_calibration(model: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    flags = ["--enable-slo-aware", f"--slo-calibration={tmp_path / 'file'}"]
    line = refusal([*SERVER, "--model-path", model, *flags])
    assert f"{tmp_path / 'file'} is not a calibration" in line


@pytest.mark.parametrize("limit", flag_rules.LIMITS, ids=lambda limit: limit.field)
def test_every_limit_is_told_before_imports_in_every_spelling(
    limit: flag_rules.Limit,
) -> None:
    canonical = flag_rules.flag(limit.field)
    spellings = upstream_source.spellings(upstream_source.root())
    names = [name for name, flag in spellings.items() if flag == canonical]
    assert names
    for name in names:
        typed = [name] if limit.is_switch else [name, "7"]
        line = preflight.read(["--model-path", "m", "--enable-semi-pd", *typed])
        assert not line.unknown
        with pytest.raises(ConfigError, match="does not support it yet"):
            preflight.check_limits(line)


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("command", [SERVER, SERVE], ids=["python -m", "sglang serve"])
def test_both_commands(model: str, command: list[str]) -> None:
    line = refusal([*command, "--model", model, "--enable-semi-pd", "--initial-p", "0"])
    assert line == (
        "semi-pd: --initial-prefill-sm 0 is refused: a share of the SMs is a whole "
        "percentage from 10 to 100; use for example --initial-prefill-sm 70 "
        "(docs/semi_pd_guide.md#the-first-start)"
    )


@pytest.mark.usefixtures("warm")
def test_model_path(tmp_path: Path) -> None:
    missing = [*SERVER, "--enable-semi-pd", "--model-path", str(tmp_path / "none")]
    assert "no such folder" in refusal(missing)
    empty = [*SERVER, "--enable-semi-pd", "--model-path", str(tmp_path)]
    assert "no config.json" in refusal(empty)
    assert "no such folder" in refusal([*SERVE, "no-such", "--enable-semi-pd"])
    config = '{"quantization_config": {"quant_method": "awq"}}'
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(bytes(64))
    assert "quantised (awq)" in refusal(empty)


@pytest.mark.usefixtures("warm")
def test_port_in_use_names_its_holder_and_a_free_one(
    model: str, busy_port: int
) -> None:
    command = [*SERVER, "--model-path", model, "--enable-semi-pd", "--port"]
    line = refusal([*command, str(busy_port)])
    assert f"in use by pid {os.getpid()} (" in line
    free = int(line.rpartition("--port ")[2].split()[0])
    with socket.create_server(("127.0.0.1", free)):
        assert free != busy_port


def test_a_port_that_a_file_may_say_is_not_judged(busy_port: int, model: str) -> None:
    flags = ["--model-path", model, "--enable-semi-pd", f"--port={busy_port}"]
    with pytest.raises(ConfigError, match="in use"):
        preflight.check(preflight.read(flags))
    with_file = [*flags, "--config=f.yaml"]
    preflight.check(preflight.read(with_file))
    with pytest.raises(ConfigError, match="in use"):
        preflight.check(preflight.read([*with_file, "--host=127.0.0.1"]))


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SGLANG_PLUGINS", "other"),
        ("SGLANG_PLATFORM", "other"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
        ("SGLANG_RUST_SERVER", "1"),
        ("SGLANG_FORCE_FP8_MARLIN", "1"),
        ("SGLANG_USE_PICKLE_IPC", "No"),
    ],
)
def test_environment(model: str, variable: str, value: str) -> None:
    command = [*SERVER, "--model-path", model, "--enable-semi-pd"]
    assert variable in refusal(command, **{variable: value})


def test_nothing_of_ours_runs_without_a_flag_or_in_a_child() -> None:
    program = (
        "import sys, _sglang_semi_pd_overlay as overlay\n"
        "sys.orig_argv, sys.argv = ['python', *{0}], {1}\n"
        "print(overlay.server_arguments())"
    )
    spawned = "from multiprocessing.spawn import spawn_main"
    cases = {
        (("-m", "sglang.launch_server", "-x"), ("-m", "-x")): "['-x']",
        (("/bin/sglang", "serve", "-x"), ("/bin/sglang", "serve", "-x")): "['-x']",
        (("-c", spawned, "--x"), ("-c", "--x")): "None",
        (("other.py", "--enable-semi-pd"), ("other.py", "--enable-semi-pd")): "None",
    }
    for (original, arguments), expected in cases.items():
        source = program.format(list(original), list(arguments))
        result = launch([sys.executable, "-c", source])
        assert result.stdout.strip() == expected, result.stderr


def test_a_port_for_later_is_not_one_that_connections_get() -> None:
    kernels = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    chosen = {ports.undisturbed() for _ in range(20)}
    assert len(chosen) > 10
    for port in chosen:
        assert 1024 < port < int(kernels[0])
        ports.require_free("127.0.0.1", port)
