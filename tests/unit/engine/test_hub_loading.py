"""A model of the hub, by a hub of two commits that lives for one test: which files are asked for, and at which commit."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import tiny
from lorastudy.engine.loading import load_base
from lorastudy.errors import ModelError
from lorastudy.suite.base_model import base_model_fingerprint, cached_commit
from lorastudy.suite.settings import Settings

OLD, NEW = "a" * 40, "b" * 40
MODEL = "some/model"


class Hub:
    """`files` by commit; `main` is the commit that the branch stands at; `asked` is every path that was asked for."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files, self.main = files, OLD
        self.asked: list[str] = []

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        revision = next((r for r in (OLD, NEW, "main") if f"/{r}" in path), "main")
        commit = self.main if revision == "main" else revision
        if path.startswith(f"/api/models/{MODEL}/tree/"):
            files = sorted(self.files[commit].iterdir())
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            return 200, {}, json.dumps(tree).encode()
        if path.startswith(f"/api/models/{MODEL}"):
            siblings = [{"rfilename": file.name} for file in sorted(self.files[commit].iterdir())]
            return 200, {}, json.dumps({"id": MODEL, "sha": commit, "siblings": siblings}).encode()
        if path.startswith(f"/{MODEL}/resolve/"):
            content = (self.files[commit] / path.rpartition("/")[2]).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}, content
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({OLD: tiny.save_base(tmp_path / "old"), NEW: tiny.save_base(tmp_path / "new", seed=1)})
    for folder in hub.files.values():
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
        (folder / "modeling_evil.py").write_text("raise SystemExit")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(cache))
    for name in ("constants.ENDPOINT", "hf_api.constants.ENDPOINT", "file_download.constants.ENDPOINT"):
        monkeypatch.setattr(f"huggingface_hub.{name}", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield hub
    server.shutdown()
    server.server_close()


def first_weight(model: str = MODEL) -> float:
    base = load_base(Settings(base_model=model, quantization="fp32"), device=tiny.CPU)
    return float(next(base.model.parameters()).sum())


def test_the_commit_of_the_plan_is_loaded_whatever_the_hub_has_by_now(hub: Hub) -> None:
    assert base_model_fingerprint(MODEL) == f"hub:{MODEL}@unresolved"
    old = first_weight()
    assert cached_commit(MODEL) == OLD
    assert base_model_fingerprint(MODEL) == f"hub:{MODEL}@{OLD}"
    hub.main = NEW
    assert first_weight() == old == first_weight(str(hub.files[OLD]))
    assert first_weight(str(hub.files[NEW])) != old
    assert not [path for path in hub.asked if NEW in path]


def test_pickles_and_code_are_not_even_fetched(hub: Hub) -> None:
    first_weight()
    assert any("model.safetensors" in path for path in hub.asked)
    assert not [path for path in hub.asked if path.endswith((".bin", ".py"))]


def test_a_model_of_pickles_is_refused(hub: Hub) -> None:
    (hub.files[OLD] / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"base_model: some/model: holds no weights: no \*.safetensors"):
        first_weight()


def test_a_model_that_the_hub_does_not_have(hub: Hub) -> None:
    with pytest.raises(ModelError, match="base_model: some/other: the Hugging Face hub has no such model"):
        first_weight("some/other")
