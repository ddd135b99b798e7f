"""Conversations as a tokenizer's chat template writes them, and where it refuses one, as lm-eval's ``hf`` does."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from jinja2.exceptions import TemplateError

from harness.errors import ModelError
from harness.host.libraries import library_border

logger = logging.getLogger(__name__)


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: one of transformers.
        model: whose it is, for refusals.
    """

    def __init__(self, tokenizer: Any, model: str) -> None:
        self._tokenizer, self._model = tokenizer, model
        self._warned = False

    def check(self) -> None:
        """Refuse a tokenizer without a template, or with several and none by default.

        Raises:
            ModelError: with the remedy.
        """
        try:
            with suppress(NotImplementedError):  # mistral-common's tokenizers write conversations without a template
                self._tokenizer.get_chat_template()
        except ValueError as error:
            raise ModelError(
                f"the tokenizer of {self._model} has no default chat template. Omit --apply-chat-template, or name a "
                "model whose tokenizer has one."
            ) from error

    def write(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """Return a conversation as a text, without its system messages where the template fails on all of it.

        Args:
            messages: each with ``role`` and ``content``.
            add_generation_prompt: begin the model's turn; otherwise the last message is left open.

        Raises:
            ModelError: there is no template, or it fails without system messages as well.
        """
        self.check()
        with library_border(f"the chat template of {self._model} fails", "Omit --apply-chat-template."):
            try:
                return self._text(messages, add_generation_prompt)
            except TemplateError:
                rest = [message for message in messages if message["role"] != "system"]
                text = self._text(rest, add_generation_prompt)
        if not self._warned:
            self._warned = True
            logger.warning(
                "the chat template of %s takes no system message: descriptions of tasks are left out, as by hf",
                self._model,
            )
        return text

    def _text(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text
