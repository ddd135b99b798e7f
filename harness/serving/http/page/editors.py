"""Editor settings on the page: the settings of :mod:`harness.serving.client_settings`, filled in."""

from __future__ import annotations

from dataclasses import dataclass

from harness.serving.client_settings import CLIENTS, snippet
from harness.serving.service import Service

__all__ = ["Editor", "editors"]


@dataclass(frozen=True, slots=True)
class Editor:
    """A client and what to paste into it.

    Attributes:
        title: the client's usual name.
        settings: the text, without any key in it.
    """

    title: str
    settings: str


def editors(service: Service, url: str) -> tuple[Editor, ...]:
    """Return settings for every known client, for a server that is reached at ``url``."""
    config = service.config

    def settings(client: str) -> str:
        return snippet(
            client,
            url=url,
            model=service.model_name,
            key=config.api_key_file is not None,
            max_new_tokens=config.max_new_tokens,
            fim=service.fim is not None,
            markers=None if service.fim is None else service.fim.family.texts,
            max_prompt_tokens=service.max_prompt_tokens,
            ignored=config.suffix == "ignore",
        )

    return tuple(Editor(title, settings(client)) for client, title in CLIENTS.items())
