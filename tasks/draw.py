"""Draw samples from rows: seeded, lazy, and the same whatever the limit.

The rows are visited in an order that the seed alone decides (a shuffle of the row numbers), and reading stops as
soon as ``limit`` samples are made. So the same seed gives the same samples, a smaller limit gives the first of
those a larger one gives, and twenty samples cost about twenty rows of reading and tokenising. Bad rows
met on the way are reported beside the samples and do not count towards the limit.

What tuning has read is no test of it. Two checks: a document that it was tuned on is passed over whole, and so is a
sample whose next tokens it has read elsewhere word for word, together with the context just before them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from harness.contracts import (
    BadRow,
    Corpus,
    Document,
    Sample,
    SourceInfo,
    TaskData,
    TaskRequest,
    Tokenizer,
    common_prefix,
    document_key,
)  # fmt: skip
from harness.contracts.models import with_bos
from harness.errors import DataError, HarnessError, is_out_of_memory, reason
from tasks.protocols import AnyProtocol, Skipped
from tasks.rows import GapRow, LineRow, Row, Rows, whole

Made = TypeVar("Made")

SEEN = "document the model was tuned on"
DUPLICATE = "near-duplicate of what tuning has read"

COMPARED = 20
"""Successive tokens that make a duplicate where tuning has read them: the reference's, and the context's before."""
COMPARED_OF_REFERENCE = 15
"""Tokens of the reference among them, at most."""


def draw(rows: Rows, protocol: AnyProtocol, tokenizer: Tokenizer, request: TaskRequest) -> TaskData:
    """Return the samples of a request, in the order they were drawn."""
    if request.max_positions is not None:  # room for what comes before every prompt
        request = replace(request, max_positions=request.max_positions - len(tokenizer.start_ids))
    samples: dict[str, Sample] = {}
    bad: dict[int, BadRow] = {}
    skipped: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    visited = 0
    for index in _order(rows, request.seed):
        if request.limit is not None and len(samples) >= request.limit:
            break
        visited += 1
        row = _unless_it_breaks(partial(rows.read, index), index, f"row-{index + 1}")
        made = _made(row, index, protocol, tokenizer, request)
        if isinstance(made, Skipped):
            skipped[made.reason] += 1
        elif isinstance(made, BadRow):
            bad[index] = made
        elif made.sample_id in samples:
            bad[index] = BadRow(made.sample_id, f"row {index + 1}: id '{made.sample_id}' was used before")
        else:
            samples[made.sample_id] = made
            origins[protocol.origins[type(row)]] += 1
    if not samples:
        raise DataError(_nothing_drawn(rows, protocol, list(bad.values()), skipped))
    detail = {
        **rows.detail,
        "rows": str(len(rows)),
        "rows_visited": str(visited),
        "order": f"shuffled, seed {request.seed}",
        "samples_from": _counts(origins),
    }
    if skipped:
        detail["skipped"] = _counts(skipped)
    drawn = tuple(samples.values())
    duplicates = skipped[DUPLICATE] + sum(sample.duplicate for sample in drawn)
    source = SourceInfo(rows.kind, rows.label, fingerprint(drawn), detail)
    bad_rows = _told_apart(bad, samples)
    return TaskData(drawn, bad_rows, source, None if request.was_read is None else duplicates)


def _made(
    row: Row, index: int, protocol: AnyProtocol, tokenizer: Tokenizer, request: TaskRequest
) -> Sample | BadRow | Skipped:
    if isinstance(row, BadRow):
        return row
    if request.seen and document_key(whole(row)) in request.seen:
        return Skipped(SEEN)
    made = _unless_it_breaks(partial(_sample, protocol, row, tokenizer, request), index, row.sample_id)
    is_left_out = isinstance(made, Sample) and made.duplicate and request.duplicates != "keep"
    return Skipped(DUPLICATE) if is_left_out else made


def _sample(
    protocol: AnyProtocol, row: Document | LineRow | GapRow, tokenizer: Tokenizer, request: TaskRequest
) -> Sample | BadRow | Skipped:
    """Return what a protocol makes of a row, with what it is cut from, and marked where tuning has read it.

    A sample whose tokens are none of the model's is a bad row, and so is one whose text fits no record.
    """
    made = protocol.sample(row, tokenizer, request)
    if not isinstance(made, Sample):
        return made
    made.reference.encode()
    size = request.vocab_size or sys.maxsize
    token_ids = (*made.prompt_ids, *made.reference_ids)
    wrong = next((token for token in token_ids if not (isinstance(token, int) and 0 <= token < size)), None)
    if wrong is None:
        text = whole(row)
        return replace(
            made,
            prompt_ids=tuple(with_bos(tokenizer, made.prompt_ids)),
            duplicate=request.was_read is not None and request.was_read(_compared(row, made, tokenizer)),
            document=hashlib.sha256(text.encode()).hexdigest()[:16],
            project=row.project or protocol.language.project(text),
        )
    return BadRow(row.sample_id, f"row {row.number}: the tokenizer makes {wrong!r} of it, no token of the model")


def _unless_it_breaks(make: Callable[[], Made], index: int, sample_id: str) -> Made | BadRow:
    """Return what is made of one row; a reader, a protocol or a tokenizer that breaks on it makes it a bad row."""
    try:
        return make()
    except HarnessError:  # a refusal is meant for the whole source
        raise
    except Exception as error:  # of third-party code, or of damage that no reader foresees: other rows are sound
        if is_out_of_memory(error):
            raise
        return BadRow(sample_id, f"row {index + 1}: cannot be used ({reason(error)})")


def _told_apart(bad: Mapping[int, BadRow], taken: Collection[str]) -> tuple[BadRow, ...]:
    """Return bad rows under ids that no sample and no other bad row has: no record may stand for another's."""
    used = set(taken)
    kept = []
    for index, row in bad.items():
        name = f"row-{index + 1}"
        names = itertools.chain((row.sample_id, name), (f"{name}-{again}" for again in itertools.count(2)))
        kept.append(replace(row, sample_id=next(name for name in names if name not in used)))
        used.add(kept[-1].sample_id)
    return tuple(kept)


