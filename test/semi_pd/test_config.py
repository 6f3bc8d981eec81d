# SPDX-License-Identifier: Apache-2.0
"""From flags to SemiPDConfig, through SGLang's own parser and ServerArgs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from sglang.semi_pd import hooks
from sglang.semi_pd.config import SemiPDConfig, for_role, resolve
from sglang.semi_pd.errors import ConfigError, UpstreamMismatchError
from sglang.semi_pd.launch import flag_rules, model_family, typed_flags, upstream_source

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


@pytest.fixture
def parse(tiny_model: Path) -> Any:
    """Make ServerArgs of a command line, as the server does."""
    from sglang.srt.server_args import prepare_server_args

    base = ["--model-path", str(tiny_model), "--device", "cpu"]
    return lambda flags="": prepare_server_args([*base, *flags.split()])


@pytest.mark.upstream
class TestFlags:
    def test_defaults_are_the_guides(self, parse: Any) -> None:
        config = SemiPDConfig.from_server_args(parse("--enable-semi-pd"))
        assert (config.prefill_percent, config.decode_percent) == (70, 30)
        assert (config.slo_ttft_target_ms, config.slo_tpot_target_ms) == (100.0, 50.0)
        assert (config.slo_window_s, config.slo_monitoring_interval_s) == (30.0, 10.0)
        assert config.unified_memory_block_size == 4096
        assert config.unified_memory_page_size == 16
        assert config.pool_bytes is None
        assert not config.moves_split
        assert not config.overlap_allowed

    def test_coordinator_includes_everything(self, parse: Any) -> None:
        server_args = parse("--enable-semi-pd-coordinator --unified-memory-blocks 2000")
        config = SemiPDConfig.from_server_args(server_args)
        assert config.moves_split
        assert config.unified_memory
        assert config.pool_bytes == 2000 * 4096

    def test_unified_memory_of_an_attention_model_is_ours(self, parse: Any) -> None:
        server_args = parse("--enable-unified-memory")
        assert server_args.uses_semi_pd()
        assert server_args.semi_pd_unified_memory
        assert not server_args.enable_unified_memory

    def test_log_level(self, parse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        assert parse("--enable-semi-pd --log-level DEBUG").log_level == "debug"
        monkeypatch.setenv("SGLANG_LOG_LEVEL", "DEBUG")
        assert parse("--enable-semi-pd").log_level == "debug"
        assert parse("--enable-semi-pd --log-level error").log_level == "error"
        assert parse().log_level == "info"

    @pytest.mark.parametrize(
        "flags",
        [
            "--enable-mixed-chunk",
            "--data-parallel-size 2",
            "--is-embedding",
            "--tokenizer-worker-num 2",
            "--quantization awq",
            "--initial-prefill-sm 90",
            "--slo-window-size nan",
        ],
    )
    def test_refusals_name_the_flag(self, parse: Any, flags: str) -> None:
        named = flags.split()[0].replace("data-parallel", "dp")
        with pytest.raises(ConfigError, match=named):
            parse(f"--enable-semi-pd {flags}")

    def test_model_path_stays_required(self, capsys: Any) -> None:
        from sglang.srt.server_args import prepare_server_args

        with pytest.raises(SystemExit):
            prepare_server_args(["--enable-semi-pd"])
        assert "are required: --model-path" in capsys.readouterr().err

    def test_help_has_a_section(self) -> None:
        from sglang.srt.server_args import ServerArgs

        parser = argparse.ArgumentParser()
        ServerArgs.add_cli_args(parser)
        section = parser.format_help().split("\nSemi-PD:\n")[1]
        assert all(
            f"\n  {flag}" in section for flag in typed_flags.OUR_FLAGS - UPSTREAMS
        )

    def test_preflight_knows_every_flag_of_upstream(self) -> None:
        from sglang.srt.server_args import ServerArgs

        parser = argparse.ArgumentParser()
        ServerArgs.add_cli_args(parser)
        options = {name for action in parser._actions for name in action.option_strings}
        known = upstream_source.spellings(upstream_source.root()).keys()
        long = {name for name in options if name.startswith("--")}
        assert long - known - typed_flags.OUR_FLAGS == set()
        fields_without_flag = {"--stat-loggers", "--custom-sigquit-handler"}
        assert known - long == {"--model-type"} | fields_without_flag


UPSTREAMS = {"--enable-unified-memory"}


@pytest.mark.upstream
class TestServerArgsFilledByAttribute:
    def test_as_the_guide_does(self, tiny_model: Path) -> None:
        from sglang.srt.server_args import SemiPDPortArgs, ServerArgs

        server_args = ServerArgs()
        server_args.model_path = str(tiny_model)
        server_args.device = "cpu"
        server_args.enable_semi_pd_coordinator = True
        server_args.enable_unified_memory = True
        server_args.enable_slo_aware = True
        port_args = SemiPDPortArgs()
        port_args.host, port_args.port = "127.0.0.1", 30000

        resolved = resolve(server_args)
        assert resolved.uses_semi_pd()
        assert resolved.page_size is not None
        assert resolve(resolved) is resolved
        with pytest.raises(AttributeError, match="after resolution"):
            resolved.initial_prefill_sm = 50

    def test_a_model_is_needed(self) -> None:
        from sglang.srt.server_args import ServerArgs

        with pytest.raises(ConfigError, match="model_path"):
            resolve(ServerArgs())

    def test_a_workers_copy_is_resolved_for_its_role(self, parse: Any) -> None:
        server_args = parse("--enable-semi-pd --random-seed 5")
        worker = for_role(server_args, "decode", disaggregation_mode="decode")
        assert worker.semi_pd_role == worker.disaggregation_mode == "decode"
        assert worker.random_seed == 5
        assert server_args.disaggregation_mode == "null"


@pytest.mark.upstream
class TestFailClosed:
    @pytest.fixture(autouse=True)
    def restore(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hooks, "_registered", [])

    def test_no_launch_if_the_plugin_did_not_run(self, parse: Any) -> None:
        server_args = parse("--enable-semi-pd")
        with pytest.raises(UpstreamMismatchError, match="hooked nothing"):
            server_args.check_server_args()

    def test_no_launch_if_a_hook_did_not_apply(self, parse: Any) -> None:
        hooks.note_registered(["sglang.srt.entrypoints.engine.Engine.moved"])
        server_args = parse("--enable-semi-pd")
        with pytest.raises(UpstreamMismatchError, match="Engine.moved did not apply"):
            server_args.check_server_args()

    def test_no_launch_of_another_version(
        self, parse: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server_args = parse("--enable-semi-pd")
        monkeypatch.setattr("sglang.version.__version__", "0.5.18")
        with pytest.raises(ConfigError, match="0.5.18 is refused"):
            server_args.check_server_args()

    def test_plain_sglang_is_never_held_up(self, parse: Any) -> None:
        parse().check_server_args()


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (LLAMA, ""),
        ({**LLAMA, "layer_types": ["full_attention"] * 2}, ""),
        ({**LLAMA, "sliding_window": 4096, "use_sliding_window": False}, ""),
        ({**LLAMA, "layer_types": ["sliding_attention"]}, "hybrid attention"),
        ({"architectures": ["GptOssForCausalLM"]}, "hybrid attention"),
        ({"text_config": {"full_attention_interval": 4}}, "hybrid attention"),
        ({**LLAMA, "mamba_d_state": 16}, "hybrid attention"),
        ({**LLAMA, "vision_config": {"depth": 2}}, "multimodal"),
        ({**LLAMA, "index_topk": 2048}, "sparse attention"),
        (None, ""),
    ],
)
def test_kind_of_model(config: dict[str, Any] | None, kind: str) -> None:
    found = model_family.unsupported_kind(config)
    assert kind in found if kind else not found


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (None, ""),
        (LLAMA, ""),
        ({**LLAMA, "quantization_config": None}, ""),
        ({**LLAMA, "quantization_config": {"quant_method": "AWQ"}}, "awq"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "gptq"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, "nvfp4"),
        ({"quantization_config": {"bits": 4}}, "without a name"),
    ],
)
def test_quantised_checkpoints(config: dict[str, Any] | None, method: str) -> None:
    found = model_family.quantisation(config)
    assert method in found if method else not found
    if method:
        with pytest.raises(ConfigError, match=method) as raised:
            model_family.require_supported(config, "model")
        assert "fp8" in raised.value.mend


def test_fp8_is_served_however_its_scales_are_cut() -> None:
    for blocks in ({}, {"weight_block_size": [128, 128]}):
        config = {**LLAMA, "quantization_config": {"quant_method": "fp8", **blocks}}
        assert model_family.quantisation(config) == "fp8"
        model_family.require_supported(config, "model")


def test_every_limit_accepts_its_default_as_parsed_and_as_typed() -> None:
    for limit in flag_rules.LIMITS:
        default = limit.supported[0]
        assert limit.accepts(default)
        assert limit.accepts(str(default))
        assert not limit.accepts("something else")
