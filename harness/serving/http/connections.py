"""Silent connections must not exhaust the server's limit.

uvicorn closes a connection some time after its last answer, but waits forever for one that never completes a
request's head. Bodies that never end are :mod:`harness.serving.http.guards`' business.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

__all__ = ["HEAD_S", "PatientProtocol"]

HEAD_S = 30.0
"""Seconds in which a connection must get a request's head across, at least; twice that at most."""


class PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, whichever is installed, with a time limit."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Accept a connection and start checking it."""
        super().connection_made(transport)
        self._look_again()

    def _look_again(self) -> None:
        self.loop.call_later(HEAD_S, self._look, self.cycle, self._unread())

    def _look(self, before: Any, unread: int) -> None:
        """Close when nothing arrived since the last check and no request is being answered, or nothing was read."""
        if self.transport.is_closing() and not self._unread():
            return
        idle = self.cycle is None or self.cycle.response_complete
        if unread and unread == self._unread():
            self.transport.abort()  # closing would wait for a client that does not read
        elif idle and self.cycle is before and not self.transport.is_closing():
            self.transport.close()
            self._look_again()
        else:
            self._look_again()

    def _unread(self) -> int:
        """Bytes of answers that the client has not taken yet."""
        unread: int = self.transport.get_write_buffer_size()
        return unread
