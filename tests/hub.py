"""A hub on the loopback, which the real client of huggingface_hub talks to: repositories are folders, of one revision each."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, TOKEN = "somebody", "hf_0123456789"
SWITCHES = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
KINDS = {"models": "", "datasets": "datasets/"}


class Hub(BaseHTTPRequestHandler):
    """ROOT/models/OWNER/NAME, ROOT/datasets/OWNER/NAME.  What it answers is what the client asks for, no more."""

    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, asked: list[str], *args: Any):
        self.root, self.asked = root, asked
        super().__init__(*args)

    def log_message(self, *_: object) -> None:
        self.asked.append(f"{self.command} {self.path}")

    def answer(self, told: object, status: int = 200, **headers: str) -> None:
        content = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def lost(self, code: str = "RepoNotFound") -> None:
        self.answer({"error": code}, 404, X_Error_Code=code, X_Error_Message=code)

    def sent(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def files(self, repo: Path) -> list[dict[str, Any]]:
        return [
            {"type": "file", "rfilename": (name := str(each.relative_to(repo))), "path": name, "size": each.stat().st_size,
             "oid": hashlib.sha1(each.read_bytes()).hexdigest()}
            for each in sorted(repo.rglob("*")) if each.is_file()
        ]  # fmt: skip

    @staticmethod
    def tree(files: list[dict[str, Any]], inside: str, recursive: bool) -> list[dict[str, Any]]:
        within = [each for each in files if each["path"].startswith(inside)]
        if recursive:
            return within
        folders = {each["path"][len(inside) :].partition("/")[0] for each in within if "/" in each["path"][len(inside) :]}
        here = [each for each in within if "/" not in each["path"][len(inside) :]]
        return [{"type": "directory", "path": f"{inside}{name}", "oid": "0" * 40, "size": 0} for name in sorted(folders)] + here

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            return self.answer({"name": OWNER, "type": "user"}) if self.logged_in else self.answer({"error": "who?"}, 401)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(tree|revision)/[^/]+(?:/(.+))?)?", path):
            kind, name, what, inside = found.groups()
            if not (repo := self.root / kind / name).is_dir():
                return self.lost()
            if what == "revision" and path.rpartition("/")[2] not in ("main", sha(repo)):
                return self.lost("RevisionNotFound")
            files = self.files(repo)
            if what == "tree":
                return self.answer(self.tree(files, f"{inside}/" if inside else "", "recursive=true" in self.path))
            return self.answer({"id": name, "sha": sha(repo), "siblings": files, "private": False, "tags": [], "downloads": 0})
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            repo = self.root / ("datasets" if found[1] else "models") / found[2]
            if not (file := repo / found[3]).is_file():
                return self.lost("EntryNotFound" if repo.is_dir() else "RepoNotFound")
            content = file.read_bytes()
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self.answer(content, X_Repo_Commit=sha(repo), ETag=etag)
        return self.lost()

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        path, sent = unquote(urlsplit(self.path).path), self.sent()
        if "/paths-info/" in path:
            kind, name = re.fullmatch(r"/api/(\w+)/([^/]+/[^/]+)/.*", path).groups()  # type: ignore[union-attr]
            asked = json.loads(sent)["paths"]
            return self.answer([each for each in self.files(self.root / kind / name) if each["path"] in asked])
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if not self.logged_in:
            return self.answer({"error": "log in"}, 401)
        if path == "/api/repos/create":
            told = json.loads(sent)
            owner = told.get("organization") or OWNER
            repo = self.root / f"{told['type']}s" / owner / told["name"]
            there = repo.is_dir()
            repo.mkdir(parents=True, exist_ok=True)
            (repo.parent / f"{told['name']}.json").write_text(json.dumps(told))
            url = f"http://{self.headers['Host']}/{KINDS[told['type'] + 's']}{owner}/{told['name']}"
            return self.answer({"url": url, "name": f"{owner}/{told['name']}"}, 409 if there else 200)
        if found := re.fullmatch(r"/api/(\w+)/([^/]+/[^/]+)/(preupload|commit)/main", path):
            kind, name, what = found.groups()
            if what == "preupload":
                how = {"uploadMode": "regular", "shouldIgnore": False}
                return self.answer({"files": [{"path": each["path"], **how} for each in json.loads(sent)["files"]]})
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    file = self.root / kind / name / line["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(line["value"]["content"]))
            url = f"http://{self.headers['Host']}/{KINDS[kind]}{name}"
            return self.answer({"commitUrl": f"{url}/commit/0", "commitOid": sha(self.root / kind / name), "success": True})
        return self.lost()


def sha(repo: Path) -> str:
    """Of a repository as it is now: the name of its only revision."""
    return hashlib.sha1(b"".join(each.read_bytes() for each in sorted(repo.rglob("*")) if each.is_file())).hexdigest()


@contextmanager
def hub(root: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Environment variables of a process that takes this hub for the public one, and what the hub was asked."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = root / "home"
    try:
        yield (
            {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": TOKEN, "HF_HOME": str(home)} | SWITCHES,
            asked,
        )
    finally:
        server.shutdown()
        server.server_close()
