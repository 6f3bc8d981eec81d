# SPDX-License-Identifier: Apache-2.0
"""Which of SGLang's arguments exclude green contexts, and what ``auto`` does then."""

from __future__ import annotations

from pathlib import Path

import pytest
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.partition import green_needs
from sglang.semi_pd.partition.sm_partition import start_partition

REFUSED = "with --disable-overlap-schedule SGLang has no forward stream"


@pytest.mark.upstream
@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("", "torch_native keeps one state"),  # what SGLang chooses on a CPU host
        ("--attention-backend triton", ""),
        ("--attention-backend triton --disable-cuda-graph", ""),
        ("--attention-backend triton --disable-overlap-schedule", "no forward stream"),
        ("--attention-backend torch_native", "torch_native keeps one state"),
        (
            "--attention-backend triton --decode-attention-backend torch_native",
            "torch_native keeps one state",
        ),
        (
            "--attention-backend triton --cuda-graph-backend-decode breakable",
            "kind breakable exist once",
        ),
    ],
)
def test_arguments(tiny_model: Path, flags: str, why: str) -> None:
    from sglang.srt.server_args import prepare_server_args

    base = ["--model-path", str(tiny_model), "--device", "cpu"]
    said = green_needs.why_not(prepare_server_args([*base, *flags.split()]))
    assert why in said if why else not said


def test_green_is_refused_before_any_process_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="green is refused") as refused:
        start_partition("green", "cuda", tmp_path, green_refused=REFUSED)
    assert refused.value.why == REFUSED
    assert "--sm-partition-backend mps" in refused.value.mend
    assert not any(tmp_path.iterdir())
