# SPDX-License-Identifier: Apache-2.0
"""A model that cannot be had is refused at once, with the reason and the remedy."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import model_path

TOKEN = "a-secret"


class Hub(BaseHTTPRequestHandler):
    """Answers as a Hugging Face hub does for four kinds of models."""

    def do_HEAD(self) -> None:  # noqa: N802 - the base class's name
        organisation = self.path.split("/")[1]
        may_read = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if organisation == "open" or (organisation == "gated" and may_read):
            self.send_response(307)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        elif organisation == "gated":
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
        elif organisation == "other":
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def environ(endpoint: str, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")}


def check(path: str, environ: dict[str, str]) -> str:
    return model_path.check(path, environ, needs_weights=True)


def refusal(path: str, environ: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        check(path, environ)
    assert raised.value.why
    assert raised.value.mend
    return raised.value


def test_what_is_fetched_is_said_with_its_place(environ: dict[str, str]) -> None:
    note = check("open/model", environ)
    assert f"fetching open/model from {environ['HF_ENDPOINT']}" in note
    assert f"{environ['HF_HOME']}/hub" in note
    assert "GiB free" in note


def test_a_model_in_the_cache_is_not_asked_for(environ: dict[str, str]) -> None:
    hub = Path(environ["HF_HOME"]) / "hub"
    snapshot = hub / "models--gated--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    environ["HF_HUB_OFFLINE"] = "1"
    assert check("gated/model", environ) == ""
    assert "HF_HUB_OFFLINE" in refusal("open/model", environ).mend


def test_a_gated_model_needs_a_token(environ: dict[str, str]) -> None:
    assert "HF_TOKEN" in refusal("gated/model", environ).mend
    token = Path(environ["HF_HOME"]) / "token"
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text(TOKEN + "\n")
    assert check("gated/model", environ)
    token.unlink()
    environ["HF_TOKEN"] = TOKEN
    assert TOKEN not in check("gated/model", environ)


def test_unknown_names_and_unreachable_hubs(environ: dict[str, str]) -> None:
    assert "no such model" in refusal("nobody/model", environ).why
    # The repository is there, only not that file: SGLang may know what to do with it.
    assert check("other/model", environ)
    environ["HF_ENDPOINT"] = "http://127.0.0.1:1"
    unreachable = refusal("open/model", environ)
    assert "cannot be reached" in unreachable.why
    assert "HF_ENDPOINT to a mirror" in unreachable.mend


def test_folders(tmp_path: Path, environ: dict[str, str]) -> None:
    assert "no such folder" in refusal(str(tmp_path / "none"), environ).why
    assert "no config.json" in refusal(str(tmp_path), environ).why
    (tmp_path / "config.json").write_text("{}")
    assert "no weights" in refusal(str(tmp_path), environ).why
    assert model_path.check(str(tmp_path), environ, needs_weights=False) == ""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "lfs pull" in refusal(str(tmp_path), environ).mend
    weights.write_bytes(bytes(100))
    assert check(str(tmp_path), environ) == ""
    assert model_path.weight_bytes(str(tmp_path)) == 100


def test_weights_that_are_there_twice_count_once(tmp_path: Path) -> None:
    """As Mistral and others publish them: for several loaders, in one folder."""
    shards = [tmp_path / f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for file in (*shards, tmp_path / "consolidated.safetensors"):
        file.write_bytes(bytes(100))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(200))
    assert model_path.weight_bytes(str(tmp_path)) == 200
    (tmp_path / "adapter.safetensors").write_bytes(bytes(50))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shards[0].name}}))
    assert model_path.weight_bytes(str(tmp_path)) == 100
    index.write_text("[]")
    assert model_path.weight_bytes(str(tmp_path)) == 250
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    index.unlink()
    assert model_path.weight_bytes(str(tmp_path)) == 200


def test_a_folder_of_consolidated_weights_alone_counts_them(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").write_bytes(bytes(100))
    assert model_path.weight_bytes(str(tmp_path)) == 100
