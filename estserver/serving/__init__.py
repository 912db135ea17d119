"""A TLS front for any WSGI application: gunicorn's master, our own non-blocking worker, TLS by pyOpenSSL.

What it adds to the application's environ is `environ["tls.peer"]`, a `TlsPeer`: the client's certificate and chain as
presented, what OpenSSL thought of them, and the channel bindings of the connection (RFC 5929, RFC 9266). It trusts
nobody and refuses nobody: who a certificate stands for, and whether that is enough, is the application's to say.

It is of use for any other application as it stands, here or lifted out into a package of its own:

    from pathlib import Path
    from estserver.serving import ServeOptions, serve

    def hello(environ, start_response):
        shown = environ["tls.peer"].certificate
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello, stranger\\n" if shown is None else b"hello, %d octets of certificate\\n" % len(shown)]

    serve(lambda: hello, ServeOptions(
        host="127.0.0.1", port=8443, certificate_path=Path("server.pem"), private_key=Path("server.key"), on_ready=print
    ))

The rooms: `options` what may be set; `context` how TLS is spoken; `peer` the facts of one handshake; `plain` what
stands in its place behind a proxy; `request` and `answer` HTTP/1.1 as bytes; `connection` one connection as a state
machine; `deadlines` who has been waiting too long; `worker` the event loop; `master` gunicorn around it; `events` what
is told of all this. Nothing here knows what the application is for.
"""

from estserver.serving.errors import CannotServe
from estserver.serving.events import Closed, FrontEvent, HandshakeFailed, HandshakeProblem, Opened, Refused
from estserver.serving.master import serve
from estserver.serving.options import ServeOptions
from estserver.serving.peer import TlsPeer

__all__ = [
    "CannotServe",
    "Closed",
    "FrontEvent",
    "HandshakeFailed",
    "HandshakeProblem",
    "Opened",
    "Refused",
    "ServeOptions",
    "TlsPeer",
    "serve",
]
