# SPDX-License-Identifier: Apache-2.0
"""The one place where Semi-PD's flags are read off ``ServerArgs`` and judged."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import flag_rules, model_family

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


@dataclass(frozen=True, slots=True, kw_only=True)
class SemiPDConfig:
    """Semi-PD's part of ``ServerArgs``, checked; every process derives the same.

    ``pool_bytes`` is None where the KV cache is sized from the model and
    ``--mem-fraction-static``: the user gave no ``--unified-memory-blocks``.
    ``split_is_free``: the user gave no split, so another may be taken.
    """

    moves_split: bool
    unified_memory: bool
    unified_memory_blocks: int | None
    unified_memory_block_size: int
    unified_memory_page_size: int
    slo_ttft_target_ms: float
    slo_tpot_target_ms: float
    slo_window_s: float
    slo_monitoring_interval_s: float
    slo_mode: str
    slo_calibration: str | None
    slo_decision_log: str | None
    prefill_percent: int
    decode_percent: int
    split_is_free: bool
    overlap_allowed: bool
    partition_backend: str
    worker_hang_timeout_s: float
    standby_timeout_s: float

    @classmethod
    def from_server_args(cls, server_args: ServerArgs) -> SemiPDConfig:
        """Check Semi-PD's own flags and take their values.

        Raises:
            ConfigError: naming the flag that cannot be served.
        """
        check_values(server_args)
        coordinator = server_args.enable_semi_pd_coordinator
        shares = _shares(server_args)
        return cls(
            moves_split=coordinator or server_args.enable_slo_aware,
            unified_memory=coordinator or server_args.semi_pd_unified_memory,
            unified_memory_blocks=server_args.unified_memory_blocks,
            unified_memory_block_size=server_args.unified_memory_block_size,
            unified_memory_page_size=server_args.unified_memory_page_size,
            slo_ttft_target_ms=server_args.slo_ttft_target,
            slo_tpot_target_ms=server_args.slo_tpot_target,
            slo_window_s=server_args.slo_window_size,
            slo_monitoring_interval_s=server_args.slo_monitoring_interval,
            slo_mode=server_args.slo_mode,
            slo_calibration=server_args.slo_calibration,
            slo_decision_log=server_args.slo_decision_log,
            prefill_percent=shares[0],
            decode_percent=shares[1],
            split_is_free=_given_shares(server_args) == [None, None],
            overlap_allowed=server_args.enable_sm_overlap,
            partition_backend=server_args.sm_partition_backend,
            worker_hang_timeout_s=server_args.worker_hang_timeout,
            standby_timeout_s=server_args.standby_timeout,
        )

    @property
    def pool_bytes(self) -> int | None:
        """Size of the KV cache the user asked for, None if left to the model."""
        if self.unified_memory_blocks is None:
            return None
        return self.unified_memory_blocks * self.unified_memory_block_size


def prepare(server_args: ServerArgs) -> None:
    """Normalise and check the user's ``ServerArgs`` before SGLang resolves them.

    Called from ``__post_init__`` while fields may still be written, and again for
    each worker's copy, which carries a role and was checked as the user's already.

    Raises:
        ConfigError: naming the flag that cannot be served.
    """
    _claim_unified_memory(server_args)
    if not server_args.uses_semi_pd():
        return
    server_args._semi_pd_raw_fields = _field_values(server_args)
    _normalise_log_level(server_args)
    if not server_args.semi_pd_role:
        check_values(server_args)
        check_supported(server_args)


def check_values(server_args: ServerArgs) -> None:
    """Refuse values that Semi-PD's own flags cannot have."""
    flag_rules.check_numbers(vars(server_args))
    flag_rules.check_split(
        *_shares(server_args), overlap_allowed=server_args.enable_sm_overlap
    )
    flag_rules.check_modes(
        semi_pd=server_args.enable_semi_pd,
        coordinator=server_args.enable_semi_pd_coordinator,
        slo_aware=server_args.enable_slo_aware,
    )
    flag_rules.check_choice("slo_mode", server_args.slo_mode, flag_rules.SLO_MODES)
    flag_rules.check_files(server_args.slo_calibration, server_args.slo_decision_log)
    flag_rules.check_choice(
        "sm_partition_backend",
        server_args.sm_partition_backend,
        flag_rules.PARTITION_BACKENDS,
    )
    flag_rules.check_choice(
        "worker_start_method", server_args.worker_start_method, flag_rules.START_METHODS
    )


def check_supported(server_args: ServerArgs) -> None:
    """Refuse what SGLang can do and Semi-PD cannot yet, in one line each."""
    flag_rules.check_environment(os.environ)
    for limit in flag_rules.LIMITS:
        value = getattr(server_args, limit.field)
        if not limit.accepts(value):
            raise limit.error(value)
    config = model_family.read_config(server_args.model_path, server_args.revision)
    model_family.require_supported(config, server_args.model_path)


def resolve(server_args: ServerArgs) -> ServerArgs:
    """A resolved copy of a ``ServerArgs()`` that was filled by attribute.

    Raises:
        ConfigError: if the model path was left empty, or a flag cannot be served.
    """
    if getattr(server_args, "_declarations_materialized", False):
        return server_args
    if not server_args.model_path:
        raise ConfigError(
            "model_path is not set",
            why="a server cannot start without a model",
            mend="set server_args.model_path",
        )
    return type(server_args)(**_field_values(server_args))


def for_role(server_args: ServerArgs, role: str, **changes: Any) -> ServerArgs:
    """The ``ServerArgs`` of a worker: the user's flags and ``changes``, resolved anew.

    Resolution depends on the role, so it starts from what the user gave, not from
    what was made of it for the main process.
    """
    raw = server_args._semi_pd_raw_fields
    return type(server_args)(**{**raw, "semi_pd_role": role, **changes})


def _given_shares(server_args: ServerArgs) -> list[int | None]:
    return [getattr(server_args, field) for field in flag_rules.SHARES]


def _shares(server_args: ServerArgs) -> list[int]:
    """Prefill's and decode's share, with the default for the one not given."""
    pairs = zip(_given_shares(server_args), flag_rules.SHARES.values(), strict=True)
    return [default if given is None else given for given, default in pairs]


def _field_values(server_args: ServerArgs) -> dict[str, Any]:
    return {
        field.name: getattr(server_args, field.name)
        for field in dataclasses.fields(server_args)
    }


def _claim_unified_memory(server_args: ServerArgs) -> None:
    """Take ``--enable-unified-memory`` for ours unless the model is a hybrid.

    Upstream's flag of the same name serves hybrid models only and keeps doing so.
    """
    if not server_args.enable_unified_memory:
        return
    config = model_family.read_config(server_args.model_path, server_args.revision)
    if config is not None and not model_family.is_hybrid(config):
        server_args.enable_unified_memory = False
        server_args.semi_pd_unified_memory = True


def _normalise_log_level(server_args: ServerArgs) -> None:
    """Lower case, as uvicorn wants it; ``SGLANG_LOG_LEVEL`` where no flag is given."""
    default = type(server_args).log_level
    if server_args.log_level == default:
        server_args.log_level = os.environ.get("SGLANG_LOG_LEVEL") or default
    server_args.log_level = server_args.log_level.lower()
    if server_args.log_level_http:
        server_args.log_level_http = server_args.log_level_http.lower()
