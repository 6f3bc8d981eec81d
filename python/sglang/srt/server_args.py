# SPDX-License-Identifier: Apache-2.0
"""Semi-PD's fields on top of SGLang's ``ServerArgs``.

This file runs in the namespace of SGLang's own ``sglang.srt.server_args``, right
after it (see ``_sglang_semi_pd_overlay.py``): each class below extends the upstream
class of the same name and takes its place. No logic lives here: with a Semi-PD flag
on, ``sglang.semi_pd.config`` does the work; without one upstream runs as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, Literal

from sglang.srt.arg_groups.arg_utils import NS, A, Arg
from sglang.srt.server_args import PortArgs, ServerArgs


class _SemiPDSection:
    """A parser that files Semi-PD's flags under a heading of their own in --help."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._section = parser.add_argument_group(
            "Semi-PD", "prefill and decode as two processes over one KV cache"
        )

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        is_ours = names[0][2:].replace("-", "_") in SEMI_PD_FIELDS
        return (self._section if is_ours else self._parser).add_argument(
            *names, **options
        )


@dataclasses.dataclass
class ServerArgs(ServerArgs):  # type: ignore[no-redef]
    """Upstream's server arguments, with Semi-PD's.

    ``ServerArgs()`` is empty and unresolved, to be filled by attribute;
    ``sglang.semi_pd.config.resolve`` makes a resolved one of it.
    """

    model_path: A[
        str,
        Arg(
            help="The path of the model weights. This can be a local folder or a "
            "Hugging Face repo ID.",
            aliases=["--model"],
            required=True,
        ),
        NS("model"),
    ] = ""

    enable_semi_pd: A[
        bool,
        Arg(
            help="Serve with separate prefill and decode processes and a split of "
            "the GPU between them that moves on request only (default: off)."
        ),
        NS("semi_pd"),
    ] = False
    enable_semi_pd_coordinator: A[
        bool,
        Arg(
            help="Serve with Semi-PD's coordinator, everything included: separate "
            "processes, unified memory, and a split that follows the SLO targets "
            "(default: off)."
        ),
        NS("semi_pd"),
    ] = False
    enable_slo_aware: A[
        bool,
        Arg(help="Move the split at run time to meet the SLO targets (default: off)."),
        NS("semi_pd"),
    ] = False
    unified_memory_blocks: A[
        int | None,
        Arg(
            help="Number of blocks of the unified KV cache. Default: as many as the "
            "model and --mem-fraction-static allow (1000 where the memory manager is "
            "used without a server)."
        ),
        NS("semi_pd"),
    ] = None
    unified_memory_block_size: A[
        int,
        Arg(
            help="Bytes of one block, in effect with --unified-memory-blocks "
            "(default: 4096)."
        ),
        NS("semi_pd"),
    ] = 4096
    unified_memory_page_size: A[
        int,
        Arg(
            help="Tokens of one page of the memory manager; without effect in a "
            "server, where --page-size holds (default: 16)."
        ),
        NS("semi_pd"),
    ] = 16
    slo_ttft_target: A[
        float,
        Arg(
            help="Target for the time to first token, in milliseconds (default: 100.0)."
        ),
        NS("semi_pd"),
    ] = 100.0
    slo_tpot_target: A[
        float,
        Arg(
            help="Target for the time per output token, in milliseconds "
            "(default: 50.0)."
        ),
        NS("semi_pd"),
    ] = 50.0
    slo_window_size: A[
        float,
        Arg(
            help="Length of the window that latencies are judged over, in seconds "
            "(default: 30.0)."
        ),
        NS("semi_pd"),
    ] = 30.0
    slo_monitoring_interval: A[
        float,
        Arg(
            help="Time between two looks at the SLOs, at most, in seconds "
            "(default: 10.0)."
        ),
        NS("semi_pd"),
    ] = 10.0
    slo_mode: A[
        Literal["auto", "follow", "advise"],
        Arg(
            help="What the SLO controller may do: follow moves the split, auto may "
            "also give up splitting where that does not pay, advise only says what it "
            "would do (default: follow)."
        ),
        NS("semi_pd"),
    ] = "follow"
    slo_calibration: A[
        str | None,
        Arg(
            help="JSON file with the measured speeds of splits, as written by "
            "`semi-pd simulate --calibrate`; with it the SLO controller compares "
            "splits before it moves (default: none)."
        ),
        NS("semi_pd"),
    ] = None
    slo_decision_log: A[
        str | None,
        Arg(
            help="File to which each decision of the SLO controller is appended as "
            "one line of JSON, for `semi-pd replay` (default: none)."
        ),
        NS("semi_pd"),
    ] = None
    initial_prefill_sm: A[
        int | None,
        Arg(
            help="Share of the GPU's SMs for prefill at the start, in percent "
            "(default: 70, or where that computes wrong the nearest right one)."
        ),
        NS("semi_pd"),
    ] = None
    initial_decode_sm: A[
        int | None,
        Arg(
            help="Share of the GPU's SMs for decode at the start, in percent "
            "(default: 30, or where that computes wrong the nearest right one)."
        ),
        NS("semi_pd"),
    ] = None
    enable_sm_overlap: A[
        bool,
        Arg(
            help="Let the two shares sum to more than 100: each is then a cap of "
            "its own (default: off)."
        ),
        NS("semi_pd"),
    ] = False
    sm_partition_backend: A[
        Literal["auto", "green", "mps", "none"],
        Arg(
            help="How the SMs are divided: green contexts, MPS percentages, or not "
            "at all; auto takes the best one available (default: auto)."
        ),
        NS("semi_pd"),
    ] = "auto"

    worker_hang_timeout: A[
        float,
        Arg(
            help="A worker that stands still for so long is replaced, in seconds "
            "(default: 60.0)."
        ),
        NS("semi_pd"),
    ] = 60.0

    standby_timeout: A[
        float,
        Arg(
            help="A move of the split whose new workers are not ready after so long "
            "has failed, and the old ones serve on, in seconds (default: 180.0)."
        ),
        NS("semi_pd"),
    ] = 180.0

    worker_start_method: A[
        Literal["auto", "spawn"],
        Arg(
            help="How processes start: auto forks them from one that has imported "
            "SGLang and has not used a GPU, so that a rotation or a recovery takes "
            "seconds; spawn starts fresh interpreters, each of which imports SGLang "
            "(default: auto)."
        ),
        NS("semi_pd"),
    ] = "auto"

    # The guide's memory manager was asked for; upstream's flag of the same name
    # means something else and is cleared then.
    semi_pd_unified_memory: A[bool, Arg(no_cli=True), NS("semi_pd")] = False
    # "prefill" or "decode" in the copy a worker runs with, empty in the user's.
    semi_pd_role: A[str, Arg(no_cli=True), NS("semi_pd")] = ""

    def __post_init__(self) -> None:
        if not self.model_path:
            self._resolved_overrides: list[Any] = []
            return
        if self.uses_semi_pd() or self.enable_unified_memory:
            from sglang.semi_pd.config import prepare

            prepare(self)
        super().__post_init__()

    def uses_semi_pd(self) -> bool:
        """Whether Semi-PD serves this configuration."""
        return self.divides() or self.semi_pd_unified_memory

    def divides(self) -> bool:
        """Whether prefill and decode are processes of their own."""
        return (
            self.enable_semi_pd
            or self.enable_semi_pd_coordinator
            or self.enable_slo_aware
        )

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        _UpstreamServerArgs.add_cli_args(_SemiPDSection(parser))

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> ServerArgs:
        from sglang.semi_pd.launch.refusal import exit_with_one_line

        with exit_with_one_line():
            return super().from_cli_args(args)

    def check_server_args(self) -> None:
        super().check_server_args()
        if self.uses_semi_pd():
            from sglang.semi_pd.hooks import require_ready

            require_ready()


