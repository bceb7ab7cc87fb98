"""Stands in for a router or an engine: serves HTTP at once, computes nothing, and misbehaves when told to."""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pdctl.notify import Notifier


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", default="router")
    parser.add_argument("--router")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--exit", type=int, help="end with this code before it is ready")
    parser.add_argument("--broken-by", type=Path, help="end with code 3 before it is ready if there is this file")
    parser.add_argument("--taken", type=int, help="end as if another process had this port, if it is the one to bind")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--never-register", action="store_true")
    parser.add_argument("--beats", action="store_true", help="registers every second, so that a next router knows it")
    parser.add_argument("--registers-late", type=float, help="so many seconds after it is ready, not before")
    parser.add_argument("--no-notice", action="store_true")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--answer", default="well", help="to a completion: well, 500, crash, elsewhere, empty, never")
    return parser.parse_args()


class Server(ThreadingHTTPServer):
    """Says nothing of clients that leave: only what a test told the process to write may be in its log."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection; what the process knows is in the server."""

    def do_GET(self) -> None:
        server: Any = self.server
        if self.path == "/registered":
            self._reply(200, server.registered)
        elif self.path == "/pairs":
            self._reply(200, server.pairs)
        elif self.path == "/metrics":
            self._reply(200, 'fake_running 3\nfake_tokens_total{source="a"} 4\nfake_tokens_total{source="b"} 5\n')
        else:
            self._reply(server.health, {"reason": "as told"})

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/health":
            server.health = body
            self._reply(200, {})
        elif self.path == "/register":
            self._register(body)
        else:
            self._complete()

    def _register(self, body: dict[str, Any]) -> None:
        server: Any = self.server
        if self.headers["Authorization"] != f"Bearer {token()}":
            self._reply(401, {})
            return
        entries = server.registered[body["role"]]
        if body not in entries:
            entries.append(body)
        self._reply(200, {"status": "success"})

    def _complete(self) -> None:
        server: Any = self.server
        pins = [self.headers[f"X-Router-{role}-URL"] for role in ("Prefill", "Decode")]
        if self.headers["X-Pdctl-Token"] == token():
            server.pairs.append(pins)
        answer = server.options.answer
        if answer == "never":
            threading.Event().wait()
        if answer in ("500", "crash"):
            self._reply(500, {"error": {"message": "no luck today"}})
            if answer == "crash":
                say("cannot go on")
                threading.Timer(0.3, os._exit, [3]).start()
            return
        headers = {"X-Router-Prefill-URL": pins[0], "X-Router-Decode-URL": pins[1]}
        if answer == "elsewhere":
            headers["X-Router-Decode-URL"] = "http://elsewhere:1"
        self._reply(200, {"choices": [] if answer == "empty" else [{"text": "x"}]}, headers)

    def _reply(self, status: int, body: object, headers: dict[str, str | None] | None = None) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def token() -> str:
    return Path(os.environ["PDCTL_TOKEN_FILE"]).read_text()


def register(options: argparse.Namespace, port: int) -> None:
    body = json.dumps({"role": options.role, "host_ip": "127.0.0.1", "port": port, "model": "fake"}).encode()
    headers = {"Authorization": f"Bearer {token()}", "Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"http://{options.router}/register", body, headers), timeout=10)


def beat(options: argparse.Namespace, port: int) -> None:
    while True:
        time.sleep(1)
        with contextlib.suppress(OSError):  # the router is being started again
            register(options, port)


def main() -> None:
    options = parse()
    if options.port and options.port == options.taken:
        say("OSError: [Errno 98] Address already in use")
        sys.exit(1)
    server: Any = Server(("127.0.0.1", options.port), Handler)
    server.options, server.health, server.pairs = options, 200, []
    server.registered = {"prefill": [], "decode": [], "mixed": []}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: None if options.ignore_term else stop())
    notifier = Notifier(-1) if options.no_notice else Notifier()
    say(f"{options.role} begins")
    if options.broken_by is not None and options.broken_by.exists():
        options.exit = 3
    if options.exit is not None:
        say("something went wrong")
        sys.exit(options.exit)
    port = server.server_address[1]
    if not options.no_notice:
        notifier.progress("loading weights", 1, 4)
    if options.registers_late is not None:
        threading.Timer(options.registers_late, register, (options, port)).start()
    elif options.router and not options.never_register:
        register(options, port)
    if options.beats:
        threading.Thread(target=beat, args=(options, port), daemon=True).start()
    if not options.never_ready and not options.no_notice:
        notifier.listening({"api": port, "metrics": port})
        notifier.ready()
    while True:
        signal.pause()


def stop() -> None:
    say("told to stop")
    time.sleep(0.05)  # so that the order of several is to be seen
    os._exit(0)


if __name__ == "__main__":
    main()
