# SPDX-License-Identifier: Apache-2.0
"""What Semi-PD's flags may say, apart from any parser.

The same rules serve twice: on the raw command line before anything heavy is imported
(``preflight``), and on ``ServerArgs`` however it was made (``config``). Nothing but
the standard library is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.sm_allocation import FULL_PERCENTAGE, LEAST_PERCENTAGE

TESTED_SGLANG = "0.5.17"
PLUGIN_NAME = "semi_pd"
PLATFORM_NAME = "semi_pd_cpu"

SWITCHES = (
    "enable_semi_pd",
    "enable_semi_pd_coordinator",
    "enable_unified_memory",
    "enable_slo_aware",
)
"""The flags that turn Semi-PD on, one by one."""

NUMBERS: Mapping[str, tuple[type, float, str]] = {
    "slo_ttft_target": (float, 100.0, "milliseconds"),
    "slo_tpot_target": (float, 50.0, "milliseconds"),
    "slo_window_size": (float, 30.0, "seconds"),
    "slo_monitoring_interval": (float, 10.0, "seconds"),
    "worker_hang_timeout": (float, 60.0, "seconds"),
    "standby_timeout": (float, 180.0, "seconds"),
    "unified_memory_blocks": (int, 1000, "blocks"),
    "unified_memory_block_size": (int, 4096, "bytes"),
    "unified_memory_page_size": (int, 16, "tokens"),
}
"""Fields that must be positive: type, documented default, unit."""

SHARES: Mapping[str, int] = {"initial_prefill_sm": 70, "initial_decode_sm": 30}
"""Fields in percent of the SMs, with their defaults."""

PARTITION_BACKENDS = ("auto", "green", "mps", "none")
START_METHODS = ("auto", "spawn")
SLO_MODES = ("auto", "follow", "advise")
FALSE_VALUES = ("false", "0", "no", "n")
"""Of an environment variable, as SGLang reads it, in lower case."""
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


def flag(field: str) -> str:
    """The command-line spelling of a field."""
    return "--" + field.replace("_", "-")


@dataclass(frozen=True)
class Limit:
    """An upstream setting of which Semi-PD supports only some values.

    Args:
        field: name in ``ServerArgs``.
        supported: accepted values, the default first.
        hint: what to use instead; by default, to drop the flag.
    """

    field: str
    supported: tuple[Any, ...] = (False,)
    hint: str = ""

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value on the command line."""
        return any(good is False for good in self.supported)

    def accepts(self, value: object) -> bool:
        """Whether this value, parsed or as typed, is supported."""
        return str(value) in [str(good) for good in self.supported]

    def error(self, value: object) -> ConfigError:
        """The refusal of ``value``."""
        shown = flag(self.field) + ("" if self.is_switch else f" {value}")
        others = [str(good) for good in self.supported if good not in (None, False, "")]
        remedy = f"supported: {' or '.join(others)}" if others else "drop the flag"
        return ConfigError(
            f"{shown} is refused",
            why="Semi-PD does not support it yet",
            mend=self.hint or remedy,
        )


_ONE = (1,)

LIMITS = (
    Limit("dp_size", _ONE, "start one server per replica"),
    Limit("enable_dp_attention"),
    Limit("pp_size", _ONE, "use --tp-size"),
    Limit("nnodes", _ONE, "serve on one node"),
    Limit("dcp_size", _ONE),
    Limit("attn_cp_size", _ONE),
    Limit("dist_init_addr", (None,)),
    Limit("speculative_algorithm", (None,)),
    Limit("decoupled_spec_role", ("null",)),
    Limit("enable_lora", (None, False), "merge the adapter into the model"),
    Limit("lora_paths", (None,), "merge the adapter into the model"),
    Limit("is_embedding"),
    Limit("enable_multimodal", (None, False)),
    Limit("encoder_only"),
    Limit("language_only"),
    Limit("enable_streaming_session"),
    Limit("enable_session_radix_cache"),
    Limit("tokenizer_worker_num", _ONE),
    Limit("detokenizer_worker_num", _ONE),
    Limit("smg_grpc_mode"),
    Limit("grpc_mode"),
    Limit("grpc_port", (None,)),
    Limit("use_ray"),
    Limit(
        "enable_mixed_chunk",
        hint="drop it: prefill and decode already run side by side",
    ),
    Limit("enable_pdmux", hint="choose one: PD-multiplexing or Semi-PD"),
    Limit(
        "disaggregation_mode",
        ("null",),
        "choose one: disaggregation over servers or Semi-PD in one server",
    ),
    Limit("enable_hierarchical_cache"),
    Limit("radix_cache_backend", (None,)),
    Limit("enable_lmcache"),
    Limit("enable_flexkv"),
    Limit("enable_hisparse"),
    Limit("enable_memory_saver"),
    Limit("enable_weights_cpu_backup"),
    Limit("weight_cache_mode", ("off",)),
    Limit("cpu_offload_gb", (0,)),
    Limit("offload_group_size", (-1,)),
    Limit("torchao_config", ("",)),
    Limit("quantization", (None, "fp8"), "serve unquantised or block-wise fp8 weights"),
    Limit("dllm_algorithm", (None,)),
    Limit("enable_two_batch_overlap"),
    Limit("enable_single_batch_overlap"),
    Limit("enable_deterministic_inference"),
    Limit("moe_a2a_backend", ("none",)),
    Limit("elastic_ep_backend", (None,)),
    Limit("ep_join_mode", (None,)),
    Limit("kv_canary", ("none",)),
    Limit("enable_return_hidden_states"),
    Limit("enable_return_routed_experts"),
)
"""Everything of SGLang that Semi-PD refuses, one line each."""


