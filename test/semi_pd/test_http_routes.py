# SPDX-License-Identifier: Apache-2.0
"""Who may read the state and who may move the split; what is answered, and when.

A FastAPI application with SGLang's own key check in front of our routes, built in the
order in which SGLang builds it. Behind the routes is a coordinator's rotation with a
mechanism that needs no workers.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import upstream_auth
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sglang.semi_pd.errors import RotationError
from sglang.semi_pd.launch import upstream_source
from sglang.semi_pd.monitoring.history import History
from sglang.semi_pd.monitoring.instance_view import InstanceView
from sglang.semi_pd.process_rotation_manager import ProcessRotationManager
from sglang.semi_pd.sm_allocation import SMAllocation
from status_document import Parts

auth = upstream_auth.load()

from sglang.semi_pd.server import http_routes, slo_service  # noqa: E402

STATUS, REALLOCATE = "/semi_pd/status", "/semi_pd/reallocate"
SLO = "/semi_pd/slo"
HISTORY, PAGE = "/semi_pd/history", "/semi_pd/"
GOOD = {"prefill_percentage": 60, "decode_percentage": 40}
SLOWER = {"ttft_target_ms": 300.0, "tpot_target_ms": 80.0}
CONFIG = SimpleNamespace(
    moves_split=False,
    slo_window_s=30.0,
    slo_mode="follow",
    slo_monitoring_interval_s=10.0,
    slo_ttft_target_ms=100.0,
    slo_tpot_target_ms=50.0,
    slo_calibration=None,
    slo_decision_log=None,
    overlap_allowed=False,
)
API, ADMIN = "api-key-canary", "admin-key-canary"
HERE, ELSEWHERE = "127.0.0.1", "192.0.2.7"

# Keys of the server: what each caller gets at status, and at reallocate from here.
CHANGES: dict[str, Any] = {REALLOCATE: GOOD, SLO: SLOWER}
CALLERS = ("none", "wrong", "api", "admin")
MATRIX: dict[tuple[bool, bool], tuple[tuple[int, ...], tuple[int, ...]]] = {
    (False, False): ((200, 200, 200, 200), (200, 200, 200, 200)),
    (True, False): ((401, 401, 200, 401), (401, 401, 200, 401)),
    (False, True): ((200, 200, 200, 200), (401, 401, 401, 200)),
    (True, True): ((401, 401, 200, 401), (401, 401, 401, 200)),
}
CASES = [
    (keys, caller, path, row[place])
    for keys, rows in MATRIX.items()
    for paths, row in zip(((STATUS, HISTORY), (REALLOCATE, SLO)), rows, strict=True)
    for path in paths
    for place, caller in enumerate(CALLERS)
]


class InstantSplit:
    """A mechanism that obeys at once, unless told to wait or to fail."""

    can_move = True

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.entered = threading.Event()
        self.problem = ""

    def apply(self, allocation: SMAllocation) -> None:
        self.entered.set()
        assert self.may_go_on.wait(10)
        if self.problem:
            raise RotationError(self.problem)


class Instance:
    """What the routes need of a coordinator."""

    def __init__(self, api_key: str | None, admin_api_key: str | None) -> None:
        self.server_args = SimpleNamespace(
            api_key=api_key, admin_api_key=admin_api_key, enable_metrics=False
        )
        self.history = History(self.view)
        self.mechanism = InstantSplit()
        self.rotation = ProcessRotationManager(
            self.mechanism, SMAllocation(70, 30), allow_overlap=False
        )
        self.slo = slo_service.SLOService(CONFIG, self.rotation)  # type: ignore[arg-type]
        self.status_may_go_on = threading.Event()
        self.status_may_go_on.set()

    def get_status(self) -> dict[str, Any]:
        assert self.status_may_go_on.wait(10)
        return {"process_rotation_status": self.rotation.get_status()}

    def view(self) -> InstanceView:
        return InstanceView.from_status(Parts().status())

    def request_sm_reallocation(self, allocation: SMAllocation) -> bool:
        return self.rotation.request_sm_reallocation(allocation)

    def app(self) -> FastAPI:
        """The application, in the order of SGLang: routes first, then the check."""
        app = FastAPI()
        http_routes.install(app, self)  # type: ignore[arg-type]
        keys = {name: getattr(self.server_args, name) for name in KEYS}
        if any(keys.values()):
            http_routes.add_key_checks(auth.add_api_key_middleware, app, **keys)
        return app

    def client(self, host: str = HERE) -> TestClient:
        return TestClient(
            self.app(), base_url="http://localhost:30000", client=(host, 50000)
        )


KEYS = ("api_key", "admin_api_key")


@pytest.fixture
def instance() -> Instance:
    return Instance(None, None)


@pytest.fixture
def client(instance: Instance) -> Iterator[TestClient]:
    with instance.client() as client:
        yield client


@pytest.mark.parametrize("path", http_routes.REFUSED)
def test_what_would_harm_is_refused_in_one_line(client: TestClient, path: str) -> None:
    for reply in (client.get(path), client.post(path, json={"action": "compare"})):
        assert reply.status_code == 400
        assert reply.json()["error"]["message"].startswith(f"{path} is not supported")


def test_every_route_of_sglang_to_weights_or_memory_is_judged() -> None:
    source = Path(upstream_source.root(), "srt", "entrypoints", "http_server.py")
    routes = set(re.findall(r'@app\.\w+\(\s*"(/\w+)"', source.read_text("utf-8")))
    found = {route for route in routes if re.search("weight|memory|lora", route)}
    assert len(found) > 10
    assert found - http_routes.REFUSED.keys() == {
        "/get_weight_version",
        "/weight_version",
        "/update_weight_version",  # a name that answers carry
        "/get_weights_by_name",
    }


def with_keys(api: bool, admin: bool) -> Instance:  # noqa: FBT001 - a row of the matrix
    return Instance(API if api else None, ADMIN if admin else None)


def headers_of(caller: str) -> dict[str, str]:
    tokens = {"wrong": "guess", "api": API, "admin": ADMIN}
    return {"Authorization": f"Bearer {tokens[caller]}"} if caller in tokens else {}


def ask(client: TestClient, path: str, caller: str, **more: str) -> Any:
    headers = headers_of(caller) | more
    if path not in CHANGES:
        return client.get(path, headers=headers)
    return client.post(path, json=CHANGES[path], headers=headers)


@pytest.mark.parametrize(("keys", "caller", "path", "expected"), CASES)
def test_matrix_of_keys_and_callers(
    keys: tuple[bool, bool], caller: str, path: str, expected: int
) -> None:
    instance = with_keys(*keys)
    reply = ask(instance.client(), path, caller)
    assert reply.status_code == expected
    is_moved = path == REALLOCATE and expected == 200
    assert instance.rotation.get_status()["moves"] == int(is_moved)
    targets = instance.slo.get_status()["slo_constraints"]
    is_slower = targets["ttft_target_ms"] == SLOWER["ttft_target_ms"]
    assert is_slower == (path == SLO and expected == 200)
    assert API not in reply.text and ADMIN not in reply.text


@pytest.mark.parametrize("keys", MATRIX)
@pytest.mark.parametrize("caller", CALLERS)
def test_from_elsewhere_only_the_admin_key_moves(
    keys: tuple[bool, bool], caller: str
) -> None:
    instance = with_keys(*keys)
    told = ask(instance.client(ELSEWHERE), SLO, caller)
    reply = ask(instance.client(ELSEWHERE), REALLOCATE, caller)
    at_home = MATRIX[keys][1][CALLERS.index(caller)]
    expected = 403 if at_home == 200 and not keys[1] else at_home
    assert reply.status_code == told.status_code == expected
    if expected == 403:
        assert "--admin-api-key" in reply.json()["error"]["message"]
    assert instance.rotation.get_status()["moves"] == int(expected == 200)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "192.0.2.7"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Origin": "https://example.org"},
        {"Origin": "null"},
        {"Host": "example.org:30000"},
        {"Host": "localhost.example.org"},
        {"Host": "[::1"},
        {"Host": ""},
    ],
    ids=str,
)
def test_proxies_and_other_sites_are_not_this_machine(
    instance: Instance, client: TestClient, headers: dict[str, str]
) -> None:
    assert client.post(REALLOCATE, json=GOOD, headers=headers).status_code == 403
    assert instance.rotation.get_status()["moves"] == 0


@pytest.mark.parametrize("host", [HERE, "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("name", ["localhost:30000", "127.0.0.1", "[::1]:30000"])
def test_this_machine_by_any_of_its_names(
    instance: Instance, host: str, name: str
) -> None:
    headers = {"Host": name, "Origin": f"http://{name}"}
    reply = instance.client(host).post(REALLOCATE, json=GOOD, headers=headers)
    assert reply.status_code == 200


@pytest.mark.parametrize("host", ["a/health", "a/metrics?", "a/health#", "a\\health"])
@pytest.mark.parametrize("keys", [(True, False), (True, True)])
def test_a_crafted_host_opens_nothing(keys: tuple[bool, bool], host: str) -> None:
    """SGLang's check opens paths that begin with /health, and takes them from a URL."""
    instance = with_keys(*keys)
    reply = ask(instance.client(), REALLOCATE, "none", Host=host)
    assert reply.status_code in (400, 401)
    assert instance.rotation.get_status()["moves"] == 0


