# SPDX-License-Identifier: Apache-2.0
"""What green contexts need of SGLang, as far as its arguments tell before a start."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

ATTENTION_BACKENDS = ("fa3", "fa4", "triton")
"""Those that capture into buffers which all graphs of a batch size may share."""

DECODE_GRAPHS = ("full", "disabled")


def why_not(args: ServerArgs) -> str:
    """Why a server with these arguments cannot use green contexts; empty if it can.

    Args:
        args: resolved, so that what SGLang chooses by itself is known.
    """
    if args.disable_overlap_schedule:
        return "with --disable-overlap-schedule SGLang has no forward stream"
    _, attention = args.get_attention_backends()
    if attention and attention not in ATTENTION_BACKENDS:
        return (
            f"decode's attention backend {attention} keeps one state for each batch "
            f"size, whatever the SMs"
        )
    graphs = args.cuda_graph_config.decode.backend
    if graphs not in DECODE_GRAPHS:
        return f"decode graphs of the kind {graphs} exist once, not once for each split"
    return ""
