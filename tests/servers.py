"""Servers on loopback: files over HTTP, an object store as a process of its own, and a proxy before
either that breaks what passes through it."""

from __future__ import annotations

import base64
import contextlib
import email.policy
import http.client
import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **state: Any) -> Iterator[tuple[str, Any]]:
    """A server on a free port of loopback, and its address; `state` becomes attributes of it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    for name, value in state.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(BaseHTTPRequestHandler):
    """HTTP/1.1 with connections kept, and no log on standard error."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


class Files(Quiet):
    """Files of a folder, with ranges, listings of folders as HTML, and a password if it has one."""

    def do_GET(self) -> None:
        server: Any = self.server
        if server.password and self.headers.get("Authorization") != server.password:
            return self.answer(401, WWW_Authenticate='Basic realm="files"')
        path = server.folder / urllib.parse.unquote(self.path.partition("?")[0]).strip("/")
        if path.is_dir():
            names = "".join(
                f'<a href="{p.name}">{p.name}</a>\n' for p in sorted(path.iterdir()) if p.is_file()
            )
            return self.answer(200, f"<html>{names}</html>".encode(), Content_Type="text/html")
        if not path.is_file():
            return self.answer(404)
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and server.ranges:
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            if first >= len(data):
                return self.answer(416, Content_Range=f"bytes */{len(data)}")
            told = f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, data[first : last + 1], Content_Range=told)
        return self.answer(200, data)

    do_HEAD = do_GET  # noqa: N815


@contextlib.contextmanager
def file_server(folder: Path, *, ranges: bool = True, password: str = "") -> Iterator[str]:
    """The address of a server of a folder's files."""
    with serving(Files, folder=folder, ranges=ranges, password=password) as (address, _):
        yield address


@contextlib.contextmanager
def object_store() -> Iterator[str]:
    """The address of an object store that speaks S3, as a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=1):
                        break
                except OSError:
                    assert process.poll() is None, "the object store ended"
                    assert time.monotonic() < deadline, "the object store does not answer"
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


class Hook(Quiet):
    """A webhook: keeps what is posted in `posts`, and answers with the first of `answers` left."""

    def do_POST(self) -> None:
        server: Any = self.server
        sent = self.body()
        status = server.answers.pop(0) if server.answers else 204
        server.posts.append((status, dict(self.headers), json.loads(sent)))
        self.answer(status, **({"Location": "/elsewhere"} if status in (302, 307) else {}))


@contextlib.contextmanager
def webhook(*answers: int) -> Iterator[tuple[str, Any]]:
    """The address of a webhook, and its server."""
    with serving(Hook, posts=[], answers=list(answers)) as (address, server):
        yield f"{address}/hook", server


class Post(socketserver.StreamRequestHandler):
    """A mail server that takes what it is sent, and refuses recipients whose name is nobody."""

    def handle(self) -> None:
        server: Any = self.server
        recipients: list[str] = []
        self.say("220 loopback")
        while line := self.rfile.readline().decode().strip():
            word = line.partition(" ")[0].upper()
            if word == "EHLO":
                self.say("250-loopback\r\n250 AUTH PLAIN" if server.login else "250 loopback")
            elif word == "AUTH":
                told = base64.b64decode(line.split()[-1]).decode().split("\0")[1:]
                self.say("235 in" if told == list(server.login) else "535 out")
            elif word == "RCPT":
                refused = "<nobody@" in line
                recipients += [] if refused else [line[line.index("<") + 1 : line.index(">")]]
                self.say("550 nobody" if refused else "250 yes")
            elif word == "DATA":
                self.say("354 go on")
                lines = iter(lambda: self.rfile.readline().decode().rstrip("\r\n"), ".")
                message = email.message_from_string("\n".join(lines), policy=email.policy.default)
                server.mails.append((recipients, message))
                self.say("250 taken")
            elif word == "QUIT":
                return self.say("221 bye")
            else:
                self.say("250 yes")
        return None

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@contextlib.contextmanager
def mail_server(*login: str) -> Iterator[tuple[int, list[Any]]]:
    """The port of a mail server on loopback, and what it took: recipients and message of each."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Post) as server:
        server.daemon_threads = True
        server.login, server.mails = login, []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1], server.mails  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Fault:
    """What happens to `times` requests of a kind whose path contains `on`, after `skip` others.

    500 and 503 answer for the server; cut ends the connection in the middle of the body, refused
    before the answer; stall falls silent there; drip passes all of it on, slowly.
    """

    kind: Literal["500", "503", "cut", "refused", "stall", "drip"]
    times: int = 1
    skip: int = 0
    on: str = ""
    methods: tuple[str, ...] = ("GET",)


