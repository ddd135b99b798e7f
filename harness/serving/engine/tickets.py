"""A job on its way: what the engine's thread fills and the event loop reads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from harness.serving.failures import ServingError
from harness.serving.jobs import Finished, Job, Token

__all__ = ["EngineTicket"]


class EngineTicket:
    """A :class:`harness.serving.jobs.Ticket`. Made in the event loop that reads it.

    Unread tokens wait in memory, at most one completion, so that a slow reader delays no other request.

    Args:
        job: what is wanted.
        deadline_s: seconds from now that it has.

    Attributes:
        submitted: when, by ``time.perf_counter``. deadline: until when.
        cancelled: whether the client has cancelled it.
    """

    def __init__(self, job: Job, deadline_s: float) -> None:
        self.job = job
        self.submitted = time.perf_counter()
        self.deadline = self.submitted + deadline_s
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Token | Finished | ServingError] = asyncio.Queue()

    def put(self, piece: Token | Finished | ServingError) -> None:
        """Hand over a piece, from any thread; a :class:`Finished` or a failure is the last."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is no reader
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def cancel(self) -> None:
        """See :meth:`harness.serving.jobs.Ticket.cancel`."""
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Token | Finished]:
        """Yield what comes."""
        while True:
            piece = await self._pieces.get()
            if isinstance(piece, ServingError):
                raise piece
            yield piece
            if isinstance(piece, Finished):
                return
