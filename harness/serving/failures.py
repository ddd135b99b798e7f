"""Failures of an answer: one class per HTTP status."""

from __future__ import annotations

from harness.errors import HarnessError


class ServingError(HarnessError):
    """Root of what an answer can fail with.

    Attributes:
        status: HTTP status.
        kind: TGI's ``error_type``, also OpenAI's ``type``.
    """

    status = 500
    kind = "internal"


class InvalidRequestError(ServingError):
    """A request that cannot be served as it is written."""

    status = 422
    kind = "validation"


class GenerationError(ServingError):
    """The engine failed on this request; the next one works."""

    status = 424
    kind = "generation"


class OverloadedError(ServingError):
    """The queue is full, or the request waited in it until its deadline."""

    status = 429
    kind = "overloaded"


class LoadingError(ServingError):
    """The model is still loading, or could not be loaded."""

    status = 503
    kind = "loading"


class DrainingError(ServingError):
    """The server is shutting down and accepts no new requests."""

    status = 503
    kind = "draining"
