"""A server of the serving room's own, for its tests: an echo application, and options from one JSON argument."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from urllib.parse import parse_qs

from estserver.serving import CannotServe, ServeOptions, serve


def load_app():
    """Give the echo application; its paths choose what it does wrong."""

    def app(environ, start_response):
        query = parse_qs(environ["QUERY_STRING"])
        path = environ["PATH_INFO"]
        if path == "/boom":
            raise ValueError("the application is broken")
        if path == "/slow":
            time.sleep(float(query["seconds"][0]))
        if path == "/big":
            start_response("200 OK", [("Content-Type", "application/octet-stream")])
            return (b"x" * 1000 for _ in range(int(query["bytes"][0]) // 1000))
        if path == "/empty":
            start_response("204 No Content", [("X-Odd-CASE", "kept")])
            return []
        if path == "/split":
            start_response("200 OK", [("X-Evil", "a\r\nX-More: b")])
            return []
        peer = asdict(environ["tls.peer"]) if "tls.peer" in environ else {"chain": ()}
        facts = {
            "pid": os.getpid(),
            "body": environ["wsgi.input"].read().decode("latin-1"),
            "peer": {name: value.hex() if isinstance(value, bytes) else value for name, value in peer.items()}
            | {"chain": [certificate.hex() for certificate in peer["chain"]]},
            "environ": {name: value for name, value in environ.items() if isinstance(value, str)},
        }
        start_response("200 OK", [("Content-Type", "application/json"), ("X-Odd-CASE", "kept")])
        return [json.dumps(facts).encode()]

    return app


def _forbidden(sign: Path) -> None:
    if sign.exists():
        raise CannotServe("the application's own files are wrong")


def main() -> int:
    """Serve in the directory and with the options given."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    directory, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    passphrase = given.pop("passphrase", None)
    options = {
        "host": "127.0.0.1",
        "port": 0,
        "certificate_path": directory / "server.pem",
        "private_key": directory / "server.key",
        "passphrase": passphrase and passphrase.encode,
        "on_ready": lambda host, port: print("ready", host, port, flush=True),
        "before_reload": lambda: _forbidden(directory / "no-reload"),
    } | given
    try:
        return serve(load_app, ServeOptions(**options))
    except CannotServe as error:
        print(f"error: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    print("over", status := main(), flush=True)
    sys.exit(status)
