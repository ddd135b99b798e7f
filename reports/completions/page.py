"""One page that shows what operating points wrote: every token on the colour of its depth, beside full depth's.

A completion by itself is HTML that is safe to put into any page: texts come from a model and are escaped, and what
cannot be seen is shown. The text itself is unchanged, so that what is copied is what was generated.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from harness.appearance.pages import TOKEN_CSS, depth_shade, escape_html, templates
from harness.appearance.visible_text import is_hidden
from harness.records import OperatingPointRecord, SampleRecord
from harness.records.estimate import MISSING
from reports.metrics.vocabulary import scores_of_sample
from reports.recorded import RecordedRun
from reports.statistics.plausible import is_plausible
from reports.summary.measured import Measured, after_first

_SHOWN = {" ": '<span class="s"> </span>', "\t": '<span class="t">\t</span>', "\n": '<span class="n"></span>\n'}


def coloured_tokens(sample: SampleRecord, num_layers: int, full: SampleRecord | None, *, cached: bool = True) -> str:
    """Return the tokens of a completion as HTML, in one element of class ``tokens``.

    A token's ground is the colour of its exit layer, its tip says the layer; one that differs from full depth's at the
    same place is underlined, and with a cache the first is marked as prefill's. Of lossless decoding it is the layer of
    the draft, if that was accepted, and none where a source proposed it; accepted and replaced drafts are marked. Where
    nothing says which token added which text, as of a black box, there is the text, without colours.
    """
    count = len(sample.token_ids)
    if sample.error is not None:
        return f'<div class="tokens missing">failed: {escape_html(sample.error)}</div>'
    if sample.answer is not None or not count == len(sample.token_texts) == len(sample.exit_layers):
        return f'<div class="tokens">{"".join(map(_visible, sample.text)) or "no text"}</div>'
    parts = [_token(place, sample, num_layers, full, cached and place == 0) for place in range(count)]
    return f'<div class="tokens{"" if parts else " missing"}">{"".join(parts) or "no token"}</div>'


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
            said = f"token {there[0]}" if there else "nothing more"
            if place < len(full.token_texts):
                said = _quoted(full.token_texts[place]) or "a token without text"
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


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample that is shown, and how it was chosen."""

    task: str
    sample_id: str
    followed: float | None  # mean over operating points of the share of full depth's tokens they kept
    why: str


def completion_page(run: RecordedRun, samples: int = 12) -> str:
    """Return an HTML page of so many completions at most, over all tasks; of several repeats the first is shown."""
    layers = run.manifest.model.num_layers
    chosen = choose_samples(run, samples)
    return (
        templates("reports.completions")
        .get_template("completions.html")
        .render(
            run=run.name,
            model=run.manifest.model,
            layers=layers,
            state=run.state,
            cards=[{"shown": shown, "number": number, **_card(run, shown)} for number, shown in enumerate(chosen, 1)],
            total=len({(task, sample.sample_id) for (task, _), cell in run.cells.items() for sample in cell.scored}),
            scale=[(layer, *depth_shade(layer, layers)) for layer in sorted({*run.manifest.model.exit_points, layers})],
            lossless=any(point.lossless for point in run.manifest.operating_points),
            cached=any(cell.conditions.cached for cell in run.cells.values()),
            token_css=TOKEN_CSS,
        )
    )


def choose_samples(run: RecordedRun, samples: int) -> list[Shown]:
    """Return samples to show, in the run's order: a third the least faithful, a third the most, the first others.

    Faithful is the mean, over the operating points that decide, of the share of full depth's tokens kept.
    """
    found: dict[tuple[str, str], float | None] = {}
    for task in run.manifest.tasks:
        full, *others = _cells(run, task.name)
        deciding = [cell for cell in others if cell.point.strategy != "full" and not cell.point.rehearsed]
        for sample_id in dict.fromkeys(sample.sample_id for cell in (full, *others) for sample in cell.scored):
            base, *made = (cell.samples.get((sample_id, 0)) for cell in (full, *deciding))
            shares = [share for one in made if one and base and (share := follows(one, base)) is not None]
            found[task.name, sample_id] = fmean(shares) if shares else None
    each = max(1, samples // 3) if samples < len(found) else 0
    ranked = sorted((key for key, followed in found.items() if followed is not None), key=lambda key: found[key] or 0)
    why = dict.fromkeys(ranked[:each], "among the least faithful")
    for keys, words in ((ranked[::-1][:each], "among the most faithful"), (found, "in the run's order")):
        why |= {key: words for key in keys if key not in why}
    kept = [*why][:samples]
    return [Shown(*key, found[key], why[key]) for key in found if key in kept]


def _cells(run: RecordedRun, task: str) -> list[Measured]:
    return [cell for (name, _), cell in run.cells.items() if name == task and not cell.point.never_exits]


def _card(run: RecordedRun, shown: Shown) -> dict[str, Any]:
    """Return the reference, and a row per operating point, held against the first, which is full depth."""
    cells, key = _cells(run, shown.task), (shown.sample_id, 0)
    model, full = run.manifest.model, cells[0].samples.get(key)
    rows = []
    for cell in cells:
        if (sample := cell.samples.get(key) or cell.failed.get(key)) is not None:
            beside = None if cell is cells[0] else full
            rows.append(
                {
                    "name": cell.point.name,
                    "note": _note(cell.point, cell.conditions.weights_format if len(model.formats) > 1 else ""),
                    "tokens": coloured_tokens(sample, model.num_layers, beside, cached=cell.conditions.cached),
                    "facts": tuple(_facts(cell, sample, beside)),
                }
            )
    reference = next((cell.samples[key].reference for cell in cells if key in cell.samples), "")
    return {"reference": reference, "rows": rows}


def _note(point: OperatingPointRecord, stored: str) -> str:
    if point.strategy == "full":
        drafts = f"{' or '.join(point.draft_sources)} drafts" if point.draft_sources else ""
        return "; ".join(filter(None, ("never exits", stored and f"matrices in {stored}", drafts)))
    if point.black_box is not None:
        return "a black box: no tokens, no layers"
    return "a bound: it looked at the answer" if point.rehearsed else ""


def _facts(cell: Measured, sample: SampleRecord, full: SampleRecord | None) -> Iterator[tuple[str, str]]:
    decided = cell.decoded_layers(sample)
    if decided:
        yield "mean layer", f"{fmean(decided):.1f}"
    if full is not None and (share := follows(sample, full)) is not None:
        yield "agreement", f"{share:.2f}"
    for metric, score in scores_of_sample(sample):
        if metric.change is not None:
            yield metric.title or metric.term, f"{score:.2f}"
    if sample.latency_s is not None:
        yield "latency", _time(sample.latency_s)
    if (later := after_first(sample)) is not None:
        yield "per later token", _time(later[0] / later[1])


def _time(seconds: float) -> str:
    if not is_plausible(seconds):
        return MISSING
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
