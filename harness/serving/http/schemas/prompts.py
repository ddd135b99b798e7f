"""The four forms a prompt has with OpenAI's clients, of which llama.cpp's know two.

Read by hand: a validator would report an error for each of a million bad items.
"""

from __future__ import annotations

from typing import Any

from harness.serving.failures import InvalidRequestError

__all__ = ["MAX_PROMPTS", "prompts_of"]

MAX_PROMPTS = 32


def prompts_of(prompt: object) -> list[str | list[int]]:
    """Return the prompts of a request, one or more, none empty.

    Raises:
        InvalidRequestError: it is none of the four forms.
    """
    if isinstance(prompt, str) and prompt:
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if _are_token_ids(prompt):
            return [prompt]
        if len(prompt) > MAX_PROMPTS:
            raise InvalidRequestError(f"prompt has {len(prompt)} prompts; {MAX_PROMPTS} are allowed in one request.")
        if all(
            (isinstance(one, str) and one) or (isinstance(one, list) and one and _are_token_ids(one)) for one in prompt
        ):
            return prompt  # fmt: skip
    raise InvalidRequestError(
        f"prompt = {str(prompt)[:60]!r} cannot be read. Send a text, a list of token ids, or a list of either, "
        "none empty."
    )


def _are_token_ids(listed: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in listed)
