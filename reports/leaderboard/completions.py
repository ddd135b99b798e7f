"""One completion as HTML: every token coloured by the layer it left at."""

from __future__ import annotations

from html import escape
from math import ceil

from harness.records import SampleRecord

__all__ = ["coloured_tokens"]

SHADES = 8


def coloured_tokens(sample: SampleRecord, num_layers: int, full: SampleRecord | None) -> str:
    """Return a completion's tokens as escaped HTML, darker the deeper they left.

    Args:
        sample: finished. A run that did not record the tokens' texts shows the completion, and a strip of layers below.
        num_layers: of the model.
        full: the same sample at full depth; a token that differs from its token at the same place is underlined.
    """
    texts = sample.token_texts if len(sample.token_texts) == len(sample.exit_layers) else ()
    tokens = []
    for place, layer in enumerate(sample.exit_layers):
        differs = full is not None and full.token_ids[place : place + 1] != sample.token_ids[place : place + 1]
        shade = min(SHADES, max(1, ceil(SHADES * layer / num_layers)))
        title = f"layer {layer} of {num_layers}" + (", not full depth's token" if differs else "")
        inner = escape(texts[place]) if texts else str(layer)
        tokens.append(
            f'<span class="token shade-{shade}{" differs" if differs else ""}" title="{title}">{inner}</span>'
        )
    if texts:
        return "".join(tokens)
    return f'{escape(sample.text)}<span class="strip">{"".join(tokens)}</span>'
