# SPDX-License-Identifier: Apache-2.0
"""Every check in order, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from sglang.semi_pd.doctor import gpus, host, installation, leftovers
from sglang.semi_pd.doctor.finding import Finding, State

_COLUMN = 14


def examine(
    environ: Mapping[str, str], *, host_name: str, port: int
) -> Iterator[Finding]:
    """All findings, each as soon as it is known."""
    yield from installation.examine(environ)
    driver, instead = gpus.read()
    if driver is not None:
        yield from gpus.examine(driver, environ)
    elif instead is not None:
        yield instead
        yield gpus.without_gpu()
    yield from host.examine(host_name, port, len(driver.gpus) if driver else 0)
    yield from leftovers.examine()


def as_line(finding: Finding) -> str:
    """One finding for a terminal; the mend has a line of its own."""
    line = f"{finding.state.value} {finding.check:{_COLUMN}s} {finding.said}"
    if finding.mend:
        line += f"\n  {'':{_COLUMN}s} mend: {finding.mend}"
    return line


def as_json(findings: Sequence[Finding], seconds: float) -> str:
    """All findings as one object; ``ok`` is whether a server can start."""
    return json.dumps(
        {
            "ok": not is_ill(findings),
            "seconds": round(seconds, 3),
            "checks": [
                {
                    "check": one.check,
                    "state": one.state.name.lower(),
                    "said": one.said,
                    "mend": one.mend,
                }
                for one in findings
            ],
        },
        ensure_ascii=False,
        indent=2,
    )


def is_ill(findings: Sequence[Finding]) -> bool:
    """Whether one of them keeps a server from starting."""
    return any(one.state is State.FAILED for one in findings)
