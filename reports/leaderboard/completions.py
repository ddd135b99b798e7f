"""One completion as HTML: every token on the colour of the layer it left at."""

from __future__ import annotations

from harness.appearance.depth_colours import depth_shade
from harness.appearance.pages import escape_html
from harness.records import SampleRecord
from reports.completions.coloured_tokens import coloured_tokens

__all__ = ["completion", "scale"]


def completion(sample: SampleRecord, num_layers: int, full: SampleRecord | None, *, cached: bool) -> str:
    """Return a completion as escaped HTML: coloured tokens, or the text above a strip of layers for an older run.

    Args:
        sample: finished. Older runs do not say which token added which text.
        num_layers: of the model.
        full: the same sample at full depth.
        cached: a KV cache was kept: the first token is prefill's.
    """
    if len(sample.token_texts) == len(sample.token_ids):
        return coloured_tokens(sample, num_layers, full, cached=cached)
    numbered = sample.model_copy(update={"token_texts": tuple(f" {layer} " for layer in sample.exit_layers)})
    strip = coloured_tokens(numbered, num_layers, None, cached=cached)
    return f'{escape_html(sample.text)}<div class="strip">{strip}</div>'


def scale(layers: set[int], num_layers: int) -> list[tuple[int, str, str]]:
    """Return the legend: each layer with the ground and the ink of its tokens, shallow first."""
    return [(layer, *depth_shade(layer, num_layers)) for layer in sorted(layers | {num_layers})]
