"""The sentences about how operating points decoded, and what that does to their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.contracts import common_prefix
from harness.records import Manifest, ModelRecord
from reports.metrics.point import Point
from reports.summary.measured import Measured, full_depths


def decoding_notes(manifest: Manifest, cells: Sequence[Measured]) -> Iterator[str]:
    """Yield what KV policies, weights formats, batches, arrivals, black boxes and cheap heads mean for the numbers."""
    yield from _about_decoding([cell for cell in cells if cell.point.black_box is None], manifest)
    yield from _about_black_boxes(cells)
    yield from _about_heads(cells)


def oracle_notes(cells: Sequence[Measured]) -> Iterator[str]:
    """Yield what an oracle's row bounds, or that it bounds nothing."""
    found = {
        cell.point.name: cell.conditions
        for cell in cells
        if cell.samples and cell.point.rehearsed and not cell.point.lossless
    }
    for name, conditions in found.items():
        first = f"{name} leaves at the first exit point that has full depth's token and pays nothing to know it"
        if conditions.kv_facts.exact:
            yield (
                f"{first}: an upper bound on the layers that can be skipped with no token changed, never on the Pareto "
                "front. It runs under exact keys and values, whatever --kv says."
            )
        else:
            yield (
                f"{first}, but it ran under kv {conditions.kv}, where it changes tokens and bounds nothing: no row is "
                "held against it. Newer runs give it exact keys and values."
            )


def exactness_notes(cells: Sequence[Measured]) -> Iterator[str]:
    """Yield whether lossless rows have full depth's tokens in their format, and what stop rules do to completions."""
    compared, wrong = 0, []
    for cell in cells:
        if not cell.point.lossless:
            continue
        full = full_depths(other for other in cells if other.task == cell.task).get(cell.conditions.weights_format)
        keys = [] if full is None else [key for key in cell.shared(full) if key[1] == 0]
        for key in keys:
            assert full is not None
            compared += 1
            mine, reference = cell.samples[key].token_ids, full.samples[key].token_ids
            if cell.samples[key].finish_reason == "stop" and cell.point.stop:  # it ends a completion that would go on
                reference = reference[: len(mine)]
            if mine != reference:
                wrong.append((cell, key[0], common_prefix(mine, reference) + 1))
    if wrong:
        cell, sample_id, place = wrong[0]
        yield (
            f"lossless rows differ from full depth in {len(wrong)} of {compared} completions, first {cell.point.name} "
            f"in {sample_id} at token {place}. Products of several rows may round otherwise than those of one, and tip "
            "a near-tie; anything else is a defect. `harness verify` tells one from the other."
        )
    elif compared:
        cut = (
            ", up to where a stop rule ends them"
            if any(cell.point.lossless and cell.point.stop for cell in cells)
            else ""
        )
        yield f"lossless rows: the tokens are full depth's in all {compared} completions{cut}."
    if not all(cell.tells_discarded for cell in cells if cell.point.lossless):
        yield (
            "which drafts stood, by source, layer and kind, is not known: the run was recorded before discarded drafts "
            "were. Run it again for that."
        )
    for cell in cells:
        yield from _always(cell)
    if any(cell.point.stop for cell in cells):
        yield (
            "stop rules: a completion that was ended early is scored against its whole reference, like any other, and "
            "what full depth goes on to say counts as missing in agreement. Tokens saved are of full depth's without a "
            "rule; speed-up, energy and latency of requests count the shorter completions, tokens per second do not."
        )


def _always(cell: Measured) -> Iterator[str]:
    """Warn where a rule, or a strategy, ended every completion as early as it may.

    A rule may with the first token; one that reads states with the second, as the first one's is the prompt's; and a
    strategy, which is asked of the second token, in its place.
    """
    made = list(cell.samples.values())
    rule = cell.point.stop.partition(":")[0]
    by_rule = bool(rule) and all(sample.stop_rule == rule for sample in made)
    if not made or not (by_rule or all(sample.finish_reason == "strategy" for sample in made)):
        return
    lengths = {len(sample.token_ids) for sample in made}
    if lengths in ({1}, {2} if by_rule else {1}):
        yield (
            f"{cell.point.name} on {cell.task.name} always stops: the {'rule' if by_rule else 'strategy'} ended all of "
            f"its {len(made)} completions with their {'first' if lengths == {1} else 'second'} token, so that its "
            "savings mean nothing. Check it and its options."
        )


def _about_decoding(cells: Sequence[Measured], manifest: Manifest) -> Iterator[str]:
    seen = [cell.conditions for cell in cells]
    policies = {one.kv: one.kv_facts.note for one in seen}
    if len(policies) > 1:
        full = cells[0].point.name if len(manifest.model.formats) == 1 else "full depth"
        yield (
            f"operating points differ in their KV policy; all are compared with {full} (kv {seen[0].kv}), and "
            "fixed exits of the same policy are their measure where the run has them."
        )
    yield from _about_formats(manifest, cells)
    yield from (f"kv {name}: {note}" for name, note in policies.items() if note)
    batch = max((one.batch_size for one in seen), default=1)
    if batch > 1:
        yield (
            f"batch {batch}: rows share each read of the weights, so the byte model does not apply; "
            "latency counts from the start of the batch."
        )
    yield from _of_weights(manifest.model)
    cached = any(one.cached for one in seen)
    if cached:
        yield (
            "the first token of a completion comes from prefill at full depth: it counts in scores, latency and "
            "positionwise agreement, not in the exact prefix, own-text agreement, layers, work or decoding speed."
        )
    arrived = any(sample.arrival_s is not None for cell in cells for sample in cell.samples.values())
    if cached and batch == 1 and len(cells) > 1 and manifest.timed and not arrived:
        yield (
            "speed-ups of whole requests count for each prompt its mean time over the operating points, which all read "
            "it in the same pass; latencies are as they were measured."
        )
    own_text = any(sample.full_depth_ids for cell in cells for sample in cell.scored)
    if own_text and manifest.model.dtype != "float32":
        yield (
            f"own-text agreement reads a completion in one pass, where {manifest.model.dtype} rounds otherwise than in "
            "decoding: after the first difference full depth's choice can flip (on CPU, bfloat16 flips 1 % of them)."
        )
    if manifest.bandwidth_bytes_per_s is None and cached and batch == 1:
        yield "memory bandwidth was not measured, so the share of it that decoding reached is unknown."
    if arrived:
        yield (
            "requests arrive at a fixed rate: latency, TTFT and speed-up count from the arrival, waiting included; "
            "tokens per second and energy include idling between requests."
        )


