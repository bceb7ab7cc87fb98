"""Stands in for FastDeploy's routers: engines register when they like, and until then it answers with errors."""

import argparse
import json
import signal
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """One connection; what is registered is in the server."""

    def do_GET(self) -> None:
        server: Any = self.server
        known = Counter(role for role, _ in server.registered)
        if self.path == "/registered_number" and server.options.counts:
            self._reply(200, {role: known[role] for role in ("mixed", "prefill", "decode")})
        else:
            self._reply(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/register":
            server.registered.add((body["role"], body["port"]))
            self._reply(200, {"status": "success"})
        elif {role for role, _ in server.registered} != {"prefill", "decode"}:
            self._reply(500, {"detail": "No available prefill/decode workers"})
        else:
            self._reply(200, {"choices": [{"text": "x"}]})

    def _reply(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--counts", action="store_true", help="say how many have registered")
    options = parser.parse_args()
    server: Any = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.options, server.registered = options, set()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    server.serve_forever()


if __name__ == "__main__":
    main()
