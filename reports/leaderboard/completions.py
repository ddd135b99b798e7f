"""One completion as HTML: every token coloured by the layer it left at."""

from __future__ import annotations

from html import escape
from math import ceil

from harness.records import SampleRecord

__all__ = ["coloured_tokens", "completion"]

SHADES = 8


def completion(sample: SampleRecord, num_layers: int, full: SampleRecord | None) -> str:
    """Return a completion as escaped HTML: coloured tokens, or the text above a strip of layers for an older run.

    Args:
        sample: finished. Older runs do not say which token added which text.
        num_layers: of the model.
        full: the same sample at full depth.
    """
    if len(sample.token_texts) == len(sample.token_ids):
        return coloured_tokens(sample, num_layers, full)
    texts = tuple(map(str, sample.exit_layers))
    strip = coloured_tokens(sample.model_copy(update={"token_texts": texts}), num_layers, full)
    return f'{escape(sample.text)}<span class="strip">{strip}</span>'


def coloured_tokens(sample: SampleRecord, num_layers: int, full: SampleRecord | None) -> str:
    """Return a completion's tokens as escaped HTML, darker the deeper they left.

    Args:
        sample: finished, with the text of each token.
        num_layers: of the model.
        full: the same sample at full depth; a token that differs from its token at the same place is underlined.
    """
    tokens = []
    for place, (layer, text) in enumerate(zip(sample.exit_layers, sample.token_texts, strict=True)):
        differs = full is not None and full.token_ids[place : place + 1] != sample.token_ids[place : place + 1]
        shade = min(SHADES, max(1, ceil(SHADES * layer / num_layers)))
        title = f"layer {layer} of {num_layers}" + (", not full depth's token" if differs else "")
        kind = f"token shade-{shade}{' differs' if differs else ''}"
        tokens.append(f'<span class="{kind}" title="{title}">{escape(text)}</span>')
    return "".join(tokens)
