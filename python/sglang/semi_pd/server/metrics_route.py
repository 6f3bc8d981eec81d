# SPDX-License-Identifier: Apache-2.0
"""``GET /metrics``: SGLang's metrics and the instance's own.

Takes the place of SGLang's route of that name, which knows neither which processes
have ended nor the instance. It renders off the event loop that streams the tokens.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from sglang.semi_pd.monitoring.instance_view import InstanceView
from sglang.semi_pd.monitoring.metrics_exporter import InstanceMetrics
from sglang.semi_pd.monitoring.process_metrics import ProcessMetrics

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator
    from sglang.srt.server_args import ServerArgs

PATHS = ("/metrics", "/metrics/")
ENGINE_TYPE = "unified"
"""SGLang's name for a server that does both; its workers say prefill and decode."""


class MetricsRoute:
    """Renders the registry of one instance; made once SGLang chose its directory."""

    def __init__(self, coordinator: SemiPDCoordinator) -> None:
        from sglang.srt.utils import common

        directory = os.environ["PROMETHEUS_MULTIPROC_DIR"]
        is_private = common.prometheus_multiproc_dir.name == directory
        self._registry = CollectorRegistry()
        self._registry.register(ProcessMetrics(Path(directory), is_private=is_private))
        self._registry.register(
            InstanceMetrics(
                lambda: InstanceView.from_status(coordinator.get_status()),
                labels_of(coordinator.server_args),
            )
        )

    async def answer(self, request: Request) -> Response:
        """In the format that the caller accepts."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await asyncio.to_thread(encode, self._registry)
        return Response(text, headers={"Content-Type": content_type})


def labels_of(server_args: ServerArgs) -> dict[str, str]:
    """The labels that SGLang's main process puts on its own metrics."""
    return {
        "model_name": server_args.served_model_name,
        "engine_type": ENGINE_TYPE,
        **(server_args.extra_metric_labels or {}),
    }
