# SPDX-License-Identifier: Apache-2.0
"""The fleet's manifests and configuration: valid, and true about what they start.

The check against Kubernetes' own schemas wants ``pip install kubernetes-validate``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sglang.semi_pd.launch import typed_flags
from sglang.semi_pd.server.admission import HEALTH

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "semi_pd" / "fleet"))

import gateway as sglang_gateway

yaml = pytest.importorskip("yaml")

FLEET = Path(__file__).resolve().parents[2] / "examples" / "semi_pd" / "fleet"
MANIFESTS = sorted((FLEET / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.31"
RECOVERY_S = 180
ONLY_ON_ONE_HOST = {"--log-level", "--worker-startup-check-interval"}


def documents() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text(encoding="utf-8"))


def deployment(name: str) -> dict[str, Any]:
    """The pod template of a deployment."""
    for one in documents():
        if one["kind"] == "Deployment" and one["metadata"]["name"] == name:
            assert one["spec"]["selector"]["matchLabels"].items() <= (
                one["spec"]["template"]["metadata"]["labels"].items()
            )
            template: dict[str, Any] = one["spec"]["template"]
            return template
    raise AssertionError(f"no deployment {name}")


def container(name: str) -> dict[str, Any]:
    [one] = deployment(name)["spec"]["containers"]
    return dict(one)


def test_manifests_fit_kubernetes_schemas() -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    found = list(documents())
    assert len(found) == 8
    for one in found:
        validate(one, KUBERNETES, strict=True)
    with pytest.raises(Exception, match="replica"):
        validate({**found[3], "spec": {"replica": 3}}, KUBERNETES, strict=True)


def test_instances_are_started_with_flags_that_exist() -> None:
    flags = {arg.split("=")[0] for arg in container("semi-pd")["args"]}
    ours = flags & typed_flags.OUR_FLAGS
    assert "--enable-semi-pd-coordinator" in ours
    assert flags - ours <= {"--model-path", "--host", "--port", "--enable-metrics"}


def test_probes_ask_what_says_503_and_give_a_recovery_its_time() -> None:
    server = container("semi-pd")
    probes = {name: server[f"{name}Probe"] for name in ("startup", "readiness")}
    liveness = server["livenessProbe"]
    for probe in (*probes.values(), liveness):
        assert probe["httpGet"]["path"] in HEALTH
        assert probe["timeoutSeconds"] > 1  # `/health` takes a second
    patience_s = liveness["periodSeconds"] * liveness["failureThreshold"]
    assert patience_s >= RECOVERY_S


def test_a_pod_may_drain() -> None:
    spec = deployment("semi-pd")["spec"]
    assert spec["terminationGracePeriodSeconds"] >= 600
    gateway = deployment("semi-pd-gateway")["spec"]
    [grace] = [
        int(arg.split("=")[1])
        for arg in gateway["containers"][0]["args"]
        if arg.startswith("--shutdown-grace-period-secs=")
    ]
    assert grace < gateway["terminationGracePeriodSeconds"]


def test_gateway_on_kubernetes_is_set_as_on_one_host() -> None:
    args = dict(
        arg.split("=", 1)
        for arg in container("semi-pd-gateway")["args"]
        if arg.startswith("--") and "=" in arg
    )
    for option, value in sglang_gateway.SETTINGS.items():
        if option not in ONLY_ON_ONE_HOST:
            assert args[option] == value, option
    port = container("semi-pd")["ports"][0]["containerPort"]
    assert args["--service-discovery-port"] == str(port)
    labels = deployment("semi-pd")["metadata"]["labels"]
    selector = container("semi-pd-gateway")["args"]
    key, _, value = selector[selector.index("--selector") + 1].partition("=")
    assert labels[key] == value


def test_prometheus_scrapes_instances_and_gateway() -> None:
    told = yaml.safe_load((FLEET / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job for job in told["scrape_configs"]}
    assert {"semi-pd-host", "semi-pd-kubernetes"} <= jobs.keys()
    parts = {one["labels"]["part"] for one in jobs["semi-pd-host"]["static_configs"]}
    assert parts == {"instance", "gateway"}
    for name in ("semi-pd", "semi-pd-gateway"):
        assert "prometheus.io/port" in deployment(name)["metadata"]["annotations"]