def _of_weights(model: ModelRecord) -> Iterator[str]:
    """Say what weights formats other than float32 do to tokens and speed-ups."""
    several = len(model.formats) > 1
    for one in map(model.stored, model.formats):
        stored = f"matrices are stored in {one.weights_format}, which"
        if one.weights_accuracy == "near-exact" and model.dtype == "float32":
            over = "" if several else "; speed-ups are over full depth in the same format"
            yield f"{stored} keeps float32's tokens but for near-ties{over}."
        elif one.weights_accuracy == "lossy" and several:
            yield f"{stored} is lossy: the row of its full depth says what that alone changes."
        elif one.weights_accuracy == "lossy":
            yield (
                f"{stored} is lossy: agreement and speed-ups are against full depth in the same format, and say "
                "nothing of float32; scores do."
            )


def _about_formats(manifest: Manifest, cells: Sequence[Measured]) -> Iterator[str]:
    """Say which full depth is held against what, where a run compares weights formats."""
    model = manifest.model
    if len(model.formats) < 2:
        return
    yield (
        f"operating points differ in their weights format: @{' and @'.join(model.formats)}. Tokens and scores of all "
        f"are compared with {cells[0].point.name}. Speed-up and energy ratio are over full depth in the row's own "
        "format: what the strategy gives."
    )
    chosen: dict[str, list[str]] = {}
    for task in manifest.tasks:
        table = [cell for cell in cells if cell.task.name == task.name]
        fastest = Point(table[0], table, manifest).fastest_full
        if fastest is not None:
            chosen.setdefault(fastest.point.name, []).append(task.name)
    near = [name for name in model.formats if model.stored(name).keeps_tokens]
    for name, tasks in chosen.items():
        on = f" on {', '.join(tasks)}" if len(chosen) > 1 else ""
        which = (
            f"the fastest of those ({', '.join(near)}) that keep" if len(near) > 1 else "the only one here that keeps"
        )
        yield (
            f"what is stated over fastest is over {name}{on}: its format is {which} the tokens of the model as it was "
            "read, near-ties apart. That is what format and strategy give together."
        )
    if not chosen:
        yield (
            "no format of this run keeps the tokens of the model as it was read, so there is no speed-up over the "
            "fastest full depth. Add auto to --weights-format for one that does."
        )


def _about_black_boxes(cells: Sequence[Measured]) -> Iterator[str]:
    for point in {cell.point.name: cell.point for cell in cells if cell.point.black_box}.values():
        answers = [
            sample.answer
            for cell in cells
            if cell.point.name == point.name
            for sample in cell.scored
            if sample.answer is not None
        ]
        models = sorted({answer.model for answer in answers if answer.model})
        named = f" It calls its model {', '.join(models)}." if models else ""
        counts = answers and all(answer.tokens is not None for answer in answers)
        tokens = "Its tokens are its own count." if counts else "It does not count its tokens, so nothing is per token."
        yield (
            f"{point.name} is a black box: it gets the prompt as text and makes tokens of it itself, and times are its "
            "client's. What only the engine knows (layers, own tokens, exact prefix) is missing; scores of tokens read "
            f"its text.{named} {tokens}"
        )


def _about_heads(cells: Sequence[Measured]) -> Iterator[str]:
    for point in {cell.point.name: cell.point for cell in cells if cell.point.heads}.values():
        samples = [sample for cell in cells if cell.point.name == point.name for sample in cell.samples.values()]
        read = sum(sample.cheap_head_evaluations for sample in samples)
        if not read:
            continue
        megabytes = sum(sample.cheap_head_bytes for sample in samples) / read / 1e6
        own = sum(sample.cheap_head_tokens for sample in samples)
        left = sum(layer < sample.exit_layers[0] for sample in samples for layer in sample.exit_layers[1:])
        missed = sum(sample.cheap_head_misses for sample in samples)
        heads = "; ".join(f"{head} ({note})" for head, note in point.heads.items())
        if point.lossless:
            yield (
                f"{point.name}: a cheap head, {heads}, of {megabytes:.1f} MB a reading, reads what exits draft; the LM "
                "head verifies it, so that nothing is lost."
            )
            continue
        tokens = (
            f"{own} of its tokens were chosen by it and not by the LM head: a loss like any other"
            if own
            else f"the LM head chose its tokens, {missed} of {left} otherwise than the checked head would have"
        )
        yield f"{point.name} is decided by a cheap head, {heads}, of {megabytes:.1f} MB a reading; {tokens}."
