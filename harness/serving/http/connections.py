"""Connections that say nothing must not use up the server's.

uvicorn closes a connection some time after its last answer, but waits without end for one that never sends a whole
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
    """uvicorn's protocol, whichever is installed, whose patience ends."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take a connection and look after it."""
        super().connection_made(transport)
        self._look_again()

    def _look_again(self) -> None:
        self.loop.call_later(HEAD_S, self._look, self.cycle, self._unread())

    def _look(self, before: Any, unread: int) -> None:
        """Hang up when nothing has come since the last look and none is being answered, or nothing was read since."""
        if self.transport.is_closing() and not self._unread():
            return
        idle = self.cycle is None or self.cycle.response_complete
        if unread and unread == self._unread():
            self.transport.abort()  # closing would wait for what nobody reads
        elif idle and self.cycle is before and not self.transport.is_closing():
            self.transport.close()
            self._look_again()
        else:
            self._look_again()

    def _unread(self) -> int:
        """Bytes of answers that the client has not taken yet."""
        unread: int = self.transport.get_write_buffer_size()
        return unread