@pytest.mark.parametrize("path", ["/semi_pd/reallocate/", "/semi_pd//reallocate"])
def test_other_spellings_of_the_path_open_nothing(path: str) -> None:
    instance = with_keys(api=True, admin=True)
    reply = instance.client().post(path, json=GOOD)
    assert reply.status_code in (401, 404)
    assert instance.rotation.get_status()["moves"] == 0


def test_it_answers_when_the_new_split_serves(
    instance: Instance, client: TestClient
) -> None:
    reply = client.post(REALLOCATE, json=GOOD)
    assert reply.status_code == 200
    assert reply.json()["current_sm_allocation"] == GOOD
    assert reply.json()["took_s"] >= 0
    assert instance.rotation.current_allocation == SMAllocation(60, 40)
    assert client.get(STATUS).json() == instance.get_status()


def test_other_requests_are_answered_during_a_move(
    instance: Instance, client: TestClient
) -> None:
    instance.mechanism.may_go_on.clear()
    replies: list[Any] = []
    mover = threading.Thread(
        target=lambda: replies.append(client.post(REALLOCATE, json=GOOD))
    )
    mover.start()
    assert instance.mechanism.entered.wait(10)
    assert client.get(STATUS).status_code == 200
    second = client.post(REALLOCATE, json=GOOD)
    assert second.status_code == 409
    assert "another request" in second.json()["error"]["message"]
    assert not replies
    instance.mechanism.may_go_on.set()
    mover.join(10)
    assert replies[0].status_code == 200
    assert client.post(REALLOCATE, json=GOOD).status_code == 200


