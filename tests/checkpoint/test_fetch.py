"""The hub, served on this machine: what is asked of it, what stays in the cache, and how it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import constants, file_download
from safetensors.torch import save

import vlmkit
from vlmkit.checkpoint import fetch as fetching
from vlmkit.checkpoint.fetch import fetch, is_hub
from vlmkit.checkpoint.tensors import headers
from vlmkit.errors import CheckpointCorruptError, CheckpointFormatError, CheckpointSafetyError, FetchError, WeightsError
from vlmkit.limits import Limits

WEIGHTS = save({"a.weight": torch.arange(3000.0)})
PARTS = {"m-1.safetensors": save({"a": torch.zeros(2)}), "m-2.safetensors": save({"b": torch.zeros(2)})}
MAP = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).encode()
ONE = {"config.json": b'{"model_type": "llava"}', "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}
SHARDS = {"config.json": b"{}", "model.safetensors.index.json": MAP, **PARTS}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The few answers of a hub that its client asks for."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}  # repository -> name -> content
        self.revisions = {"main": COMMIT, COMMIT: COMMIT}
        self.log: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.agents: set[str] = set()
        self.private: dict[str, str] = {}  # repository -> token
        self.status: dict[str, tuple[int, dict[str, str]]] = {}  # repository -> answer to everything
        self.cut: dict[str, list[int]] = {}  # file -> bytes after which the connection ends, time after time
        self.lies: dict[str, bytes] = {}  # file -> what comes instead of its content
        self.server: Any = None
        self.connections: list[socket.socket] = []

    def start(self) -> None:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                hub.connections.append(self.connection)

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def gets(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path in self.log if method == "GET" and "/resolve/" in path]

    def answer(self, ask: Any) -> None:
        path = unquote(urlsplit(ask.path).path)
        token = (ask.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.log.append((ask.command, path))
        self.tokens.add(token)
        self.agents.add(ask.headers.get("User-Agent", ""))
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo = "/".join(parts[:2])
        if repo in self.status:
            return self.reply(ask, *self.status[repo])
        if repo not in self.files or self.private.get(repo, token) != token:
            code = 404 if token else 401
            return self.reply(ask, code, {"X-Error-Code": "RepoNotFound"})
        revision = "/".join(parts[3:] if path.startswith("/api") else parts[3:-1])
        if revision not in self.revisions:
            return self.reply(ask, 404, {"X-Error-Code": "RevisionNotFound"})
        commit = self.revisions[revision]
        if path.startswith("/api"):
            told = {"id": repo, "sha": commit, "siblings": [self.listed(repo, name) for name in self.files[repo]]}
            return self.reply(ask, 200, {"Content-Type": "application/json"}, json.dumps(told).encode())
        return self.file(ask, repo, parts[-1], commit)

    def listed(self, repo: str, name: str) -> dict[str, Any]:
        data = self.files[repo][name]
        row: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git(data)}
        if name.endswith(".safetensors"):
            row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}
        return row

    def file(self, ask: Any, repo: str, name: str, commit: str) -> None:
        row, data = self.listed(repo, name), self.files[repo][name]
        etag = row["lfs"]["sha256"] if "lfs" in row else row["blobId"]
        data = self.lies.get(name, data)
        head = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if ask.headers.get("Range"):
            start = int(ask.headers["Range"].removeprefix("bytes=").rstrip("-"))
            status, head["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(ask, status, head, data[start:], self.cut.get(name) if ask.command == "GET" else None)

    @staticmethod
    def reply(ask: Any, status: int, head: dict[str, str], body: bytes = b"", cut: list[int] | None = None) -> None:
        ask.send_response(status)
        for key, value in head.items():
            ask.send_header(key, value)
        ask.send_header("Content-Length", str(len(body)))
        ask.end_headers()
        if ask.command == "GET":
            ask.wfile.write(body if not cut else body[: cut.pop(0)])
            if cut is not None:
                ask.close_connection = True


def git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and a client that knows it and nothing else."""
    hub = Hub()
    hub.start()
    hub.files["org/one"], hub.files["org/parts"] = dict(ONE), dict(SHARDS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        hub.address + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # between the client's own retries
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield hub
    hub.stop()


def held(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_download(hub: Hub, tmp_path: Path) -> None:
    folder = fetch("org/one")
    assert held(folder) == ONE
    assert folder == tmp_path / "cache" / "models--org--one" / "snapshots" / COMMIT
    assert headers(folder)["a.weight"].shape == (3000,)
    assert hub.gets() == ["config.json", "tokenizer.json", "model.safetensors"]  # weights last: with them, it is whole
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_second_time_nothing_is_downloaded(hub: Hub) -> None:
    folder = fetch("org/one")
    hub.log.clear()
    assert fetch("org/one") == folder
    assert not hub.gets()


def test_shards_are_those_of_the_index(hub: Hub) -> None:
    hub.files["org/parts"]["consolidated.safetensors"] = WEIGHTS
    folder = fetch("org/parts")
    assert held(folder) == SHARDS
    assert headers(folder).keys() == {"a", "b"}


def test_only_what_is_read_is_downloaded(hub: Hub) -> None:
    extra = ("model.py", "pytorch_model.bin", "README.md", "training_args.bin", "onnx/model.onnx", "vocab.json",
             "sub/model.safetensors", ".gitattributes", "optimizer.pt", "fp16.safetensors")  # fmt: skip
    hub.files["org/one"] |= dict.fromkeys(extra, b"x")
    hub.files["org/one"] |= dict.fromkeys(fetching.SMALL, b"{}")
    assert set(held(fetch("org/one"))) == {"model.safetensors", *fetching.SMALL}


def test_without_weights(hub: Hub) -> None:
    hub.files["org/words"] = {"tokenizer.json": b"{}", "pytorch_model.bin": b"x"}
    assert set(held(fetch("org/words", weights=False))) == {"tokenizer.json"}
    assert set(held(fetch("org/one", weights=False))) == {"config.json", "tokenizer.json"}
    assert held(fetch("org/one")) == ONE


def test_a_revision(hub: Hub) -> None:
    old = "f" * 40
    hub.revisions |= {"v1": old, "refs/pr/7": old, old: old}
    hub.files["org/one"]["config.json"] = b'{"old": 1}'
    for name in ("v1", "refs/pr/7", old):
        assert fetch(f"org/one@{name}").name == old
    assert fetch("org/one").name == COMMIT
    with pytest.raises(FetchError, match="no such revision") as caught:
        fetch("org/one@v2")
    assert caught.value.code == "VK-HUB-MISSING"
    assert caught.value.where == "org/one@v2"


def test_a_branch_that_moves_on(hub: Hub) -> None:
    first = fetch("org/one")
    hub.revisions |= {"main": "a" * 40, "a" * 40: "a" * 40}
    hub.files["org/one"]["config.json"] = b'{"new": 1}'
    second = fetch("org/one")
    assert (first.name, second.name) == (COMMIT, "a" * 40)
    assert held(second)["config.json"] == b'{"new": 1}'
    assert hub.gets().count("model.safetensors") == 1  # the same bytes are the same file


def test_a_branch_that_moves_in_the_middle(hub: Hub) -> None:
    """Files of two commits are never put together."""
    def moving(ask: Any) -> None:
        answer(ask)
        hub.revisions["main"] = "a" * 40

    answer, hub.answer = hub.answer, moving  # type: ignore[method-assign]
    with pytest.raises(FetchError, match="changed while it was read") as caught:
        fetch("org/one")
    assert caught.value.code == "VK-HUB-CUT"
    hub.revisions["a" * 40] = "a" * 40
    assert fetch("org/one").name == "a" * 40


def test_the_cache_stands_in_for_a_hub_that_is_down(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: fetch(name) for name in ("org/one", "org/parts")}
    hub.stop()
    for name, folder in folders.items():
        with pytest.warns(UserWarning, match=r"cannot be reached .*taking the copy in the cache"):
            assert fetch(name) == folder
        with pytest.warns(UserWarning, match="taking the copy"):
            assert fetch(f"{name}@{COMMIT}") == folder
    with pytest.raises(FetchError, match=r"org/other: the hub cannot be reached \(\w+Error\)") as caught:
        fetch("org/other")
    assert caught.value.code == "VK-HUB-NETWORK"
    hub.start()


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    folder = fetch("org/one")
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("org/one") == folder
    assert fetch(f"org/one@{COMMIT}") == folder
    with pytest.raises(FetchError, match=r"not in the cache, and HF_HUB_OFFLINE is set\n  unset it") as caught:
        fetch("org/parts")
    assert caught.value.code == "VK-HUB-OFFLINE"
    assert not hub.log
    assert not [w for w in recwarn if "vlmkit" in str(w.filename)]


@pytest.mark.parametrize(("name", "lost"), [("org/one", "model.safetensors"), ("org/parts", "m-2.safetensors")])
def test_half_a_copy_is_not_taken_for_whole(hub: Hub, name: str, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(name)
    (folder / lost).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match=rf"not whole: .*{lost}"):
        fetch(name)
    assert fetch(name, weights=False) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert (fetch(name) / lost).is_file()


def test_a_token_is_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private["org/one"] = "hf_secret"
    with pytest.raises(FetchError, match="no such repository, or shows it to some only") as caught:
        fetch("org/one")
    assert "HF_TOKEN" in caught.value.hint
    assert hub.tokens == {None}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.tokens.clear()
    assert held(fetch("org/one")) == ONE
    assert hub.tokens == {"hf_secret"}


@pytest.mark.parametrize(("status", "head", "code", "told"), [
    (404, {"X-Error-Code": "RepoNotFound"}, "MISSING", "no such repository"),
    (401, {}, "ACCESS", "wants a token, or another one"),
    (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "ACCESS", "see HF_TOKEN"),
    (403, {"X-Error-Code": "GatedRepo"}, "ACCESS", "accept its conditions"),
    (401, {"X-Error-Code": "GatedRepo"}, "ACCESS", "accept its conditions"),
    (403, {}, "ACCESS", "HF_TOKEN"), (429, {}, "NETWORK", "status 429"), (500, {}, "NETWORK", "try again later"),
    (503, {}, "NETWORK", "status 503"), (418, {}, "NETWORK", "status 418"),
])  # fmt: skip
def test_refusals(hub: Hub, status: int, head: dict[str, str], code: str, told: str,
                  monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status["org/closed"] = (status, head)
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    with pytest.raises(FetchError, match=told) as caught:
        fetch("org/closed")
    assert caught.value.code == f"VK-HUB-{code}"
    assert caught.value.where == "org/closed"
    assert "hf_secret_token" not in repr(vars(caught.value))
    assert hub.address not in str(caught.value)


def test_what_is_no_hub(hub: Hub) -> None:
    """Some other server, or a portal that wants a login."""
    hub.answer = lambda ask: hub.reply(ask, 200, {"Content-Type": "text/html"}, b"<html>Log in</html>")  # type: ignore[method-assign]
    with pytest.raises(FetchError) as caught:
        fetch("org/one")
    assert caught.value.code == "VK-HUB-NETWORK"


def test_it_does_not_wait_for_ever(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
    monkeypatch.setattr(fetching, "PATIENCE", 0.2)
    with pytest.raises(FetchError, match=r"ReadTimeout") as caught:
        fetch("org/one")
    assert caught.value.code == "VK-HUB-NETWORK"
    listening.close()


def test_a_download_that_is_cut_goes_on(hub: Hub) -> None:
    hub.cut["model.safetensors"] = [5000, 3000, 10**9]
    assert held(fetch("org/one")) == ONE
    assert hub.gets().count("model.safetensors") == 3


def test_a_download_that_breaks_off(hub: Hub, tmp_path: Path) -> None:
    hub.cut["model.safetensors"] = [5000] + [0] * 20
    with pytest.raises(FetchError, match="the download broke off") as caught:
        fetch("org/one")
    assert caught.value.code == "VK-HUB-CUT"
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    hub.cut.clear()
    hub.log.clear()
    assert held(fetch("org/one")) == ONE
    assert hub.gets() == ["model.safetensors"]  # the others are kept


def test_a_hub_that_goes_away_in_the_middle(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(ask: Any) -> None:
        if "model.safetensors" in ask.path and ask.command == "GET":
            ask.close_connection = True
            ask.connection.close()
        else:
            answer(ask)

    answer, hub.answer = hub.answer, away  # type: ignore[method-assign]
    with pytest.raises(FetchError) as caught:
        fetch("org/one")
    assert caught.value.code == "VK-HUB-CUT"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_other_bytes_than_announced(hub: Hub, tmp_path: Path, name: str) -> None:
    data = hub.files["org/one"][name]
    hub.lies[name] = data[:-3] + b"\xff" + data[-2:]
    with pytest.raises(CheckpointCorruptError, match=r"announced as .* removed"):
        fetch("org/one")
    assert not list((tmp_path / "cache").rglob(name))
    hub.lies.clear()
    assert held(fetch("org/one")) == ONE


def test_shorter_than_announced(hub: Hub) -> None:
    hub.lies["model.safetensors"] = WEIGHTS[:-100]
    with pytest.raises(WeightsError):
        fetch("org/one")
    hub.lies.clear()
    assert held(fetch("org/one")) == ONE


@pytest.mark.parametrize("name", [
    "cat", "", "org/", "/org/one", "org/one/more", "../one", "org/..", "./one", "~/one", "http://host/one", "org/one@",
    "org/one@../x", "org/one@a/../../b", "org/one@/etc", "org one/x", "-org/one", "org/one\n", "ørg/one", "org/a--b",
    "C:\\org\\one", "org/one@v1@v2", "org/one?x=1", "org/one#x", "a" * 200 + "/b", "org/one.git", "org/x" + "y" * 96,
])  # fmt: skip
def test_names_that_never_reach_the_network(hub: Hub, name: str) -> None:
    with pytest.raises(FetchError) as caught:
        fetch(name)
    assert caught.value.code == "VK-HUB-NAME"
    assert not hub.log


def test_names_of_a_hub() -> None:
    names = ("llava-hf/llava-1.5-7b-hf", "a/b", "Org.x/N_1@main", "a/b@refs/pr/1", f"a/b@{COMMIT}", "a/b@v1.0-rc_2")
    assert all(is_hub(name) for name in names)


def test_only_pickled_weights(hub: Hub) -> None:
    """Told from the list of files: nothing is downloaded."""
    hub.files["org/old"] = {"config.json": b"{}", "pytorch_model-00001-of-00002.bin": b"x", "tokenizer.json": b"{}"}
    with pytest.raises(CheckpointSafetyError, match=r"only pickled weights are here \(pytorch_model-00001"):
        fetch("org/old")
    assert not hub.gets()
    hub.files["org/none"] = {"README.md": b"x"}
    with pytest.raises(CheckpointFormatError, match=r"no model\.safetensors"):
        fetch("org/none")
    hub.files["org/none"] |= {"sub/model.safetensors": WEIGHTS, "..\\model.safetensors": WEIGHTS}
    with pytest.raises(CheckpointFormatError, match=r"no model\.safetensors"):
        fetch("org/none")
    with pytest.raises(FetchError, match="no configuration and no tokenizer"):
        fetch("org/none", weights=False)


def test_pickled_weights_come_when_they_are_asked_for(hub: Hub) -> None:
    pickles = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    hub.files["org/old"] = {"config.json": b"{}", "training_args.bin": b"x", **dict.fromkeys(pickles, b"y")}
    with pytest.raises(CheckpointSafetyError, match="vlmkit import org/old --unpickle --out DIR"):
        fetch("org/old")
    assert sorted(held(fetch("org/old", unpickle=True))) == ["config.json", *pickles]
    hub.files["org/one"] |= {"pytorch_model.bin": b"x"}
    assert "pytorch_model.bin" not in held(fetch("org/one", unpickle=True))  # where there is better
    hub.stop()
    with pytest.warns(UserWarning, match="copy in the cache"):
        assert sorted(held(fetch("org/old", unpickle=True))) == ["config.json", *pickles]
    hub.start()


def test_of_a_tokenizer_only_the_words_are_fetched(hub: Hub) -> None:
    words = Path(vlmkit.compose("tiny").tokenizer.from_) / "tokenizer.json"
    hub.files["org/words"] = {"tokenizer.json": words.read_bytes(), "model.safetensors": WEIGHTS, "config.json": b"{}"}
    _, processor = vlmkit.load("tiny", "tokenizer.from=org/words")
    assert processor.tokenizer.source == words.read_text("utf-8")
    assert sorted(hub.gets()) == ["config.json", "tokenizer.json"]


def test_an_adapter_is_told_from_a_model(hub: Hub) -> None:
    hub.files["org/lora"] = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}
    with pytest.raises(CheckpointFormatError, match="LoRA adapter"):
        vlmkit.load("org/lora")


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_reaches_nothing_else(hub: Hub, shard: str) -> None:
    hub.files["org/parts"]["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": shard}}).encode()
    with pytest.raises(CheckpointSafetyError, match="plain file name"):
        fetch("org/parts")
    assert hub.gets() == ["config.json", "model.safetensors.index.json"]


def test_an_index_that_names_what_is_not_there(hub: Hub) -> None:
    del hub.files["org/parts"]["m-2.safetensors"]
    with pytest.raises(CheckpointFormatError, match=r"m-2\.safetensors is in the index and not in the repository"):
        fetch("org/parts")


def test_limits(hub: Hub) -> None:
    hub.files["org/one"]["tokenizer.json"] = b" " * 5000
    with Limits(tokenizer_max_bytes=4000), pytest.raises(FetchError) as caught:
        fetch("org/one")
    assert (caught.value.setting, caught.value.limit, caught.value.got) == ("tokenizer.max_bytes", 4000, 5000)
    assert not hub.gets()
    with Limits(ckpt_max_shards=1), pytest.raises(CheckpointFormatError, match="too many shards"):
        fetch("org/parts")
    assert hub.gets() == ["config.json", "model.safetensors.index.json"]


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    free = len(WEIGHTS) - 500
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(FetchError, match="the disk is full: 500 bytes are missing") as caught:
        fetch("org/one")
    assert caught.value.code == "VK-HUB-ROOM"
    assert hub.gets() == ["config.json", "tokenizer.json"]
    monkeypatch.undo()


def test_a_disk_that_fills_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(FetchError, match="the disk is full") as caught:
        fetch("org/one")
    assert caught.value.code == "VK-HUB-ROOM"


def test_nothing_is_told_about_the_user(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would ask which programs to look for, and tell what runs here."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    fetch("org/one")
    assert all(path.startswith(("/api/models/org/one/revision/", "/org/one/resolve/")) for _, path in hub.log)
    assert all(agent.startswith(f"vlmkit/{vlmkit.__version__}; hf_hub/") for agent in hub.agents)
    assert not any(word in agent for agent in hub.agents for word in ("torch/", "agent/"))
    assert constants.HF_HUB_DISABLE_TELEMETRY is False  # as it was
    with pytest.raises(FetchError):
        fetch("org/none")
    assert constants.HF_HUB_DISABLE_TELEMETRY is False


def test_a_copy_of_a_repository_that_is_gone(hub: Hub) -> None:
    folder = fetch("org/one")
    hub.status["org/one"] = (503, {})
    with pytest.warns(UserWarning, match="status 503; taking the copy"):
        assert fetch("org/one") == folder
    hub.status["org/one"] = (404, {"X-Error-Code": "RepoNotFound"})
    with pytest.raises(FetchError, match="no such repository"):
        fetch("org/one")


def test_the_environment_is_heeded(hub: Hub, tmp_path: Path) -> None:
    """In a process of its own, where nothing was set but the environment."""
    hub.private["org/one"] = "hf_env"
    code = "from vlmkit.checkpoint.fetch import fetch; print(fetch('org/one'))"
    said = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_env", "HF_HUB_CACHE": str(tmp_path / "there"),
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | said, capture_output=True, text=True,
                           cwd=Path(__file__).parents[2], timeout=120, check=True)
    folder = Path(found.stdout.strip())
    assert folder.is_relative_to(tmp_path / "there")
    assert held(folder) == ONE
    assert hub.tokens == {"hf_env"}


def test_a_checkpoint_of_ours_from_the_hub(hub: Hub, small: Any, tmp_path: Path) -> None:
    """Through links of the cache, compared with its lock."""
    saved = vlmkit.save(*small, tmp_path / "m", max_shard_size=50_000)
    hub.files["org/ours"] = {p.name: p.read_bytes() for p in saved.iterdir()}
    shutil.rmtree(saved)
    model, _ = vlmkit.load("org/ours")
    state = small[0].state_dict()
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
