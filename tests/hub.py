"""A stand-in for the hub's HTTP interface over one folder: `python tests/hub.py FOLDER` prints its address and serves.

Only what `datasets` asks for one public data set called owner/faces (its facts, its tree, its files by range), and
what `hf_hub_download` asks for a file of the model repository of the same name.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY, COMMIT = "owner/faces", "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    root: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path, facts = unquote(address.path), f"/api/datasets/{REPOSITORY}"
        if path == facts or path.startswith(f"{facts}/revision/"):
            names = [{"rfilename": self._name(p)} for p in self._files()]
            self._send(
                {
                    "id": REPOSITORY,
                    "sha": COMMIT,
                    "private": False,
                    "gated": False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": names,
                }
            )
        elif path.startswith(f"{facts}/tree/"):
            folder = self.root / "/".join(path.removeprefix(f"{facts}/tree/").split("/")[1:])
            deep = parse_qs(address.query).get("recursive", ["False"])[0].lower() == "true"
            found = sorted(folder.rglob("*") if deep else folder.glob("*"))
            if folder.is_dir():
                self._send([self._entry(p) for p in found])
            else:
                self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif path.startswith((f"/datasets/{REPOSITORY}/resolve/", f"/{REPOSITORY}/resolve/")):
            file = path.partition("/resolve/")[2].partition("/")[2]  # after the revision
            self._send_file(self.root / file)
        else:
            self._send({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = parse_qs(body).get("paths", [])
        self._send([self._entry(self.root / p) for p in paths if (self.root / p).exists()])

    def _files(self) -> list[Path]:
        return [p for p in sorted(self.root.rglob("*")) if p.is_file()]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _entry(self, path: Path) -> dict:
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": self._name(path)}
        data = path.read_bytes()
        return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": self._name(path)}

    def _send(self, content: object, status: int = 200) -> None:
        self._reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, last = wanted[6:].split("-")
            begin, end = int(first or 0), min(int(last or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
            self._reply(206, data[begin : end + 1], headers)
        else:
            self._reply(200, data, headers)

    def _reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def serving(folder: Path, home: Path) -> Iterator[dict[str, str]]:
    """Context in which `folder` is served; the environment whose processes ask there and download below `home`."""
    with subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().strip()
        place = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        yield os.environ | place | {"OMP_NUM_THREADS": "1"}
        server.kill()


if __name__ == "__main__":
    Hub.root = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
