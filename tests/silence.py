"""An address of this machine where connecting never ends, as where a firewall drops every packet."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator


@contextlib.contextmanager
def swallowing() -> Iterator[int]:
    """Give the port of a listener whose queue is full: the kernel drops who would connect, without a word."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = int(listener.getsockname()[1])
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        time.sleep(0.1)  # until the first of them stand in the queue
        yield port