_UpstreamServerArgs = ServerArgs.__base__
SEMI_PD_FIELDS = frozenset(
    field.name
    for field in dataclasses.fields(ServerArgs)
    if field.name not in {old.name for old in dataclasses.fields(_UpstreamServerArgs)}
)


@dataclasses.dataclass
class SemiPDPortArgs(PortArgs):
    """The addresses of one Semi-PD instance; ``SemiPDPortArgs()`` is empty."""

    tokenizer_ipc_name: str = ""
    scheduler_input_ipc_name: str = ""
    detokenizer_ipc_name: str = ""
    nccl_port: int = 0
    rpc_ipc_name: str = ""
    metrics_ipc_name: str = ""
    tokenizer_worker_ipc_name: str | None = None
    decoupled_spec_ipc_config: DecoupledSpecIpcConfig | None = None  # noqa: F821
    host: str = "127.0.0.1"
    port: int = 30000

    @staticmethod
    def init_new(
        server_args: ServerArgs,
        dp_rank: int | None = None,
        worker_ports: list[int] | None = None,
    ) -> SemiPDPortArgs:
        upstream = PortArgs.init_new(server_args, dp_rank, worker_ports)
        return SemiPDPortArgs(
            **vars(upstream), host=server_args.host, port=server_args.port
        )
