"""A gunicorn worker whose threads only ever meet whole requests.

gunicorn's `gthread` gives a new connection a thread before its first byte, waits for bodies
in that thread, and waits up to 2 s in its main loop for a client to hang up: some hundred
idle or slow clients starve everybody else. Here the main loop does all the waiting, within
limits of connections, bytes and time, and hands a request to a thread once it is whole. When
more than `queue` requests wait for a thread, the next are answered 503 at once; probes have a
thread of their own. At SIGTERM all that was accepted is still answered.

Owns connections. Leaves HTTP to gunicorn (see incoming.py) and knows nothing of Flask. Written
against gunicorn 27: it replaces what `ThreadWorker` does with connections and keeps its loop,
its shutdown and its `handle_request`. TLS and HTTP/2 belong in front of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any

from gunicorn.http import errors
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from app import observe, problems
from app.incoming import Incoming
from app.problems import Problem
from app.settings import Settings

_READ_BYTES = 65_536
_SEND_TIMEOUT_S = 5.0
_STATUS = {
    errors.LimitRequestLine: 414,
    errors.LimitRequestHeaders: 431,
    errors.ExpectationFailed: 417,
    errors.UnsupportedTransferCoding: 501,
}
_NOT_HTTP = (errors.ParseException, errors.NoMoreData)


class _Connection:
    """One client: its socket, what it is sending, and until when we wait for it."""

    def __init__(self, sock: socket.socket, client: Any, server: Any, incoming: Incoming) -> None:
        self.sock = sock
        self.client = client
        self.server = server
        self.incoming = incoming
        self.deadline = 0.0
        self.queued = False
        self.closing = False


class BufferingWorker(ThreadWorker):
    """See the module. A connection goes: accept, receive, handle (in a thread), finish."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take gunicorn's arguments; our own limits come from the environment."""
        super().__init__(*args, **kwargs)
        self.settings = Settings.from_environ(os.environ)
        self.waiting: dict[_Connection, None] = {}  # in the order in which their waiting began
        self.buffered = 0  # bytes of requests that arrive, wait or are being answered
        self.queued = 0  # requests that wait for a thread or have one

    def init_process(self) -> None:
        """Start the probes' thread, then everything else."""
        self.probe_pool = ThreadPoolExecutor(max_workers=1)
        super().init_process()

    def accept(self, listener: socket.socket) -> bool:
        """Take a connection; at the limit, the one that has waited longest has to go."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._evict(self.waiting, "there are too many connections")
            return False
        self.nr_conns += 1
        self._wait(_Connection(sock, client, listener.getsockname(), self._incoming(client)), self.cfg.keepalive)
        if self.nr_conns >= self.worker_connections:
            self._evict(self.waiting, "there are too many connections")
        return True

    def receive(self, conn: _Connection, _sock: socket.socket) -> None:
        """Read what has arrived."""
        if conn not in self.waiting:
            return  # evicted earlier in the same round of events
        try:
            data = conn.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(conn)
        elif not conn.closing:
            self._feed(conn, data)

    def handle(self, conn: _Connection) -> bool:
        """Answer a whole request, in a thread; true when the connection may go on."""
        request = conn.incoming.request
        try:
            conn.sock.settimeout(_SEND_TIMEOUT_S)
            request.body = BytesIO(request.body.read())
            return bool(self.handle_request(request, conn))
        except _NOT_HTTP as error:
            self._answer(conn, _not_http(error))
        except (OSError, StopIteration):
            self.log.debug("the client went away before its answer, or the answer broke off")
        except Exception:
            self.log.exception("an error of ours, outside the application")
            self._answer(conn, problems.our_mistake())
        return False

    def finish(self, conn: _Connection, done: Future[bool]) -> None:
        """Wait for the connection's next request, or let it go."""
        self.queued -= conn.queued
        conn.queued = False
        rest = conn.incoming.rest()
        self._begin_anew(conn)
        if not done.result():
            self._linger(conn)
            return
        self._wait(conn, self.cfg.keepalive if self.alive else STOP_KEEPALIVE_LINGER)
        if rest:
            self._feed(conn, rest)

    # -- waiting and dispatching -----------------------------------------------------------------

    def _incoming(self, client: Any) -> Incoming:
        return Incoming(self.cfg, client, max_body_bytes=self.settings.max_body_bytes)

    def _begin_anew(self, conn: _Connection) -> None:
        self.buffered -= conn.incoming.size
        conn.incoming.request = None  # a cycle, which would keep the body
        conn.incoming = self._incoming(conn.client)

    def _wait(self, conn: _Connection, seconds: float) -> None:
        conn.sock.setblocking(False)
        conn.deadline = time.monotonic() + seconds
        self.waiting[conn] = None
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.receive, conn))

    def _feed(self, conn: _Connection, data: bytes) -> None:
        incoming = conn.incoming
        if not incoming.size:
            conn.deadline = time.monotonic() + self.settings.request_timeout_s
        self.buffered += len(data)
        try:
            whole = incoming.feed(data)
        except Problem as problem:
            self._refuse(conn, problem)
        except _NOT_HTTP as error:
            self._refuse(conn, _not_http(error))
        else:
            if whole:
                self._dispatch(conn)
            elif incoming.request:
                _send_continue(conn)
        while self.buffered > self.settings.max_buffer_bytes:
            if not self._evict(
                (other for other in self.waiting if other.incoming.size), "too much is arriving at once"
            ):
                break

    def _dispatch(self, conn: _Connection) -> None:
        probe = conn.incoming.request.path in observe.PROBES
        if not probe and self.queued >= self.cfg.threads + self.settings.queue:
            self._refuse(conn, problems.overloaded("too many requests are waiting"))
            return
        self._forget(conn)
        conn.queued = not probe
        self.queued += conn.queued
        future = (self.probe_pool if probe else self.tpool).submit(self.handle, conn)
        future.add_done_callback(lambda done: self.method_queue.defer(self.finish, conn, done))

    # -- refusing and closing --------------------------------------------------------------------

    def _evict(self, candidates: Iterable[_Connection], why: str) -> bool:
        """Refuse the first candidate, to make room; false when there is none."""
        oldest = next(iter(candidates), None)
        if oldest:
            self._refuse(oldest, problems.overloaded(why))
        return oldest is not None

    def _refuse(self, conn: _Connection, problem: Problem) -> None:
        """Answer from the main loop and close; who asked nothing gets no answer."""
        if conn.closing or not conn.incoming.size:
            self._drop(conn)
            return
        self._answer(conn, problem)
        self._forget(conn)
        self._begin_anew(conn)
        self._linger(conn)

    def _answer(self, conn: _Connection, problem: Problem) -> None:
        request = conn.incoming.request
        given = dict(request.headers).get("X-REQUEST-ID") if request else None
        request_id = problems.request_id(given)
        body = problems.document(problem, request_id)
        head = [
            f"HTTP/1.1 {problem.status} {problem.status.phrase}",
            f"Content-Type: {problems.MEDIA_TYPE}",
            f"Content-Length: {len(body)}",
            f"X-Request-Id: {request_id}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in problem.headers.items()),
        ]
        with contextlib.suppress(OSError):
            conn.sock.send("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        observe.answered(
            route="worker",
            method=request.method if request else "",
            path=request.path if request else "",
            status=problem.status,
            seconds=0,
            request_id=request_id,
            note=problem.detail,
        )

    def _linger(self, conn: _Connection) -> None:
        """Close after the client did: closing on bytes unread resets the answer away (RFC 9112, 9.6)."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(conn)
            return
        conn.closing = True
        self._wait(conn, STOP_KEEPALIVE_LINGER)

    def _forget(self, conn: _Connection) -> None:
        del self.waiting[conn]
        self.poller.unregister(conn.sock)

    def _drop(self, conn: _Connection) -> None:
        self._forget(conn)
        self._begin_anew(conn)
        self._close(conn)

    def _close(self, conn: _Connection) -> None:
        self.nr_conns -= 1
        conn.sock.close()

    # -- what gunicorn's loop calls, about `waiting` instead of its own queues -------------------

    def murder_keepalived(self, force: bool = False) -> None:  # noqa: FBT001, FBT002 - gunicorn's signature
        """Let those go whose time is up; half a request is answered 408."""
        now = time.monotonic()
        for conn in [conn for conn in self.waiting if force or conn.deadline <= now]:
            self._refuse(conn, Problem(408, "the request did not arrive in time"))

    def _cap_keepalive(self, deadline: float) -> None:
        """While stopping, wait as ever for the rest of a request, but hardly for a new one."""
        for conn in self.waiting:
            if not conn.incoming.size:
                conn.deadline = min(conn.deadline, deadline)

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001 - gunicorn's signature
        """Start or stop accepting; who had knocked when the worker was told to stop is let in."""
        if self._accepting and not self.alive:
            for listener in self.sockets:
                while self.accept(listener):
                    pass
        super().set_accept_enabled(enabled)


def _send_continue(conn: _Connection) -> None:
    """Tell a client that asked for it (curl does) to send its body; gunicorn would be too late."""
    request = conn.incoming.request
    if request._expected_100_continue:  # noqa: SLF001 - gunicorn has no public name for it
        request._expected_100_continue = False  # noqa: SLF001 - as above
        with contextlib.suppress(OSError):
            conn.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")


def _not_http(error: Exception) -> Problem:
    return Problem(_STATUS.get(type(error), 400), f"the request is not valid HTTP/1.1: {error}")