def _compared(row: Document | LineRow | GapRow, sample: Sample, tokenizer: Tokenizer) -> Sequence[int]:
    """Return the tokens by which a duplicate is told: 15 of the reference, or all, and those before them.

    Around a gap they are those of the whole file, as tuning reads it: a prompt may end with the code after the gap, and
    a token of the file may lie on its edge.
    """
    if isinstance(row, GapRow) and any(sample.around):
        token_ids = tokenizer.encode(whole(row))
        begin = common_prefix(tokenizer.encode(row.before), token_ids)
        end = begin + min(len(sample.reference_ids), COMPARED_OF_REFERENCE)
        return token_ids[max(0, end - COMPARED) : end]
    return (*sample.prompt_ids[-COMPARED:], *sample.reference_ids[:COMPARED_OF_REFERENCE])[-COMPARED:]


def collect(rows: Rows, *, limit: int | None, seed: int) -> Corpus:
    """Return whole documents in the order :func:`draw` visits rows; a row of context and line is joined again."""
    documents: list[Document] = []
    bad: list[BadRow] = []
    digest = hashlib.sha256()
    for index in _order(rows, seed):
        if limit is not None and len(documents) >= limit:
            break
        row = _unless_it_breaks(partial(rows.read, index), index, f"row-{index + 1}")
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        document = Document(row.number, row.sample_id, whole(row))
        documents.append(document)
        digest.update(json.dumps([document.sample_id, document.text]).encode() + b"\n")
    if not documents:
        first = f" First reason: {bad[0].reason}" if bad else ""
        raise DataError(f"{rows.label} holds no document to learn from.{first} Give another --source or --split.")
    detail = {**rows.detail, "rows": str(len(rows)), "bad_rows": str(len(bad)), "order": f"shuffled, seed {seed}"}
    return Corpus(tuple(documents), SourceInfo(rows.kind, rows.label, digest.hexdigest(), detail))


def _order(rows: Rows, seed: int) -> list[int]:
    order = list(range(len(rows)))
    random.Random(f"order of rows, seed {seed}").shuffle(order)
    return order


def fingerprint(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 over ids, prompt tokens, references and limits of samples in their order, hex."""
    digest = hashlib.sha256()
    for sample in samples:
        parts = [sample.sample_id, sample.prompt_ids, sample.reference, sample.reference_ids, sample.max_new_tokens]
        digest.update(json.dumps(parts).encode() + b"\n")
    return digest.hexdigest()


def _nothing_drawn(rows: Rows, protocol: AnyProtocol, bad: Sequence[BadRow], skipped: Counter[str]) -> str:
    causes = [f"{len(bad)} bad, the first one: {bad[0].reason}"] if bad else []
    causes += [f"skipped: {_counts(skipped)}"] if skipped else []
    instead = "use --source embedded" if Document in protocol.origins else "give other data with --source"
    remedy = "Ask for fewer new tokens." if rows.kind == "embedded" else f"Correct the data, or {instead}."
    if skipped and not bad and set(skipped) <= {SEEN, DUPLICATE}:
        remedy = "Give other data with --source, or run base weights from an empty --artefacts folder."
    return f"{rows.label}: none of its {len(rows)} rows can be used ({'; '.join(causes)}). {remedy}"


def _counts(counter: Counter[str]) -> str:
    return "; ".join(f"{count} × {name}" for name, count in sorted(counter.items()))