def check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse a number that is not positive and finite; ``None`` means unset."""
    for field, (kind, default, unit) in NUMBERS.items():
        value = values[field]
        if value is None:
            continue
        if not (_is_number(value, kind) and value > 0):
            raise ConfigError(
                f"{flag(field)} {value} is refused",
                why=f"it must be a positive {_name(kind)} of {unit}",
                mend=f"use for example {flag(field)} {default}",
            )


def check_split(prefill: Any, decode: Any, *, overlap_allowed: bool) -> None:
    """Refuse shares outside 10..100, or that overlap without leave to."""
    least, most = LEAST_PERCENTAGE, FULL_PERCENTAGE
    for field, value in zip(SHARES, (prefill, decode), strict=True):
        if not (_is_number(value, int) and least <= value <= most):
            raise ConfigError(
                f"{flag(field)} {value} is refused",
                why=f"a share of the SMs is a whole percentage from {least} to {most}",
                mend=f"use for example {flag(field)} {SHARES[field]}",
            )
    if prefill + decode > 100 and not overlap_allowed:
        raise ConfigError(
            f"--initial-prefill-sm {prefill} and --initial-decode-sm {decode} are "
            "refused",
            why=f"together they are {prefill + decode} % of the SMs, over 100 %",
            mend="lower one, or give --enable-sm-overlap to make each a cap of its own",
        )


def check_modes(*, semi_pd: bool, coordinator: bool, slo_aware: bool) -> None:
    """Refuse a split that moves on request only and is to follow the SLOs."""
    if semi_pd and slo_aware and not coordinator:
        raise ConfigError(
            "--enable-semi-pd and --enable-slo-aware exclude each other",
            why="the first moves the split on request only, the second by the SLOs",
            mend="drop one of them, or use --enable-semi-pd-coordinator",
        )


def check_choice(field: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is not among the choices."""
    if value not in choices:
        raise ConfigError(
            f"{flag(field)} {value} is refused",
            why="there is no such choice",
            mend="supported: " + ", ".join(choices),
        )


def check_files(calibration: str | None, decision_log: str | None) -> None:
    """Refuse a calibration that is not there, or a log that cannot be written."""
    if calibration is not None and not Path(calibration).is_file():
        raise ConfigError(
            f"--slo-calibration {calibration} is refused",
            why="there is no such file",
            mend="write one with semi-pd simulate --calibrate RUN --out FILE",
        )
    if decision_log is not None and not Path(decision_log).absolute().parent.is_dir():
        raise ConfigError(
            f"--slo-decision-log {decision_log} is refused",
            why="its folder does not exist",
            mend="make the folder first",
        )


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse environment variables that would keep Semi-PD from working."""
    plugins = [name.strip() for name in environ.get("SGLANG_PLUGINS", "").split(",")]
    if any(plugins) and PLUGIN_NAME not in plugins:
        raise ConfigError(
            f"SGLANG_PLUGINS={environ['SGLANG_PLUGINS']} leaves Semi-PD out",
            why="SGLang then never loads the plugin that the Semi-PD flags need",
            mend=f"add {PLUGIN_NAME} to it or unset it",
        )
    platform = environ.get("SGLANG_PLATFORM", "")
    if platform and platform != PLATFORM_NAME:
        raise ConfigError(
            f"SGLANG_PLATFORM={platform} leaves Semi-PD out",
            why="SGLang then skips the plugins of every other distribution",
            mend="unset it",
        )
    for variable in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if "expandable_segments:true" in environ.get(variable, "").lower():
            raise ConfigError(
                f"{variable}={environ[variable]} is refused",
                why="expandable segments cannot be shared between processes",
                mend="remove expandable_segments from it",
            )
    _check_switches(environ)


def _check_switches(environ: Mapping[str, str]) -> None:
    for variable in (
        "SGLANG_RUST_SERVER",
        "SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE",
        "SGLANG_ENABLE_UNIFIED_RADIX_TREE",
        "SGLANG_EXPERIMENTAL_CPP_RADIX_TREE",
        "SGLANG_FORCE_FP8_MARLIN",
    ):
        if environ.get(variable, "").lower() not in ("", *FALSE_VALUES):
            raise ConfigError(
                f"{variable} is refused",
                why="Semi-PD does not support it yet",
                mend="unset it",
            )
    if environ.get("SGLANG_USE_PICKLE_IPC", "").lower() in FALSE_VALUES:
        raise ConfigError(
            f"SGLANG_USE_PICKLE_IPC={environ['SGLANG_USE_PICKLE_IPC']} is refused",
            why="SGLang's other encoding cannot carry a handover",
            mend="unset it",
        )


def check_version(version: str) -> None:
    """Refuse an SGLang whose insides were never tested with these hooks."""
    if version != TESTED_SGLANG:
        raise ConfigError(
            f"SGLang {version or 'of unknown version'} is refused",
            why=f"Semi-PD hooks into its insides and is tested with {TESTED_SGLANG}",
            mend=f"pip install sglang=={TESTED_SGLANG}",
        )


def _is_number(value: object, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and (kind is float or isinstance(value, int))


def _name(kind: type) -> str:
    return "whole number" if kind is int else "number"
