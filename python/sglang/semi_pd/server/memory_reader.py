# SPDX-License-Identifier: Apache-2.0
"""The block table as the main process has it: read and audited.

Without a lease it takes and gives nothing. To ask enters the table's section, and who
enters repairs what a process that died in it left half done.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from sglang.semi_pd.memory.block_table import AuditReport, BlockTable
from sglang.semi_pd.resident.resident_channel import AttachRequest, Manifest, attach
from sglang.semi_pd.server import memory_usage
from sglang.semi_pd.utils import InstanceRole

logger = logging.getLogger(__name__)

ATTACH_TIMEOUT_S = 30.0


class MemoryReader:
    """What an operator may ask of the KV memory.

    Args:
        block_bytes: size of one block in all layers.
    """

    def __init__(self, table: BlockTable, block_bytes: int) -> None:
        self._table, self._block_bytes = table, block_bytes

    @classmethod
    def of_resident(cls, socket_path: Path) -> MemoryReader:
        """Attach to a resident that is ready, without a lease.

        Raises:
            WorkerStartError: it does not answer, or refuses.
        """
        manifest, table = attach_table(socket_path)
        cache_bytes = sum(ref.extent for ref in manifest.kv_buffers)
        return cls(table, cache_bytes // (table.layout.num_pages + 1))

    @property
    def pages_free(self) -> int:
        """Pages that nobody owns or has leased."""
        return self._table.pages_free

    def usage(self) -> dict[str, Any]:
        """Total, allocated, and who has it, as plain values."""
        return memory_usage.describe(self._table.usage(), self._block_bytes)

    def audit(self) -> AuditReport:
        """Check every page and row now and log violations."""
        report = self._table.audit()
        for violation in report.violations:
            logger.error("Memory audit: %s", violation)
        return report


def attach_table(socket_path: Path) -> tuple[Manifest, BlockTable]:
    """The block table of a resident that is ready, without a lease.

    Raises:
        WorkerStartError: it does not answer, or refuses.
    """
    request = AttachRequest(InstanceRole.RESIDENT, 0)
    manifest, fds = attach(socket_path, request, timeout_s=ATTACH_TIMEOUT_S)
    table = BlockTable.attach(fds[0])
    for fd in fds:
        os.close(fd)
    return manifest, table