@dataclass
class Faults:
    """The plan of a proxy, and what has passed through it."""

    upstream: str
    plan: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    met: int = 0
    silence_s: float = 30.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def inject(self, kind: Any, **more: Any) -> None:
        self.plan.append(Fault(kind, **more))

    def next(self, method: str, path: str) -> str | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self.plan:
                if fault.times > 0 and fault.on in path and method in fault.methods:
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    self.met += 1
                    return fault.kind
        return None


class Breaking(Quiet):
    """Passes requests on to another server, and breaks those that the plan says."""

    def do_GET(self) -> None:
        faults: Faults = self.server.faults  # type: ignore[attr-defined]
        sent = self.body()
        fault = faults.next(self.command, self.path)
        if fault in ("500", "503"):
            return self.answer(int(fault), b"<html>broken on purpose</html>")
        if fault == "refused":
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        host = urllib.parse.urlsplit(faults.upstream).netloc
        upstream = http.client.HTTPConnection(host, timeout=60)
        headers = {n: v for n, v in self.headers.items() if n.lower() != "connection"}
        upstream.request(self.command, self.path, body=sent or None, headers=headers)
        reply = upstream.getresponse()
        body = reply.read()
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        told = reply.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", told or str(len(body)))
        self.end_headers()
        upstream.close()
        if self.command == "HEAD":
            return None
        if fault in ("cut", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                time.sleep(faults.silence_s)
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault == "drip":
            for at in range(0, len(body), max(1, len(body) // 20)):
                self.wfile.write(body[at : at + max(1, len(body) // 20)])
                time.sleep(0.02)
            return None
        self.wfile.write(body)
        return None

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815


@contextlib.contextmanager
def breaking(upstream: str) -> Iterator[tuple[str, Faults]]:
    """A proxy before a server: its address, and its plan of faults."""
    faults = Faults(upstream)
    with serving(Breaking, faults=faults) as (address, _):
        yield address, faults


class Bucket(Quiet):
    """Files of a folder as objects of a bucket of Google Cloud Storage, for anyone to read."""

    def do_GET(self) -> None:
        server: Any = self.server
        path = urllib.parse.urlsplit(self.path).path
        match = re.fullmatch(r"(/download)?/storage/v1/b/([^/]+)/o/(.+)", path)
        file = server.folder / urllib.parse.unquote(match[3]) if match else server.folder
        if match is None or not file.is_file():
            return self.answer(404, b'{"error": {"code": 404, "message": "Not Found"}}')
        data = file.read_bytes()
        if not match[1]:
            about = {"kind": "storage#object", "bucket": match[2], "name": match[3]}
            times = dict.fromkeys(("updated", "timeCreated"), "2020-01-01T00:00:00.000Z")
            told = json.dumps({**about, **times, "size": str(len(data))})
            return self.answer(200, told.encode(), Content_Type="application/json")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            told = f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, data[first : last + 1], Content_Range=told)
        return self.answer(200, data)


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[str]:
    """The address of Google Cloud Storage with a folder's files in each of its buckets."""
    with serving(Bucket, folder=folder) as (address, _):
        yield address


#: What an S3 client wants to know; the object store takes any.
S3_ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "AKIALOOPBACK",
    "AWS_SECRET_ACCESS_KEY": "loopback-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def s3_options(address: str) -> dict[str, dict[str, Any]]:
    """Storage options for the object store at an address, for URIs ``s3://…``."""
    return {"s3": {"endpoint_url": address}}


def fill_bucket(address: str, bucket: str, folder: Path) -> None:
    """Put every file below a folder into a bucket of the object store, readable by anyone."""
    import s3fs

    fs = s3fs.S3FileSystem(
        endpoint_url=address,
        key=S3_ACCOUNT["AWS_ACCESS_KEY_ID"],
        secret=S3_ACCOUNT["AWS_SECRET_ACCESS_KEY"],
    )
    if not fs.exists(bucket):
        fs.mkdir(bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{bucket}/{os.fspath(path.relative_to(folder))}"
            fs.pipe_file(key, path.read_bytes())
            fs.chmod(key, "public-read")
