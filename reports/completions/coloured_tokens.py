"""A completion as HTML: each token on the colour of the depth it took, safe to put into any page.

Texts come from a model and are escaped; what cannot be seen is shown. The text itself is unchanged: marks of white
space are drawn by the style sheet, so that what is copied is what was generated.
"""

from __future__ import annotations

import unicodedata

from harness.appearance.depth_colours import depth_shade
from harness.appearance.pages import escape_html
from harness.appearance.visible_text import is_hidden
from harness.records import SampleRecord

__all__ = ["OLD_RUN", "coloured_tokens", "follows"]

OLD_RUN = "This run does not say which token added which text. Colours need a run of this version: harness run."

_SHOWN = {" ": '<span class="s"> </span>', "\t": '<span class="t">\t</span>', "\n": '<span class="n"></span>\n'}


def coloured_tokens(sample: SampleRecord, num_layers: int, full: SampleRecord | None, *, cached: bool = True) -> str:
    """Return the tokens of a completion as HTML, in one element of class ``tokens``.

    A token's ground is the colour of its exit layer, its tip says the layer; one that differs from full depth's at the
    same place is underlined. Of lossless decoding it is the layer of the draft, if that was accepted, and none where a
    source proposed it; accepted and replaced drafts are marked.

    Of a black box's completion there is the text that is scored, without colours.

    Args:
        sample: finished; a run of before ``token_texts`` gets one line instead.
        num_layers: of the model.
        full: the same sample at full depth; ``None``: nothing is underlined.
        cached: a KV cache was kept: the first token is prefill's, at full depth, and is marked.
    """
    if sample.error is not None:
        return f'<div class="tokens missing">failed: {escape_html(sample.error)}</div>'
    if sample.answer is not None:
        return f'<div class="tokens">{"".join(map(_visible, sample.text)) or "no text"}</div>'
    if len(sample.token_texts) != len(sample.token_ids) or len(sample.exit_layers) != len(sample.token_ids):
        return f'<div class="tokens missing">{escape_html(OLD_RUN)}</div>'
    if not sample.token_ids:
        return '<div class="tokens missing">no token</div>'
    parts = [_token(place, sample, num_layers, full, cached and place == 0) for place in range(len(sample.token_ids))]
    return f'<div class="tokens">{"".join(parts)}</div>'


def follows(sample: SampleRecord, full: SampleRecord) -> float | None:
    """Return the share of full depth's tokens that stand at the same place; ``None`` without any."""
    if sample.error is not None or full.error is not None or not full.token_ids or sample.answer is not None:
        return None
    return sum(a == b for a, b in zip(sample.token_ids, full.token_ids, strict=False)) / len(full.token_ids)


def _token(place: int, sample: SampleRecord, num_layers: int, full: SampleRecord | None, prefill: bool) -> str:
    layer, text = sample.exit_layers[place], sample.token_texts[place]
    tip, classes = f"layer {layer} of {num_layers}", ["tok"]
    drafted = sample.drafted_at[place] if len(sample.drafted_at) == len(sample.accepted) > place else None
    if drafted is not None:
        origin = f"drafted after layer {drafted} of {num_layers}" if drafted else "proposed by the draft source"
        if sample.accepted[place]:
            layer, tip = drafted, f"{origin}; accepted by full depth"
            classes.append("accepted")
        else:
            lost = [_quoted("".join(one.token_texts)) for one in sample.discarded if one.place == place]
            tip = f"full depth's, in place of {''.join(lost) or 'a token'} {origin}"
            classes.append("replaced")
    if prefill:
        tip += ", from prefill: full depth, no strategy is asked"
        classes.append("prefill")
    if full is not None and full.error is None:
        there = full.token_ids[place : place + 1]
        if there != sample.token_ids[place : place + 1]:
            said = _spoken(full, place) if there else "nothing more"
            tip += f"; full depth: {said}"
            classes.append("differs")
    if not text:
        classes.append("empty")
    ground, ink = depth_shade(layer, num_layers) if layer else ("transparent", "inherit")
    shown = "".join(map(_visible, text)) or '<span class="x">∅</span>'
    return (
        f'<span class="{" ".join(classes)}" tabindex="-1" data-layer="{layer}" data-tip="{escape_html(tip)}" '
        f'style="background:{ground};color:{ink}">{shown}</span>'
    )


def _spoken(full: SampleRecord, place: int) -> str:
    """Full depth's choice at a place, in a few characters."""
    if place >= len(full.token_texts):
        return f"token {full.token_ids[place]}"
    return _quoted(full.token_texts[place]) or "a token without text"


def _quoted(text: str) -> str:
    """Return the beginning of a text in quotation marks, what is hidden in it shown; empty of an empty one."""
    said = "".join(_code(character) if is_hidden(character) else character for character in text)
    return f"“{said[:40]}{'…' if len(said) > 40 else ''}”" if said else ""


def _visible(character: str) -> str:
    """Escape one character, and show one that would not be seen or would move others around."""
    if character in _SHOWN:
        return _SHOWN[character]
    if is_hidden(character):
        return f'<span class="x">{escape_html(_code(character))}</span>'
    return escape_html(character)


def _code(character: str) -> str:
    if character in "\n\t\r":
        return {"\n": "↵", "\t": "→", "\r": "␍"}[character]
    return f"⟨{unicodedata.name(character, f'U+{ord(character):04X}')}⟩"
