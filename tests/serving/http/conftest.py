"""What tests of several dialects look at: jobs that were submitted, and jobs that fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from harness.decoding.generation import Token
from harness.serving.failures import GenerationError
from harness.serving.jobs import Finished, Job, Ticket


@pytest.fixture
def jobs(server: Any, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What was submitted during the test; the service still does it."""
    submitted: list[Job] = []
    submit = server.service.submit

    def note(job: Job) -> Ticket:
        submitted.append(job)
        ticket: Ticket = submit(job)
        return ticket

    monkeypatch.setattr(server.service, "submit", note)
    return submitted


@pytest.fixture
def failing(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job fails after its first token."""
    submit = server.service.submit

    class Failing:
        def __init__(self, job: Job) -> None:
            self.ticket: Ticket = submit(job)

        async def __aiter__(self) -> AsyncIterator[Token | Finished]:
            async for piece in self.ticket:
                yield piece
                raise GenerationError("the engine failed.")

        def cancel(self) -> None:
            self.ticket.cancel()

    monkeypatch.setattr(server.service, "submit", Failing)
