"""The dialects of the server. A new one is a module with a subclass of ``Dialect``, and its name here."""

from __future__ import annotations

from typing import Any

from harness.appearance.visible_text import one_line
from harness.serving.completions import ServingError
from harness.serving.dialects.dialect import Dialect
from harness.serving.dialects.llama_cpp import Completion, Infill
from harness.serving.dialects.ollama import Ollama
from harness.serving.dialects.openai import Chat, OpenAI
from harness.serving.dialects.tgi import Tgi, TgiAnywhere, TgiStream

DIALECTS: tuple[type[Dialect], ...] = (Tgi, TgiStream, TgiAnywhere, Chat, OpenAI, Ollama, Infill, Completion)


def refusal(path: str, error: ServingError) -> dict[str, Any]:
    """Return the body of an error answer to a request at ``path``.

    Where no dialect is spoken it is TGI's, which Ollama's clients and llm-ls can read. The message is one line in which
    nothing is hidden, whatever a client's text brought into it.
    """
    speaks = (one for one in DIALECTS if path in one.paths or path.startswith(one.prefixes))
    return next(speaks, Dialect).error(one_line(str(error)), error)
