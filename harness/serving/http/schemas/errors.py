"""The form of an error in each dialect, for the schema of the API."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from harness.serving.http.schemas.early_exit import Answer

__all__ = ["LlamaCppError", "OpenAIError", "TgiError", "documented"]


class TgiError(Answer):
    """TGI's; Ollama's clients and llm-ls read its ``error``."""

    error: str
    error_type: str


class OpenAIErrorDetail(Answer):
    """Inside of OpenAI's."""

    message: str
    type: str
    param: None = None
    code: Annotated[int, Field(description="HTTP status.")]


class LlmLsErrorDetail(Answer):
    """OpenAI's errors in the shape that llm-ls shows."""

    loc: str
    msg: str
    type: str


class OpenAIError(Answer):
    """OpenAI's, and the same where llm-ls looks for it."""

    error: OpenAIErrorDetail
    detail: list[LlmLsErrorDetail]


class LlamaCppErrorDetail(Answer):
    """Inside of llama.cpp's."""

    code: Annotated[int, Field(description="HTTP status.")]
    message: str
    type: str


class LlamaCppError(Answer):
    """llama.cpp's."""

    error: LlamaCppErrorDetail


MEANINGS = {
    401: "The key is missing or wrong.",
    403: "A web page of another origin, or a host name that is not this server's.",
    413: "The body is larger than the server takes.",
    422: "The request cannot be served as it is written.",
    424: "Generating failed; the next request works.",
    429: "The queue is full, or the request waited in it for too long. Try again later.",
    500: "A defect of the server; see its log.",
    503: "The model is still loading, or the server is shutting down.",
}


def documented(body: type[Answer]) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a dialect's routes, as FastAPI's ``responses``."""
    return {status: {"model": body, "description": meaning} for status, meaning in MEANINGS.items()}