def test_other_requests_are_answered_while_the_status_waits(
    instance: Instance, client: TestClient
) -> None:
    """For a lock that a worker holds which stands still."""
    instance.status_may_go_on.clear()
    replies: list[Any] = []
    asker = threading.Thread(target=lambda: replies.append(client.get(STATUS)))
    asker.start()
    assert client.get(HISTORY).status_code == 200
    assert not replies
    instance.status_may_go_on.set()
    asker.join(10)
    assert replies[0].status_code == 200


def test_a_refused_move_is_a_conflict_with_its_reason(
    instance: Instance, client: TestClient
) -> None:
    instance.mechanism.problem = "a worker did not take its cores in time"
    reply = client.post(REALLOCATE, json=GOOD)
    assert reply.status_code == 409
    assert instance.mechanism.problem in reply.json()["error"]["message"]
    unchanged = SMAllocation(70, 30).as_dict()
    assert reply.json()["current_sm_allocation"] == unchanged


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[60, 40]", "not an object"),
        ("null", "not an object"),
        ("{}", "prefill_percentage is missing"),
        ('{"prefill_percentage": 60}', "decode_percentage is missing"),
        (json.dumps({**GOOD, "prefil": 1}), "'prefil' is not a field"),
        (json.dumps({**GOOD, "prefill_percentage": 0}), "prefill_percentage=0"),
        (json.dumps({**GOOD, "decode_percentage": 101}), "decode_percentage=101"),
        (json.dumps({**GOOD, "prefill_percentage": 60.0}), "prefill_percentage=60.0"),
        (json.dumps({**GOOD, "prefill_percentage": "60"}), "prefill_percentage='60'"),
        (json.dumps({**GOOD, "prefill_percentage": True}), "prefill_percentage=True"),
        ('{"prefill_percentage": NaN, "decode_percentage": 1}', "prefill_percentage"),
        (json.dumps({**GOOD, "decode_percentage": 41}), "decode_percentage = 101"),
        (json.dumps({**GOOD, "decode_percentage": 9}), "decode_percentage=9 is"),
        (json.dumps({**GOOD, "decode_percentage": ["a" * 2000]}), "decode_percentage"),
        ("[" * 4000, "not"),
        (" " * 5000, "4096 bytes"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_input_is_one_line_that_names_the_field(
    instance: Instance, client: TestClient, body: str, named: str
) -> None:
    reply = client.post(REALLOCATE, content=body)
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert named in message
    assert "\n" not in message and len(message) < 400
    assert instance.rotation.get_status()["moves"] == 0


def test_reading_needs_get_and_moving_needs_post(client: TestClient) -> None:
    assert client.post(STATUS).status_code == 405
    assert client.get(REALLOCATE).status_code == 405
    assert client.get(SLO).status_code == 405


def test_the_controller_is_told_at_run_time(
    instance: Instance, client: TestClient
) -> None:
    try:
        on = client.post(SLO, json={"mode": "auto", **SLOWER}).json()
        assert on["is_running"] and on["mode"] == "auto"
        assert on["slo_constraints"] == {**SLOWER, "percentile": 95}
        advises = client.post(SLO, json={"mode": "advise"}).json()
        assert advises["is_running"] and advises["mode"] == "advise"
        assert advises["slo_constraints"] == on["slo_constraints"]
        tighter = client.post(SLO, json={"tpot_target_ms": 20}).json()
        assert tighter["is_running"]
        assert tighter["slo_constraints"]["tpot_target_ms"] == 20
        assert not client.post(SLO, json={"mode": "off"}).json()["is_running"]
    finally:
        instance.slo.stop()


def test_a_split_that_cannot_move_is_not_followed(
    instance: Instance, client: TestClient
) -> None:
    instance.mechanism.can_move = False
    reply = client.post(SLO, json={"mode": "follow"})
    assert reply.status_code == 409
    assert "does not move" in reply.json()["error"]["message"]
    assert not instance.slo.get_status()["is_running"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ("{}", "names none of"),
        ('{"mode": "on"}', "mode is none of off, advise, follow, auto"),
        ('{"mode": null}', "mode is none of"),
        ('{"mode": ["off"]}', "mode is none of"),
        ('{"modus": "off"}', "'modus' is not a field"),
        ('{"ttft_target_ms": 0}', "ttft_target_ms"),
        ('{"ttft_target_ms": true}', "ttft_target_ms"),
        ('{"tpot_target_ms": "20"}', "tpot_target_ms"),
        ('{"tpot_target_ms": NaN}', "tpot_target_ms"),
        ('{"tpot_target_ms": Infinity}', "tpot_target_ms"),
        (" " * 5000, "4096 bytes"),
    ],
)
def test_bad_wishes_change_nothing(
    instance: Instance, client: TestClient, body: str, named: str
) -> None:
    before = instance.slo.get_status()
    reply = client.post(SLO, content=body)
    assert reply.status_code == 400
    assert named in reply.json()["error"]["message"]
    assert instance.slo.get_status() == before


@pytest.mark.parametrize("keys", MATRIX)
def test_the_page_needs_no_key_and_holds_none_of_the_data(
    keys: tuple[bool, bool],
) -> None:
    client = with_keys(*keys).client(ELSEWHERE)
    page = client.get(PAGE)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert client.head(PAGE).status_code in (200, 405)
    for data in (API, ADMIN, 'prefill_percentage":'):
        assert data not in page.text
    assert "http://" not in page.text.replace("http://www.w3.org/", "")
    assert "https://" not in page.text
    assert client.get("/semi_pd").url.path == PAGE or keys[0]


def test_other_methods_on_the_page_are_checked() -> None:
    client = with_keys(api=True, admin=True).client()
    assert client.post(PAGE).status_code == 401
    assert client.get(f"{PAGE}?x=/status").text == client.get(PAGE).text


def test_history_from_a_number_on(instance: Instance, client: TestClient) -> None:
    for _ in range(3):
        instance.history.take()
    everything = client.get(HISTORY).json()
    assert len(everything["rows"]) == everything["next"] == 3
    assert len(client.get(f"{HISTORY}?since=2").json()["rows"]) == 1
    assert client.get(f"{HISTORY}?since=x").status_code == 422
