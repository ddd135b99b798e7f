"""Draw samples from rows: seeded, lazy, and the same whatever the limit.

The rows are visited in an order that the seed alone decides (a shuffle of the row numbers), from each quarter of the
source's lengths in turn, and reading stops as soon as ``limit`` samples are made. So the same seed gives the same
samples, a smaller limit gives the first of those a larger one gives, and what is left out shifts no lengths: a row that
tuning has read is replaced by one of its quarter. Where a quarter has no more, the nearest one fills in, and the
source's detail says so, beside the length of prompts that all rows would have made. Bad rows met on the way are
reported beside the samples and do not count towards the limit. Of editor sessions (:mod:`tasks.sessions`) the limit
counts documents, and all samples of one follow one another.

What tuning has read is no test of it. Three checks: a document that it was tuned on is passed over whole, and one of a
project of which it was tuned on others, and a sample whose next tokens it has read elsewhere word for word, together
with the context just before them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import TypeVar

from harness.contracts import (
    LONGEST_ID,
    BadRow,
    Corpus,
    Document,
    Sample,
    SessionRequest,
    SourceInfo,
    TaskData,
    TaskRequest,
    Tokenizer,
    common_prefix,
    document_key,
)  # fmt: skip
from harness.contracts.models import with_bos
from harness.errors import DataError, HarnessError, reason
from harness.registry import ran_out_of_memory
from tasks.languages import Language
from tasks.protocols import AnyProtocol, Skipped
from tasks.rows import GapRow, LineRow, Row, Rows, TraceRow, whole
from tasks.sessions import ORIGINS

Made = TypeVar("Made")

SEEN = "document the model was tuned on"
OVERLAP = "of a project the model was tuned on"
DUPLICATE = "near-duplicate of what tuning has read"
_IS_A_TRACE = "holds the requests of an editor session. Use --scenario session"

COMPARED = 20
"""Successive tokens that make a duplicate where tuning has read them: the reference's, and the context's before."""
COMPARED_OF_REFERENCE = 15
"""Tokens of the reference among them, at most."""

LENGTHS_FROM = 400
"""Rows, the first in the seed's order, whose lengths stand for the source's."""
PROMPTS_FROM = 100
"""Prompts that are made of these, of each quarter in proportion, to say how long the source's are."""


def draw(rows: Rows, protocol: AnyProtocol, tokenizer: Tokenizer, request: TaskRequest) -> TaskData:
    """Return the samples of a request, in the order they were drawn."""
    if request.max_positions is not None:  # room for what comes before every prompt
        request = replace(request, max_positions=request.max_positions - len(tokenizer.start_ids))
    samples: list[Sample] = []
    taken: set[str] = set()  # ids of the rows that they come from
    bad: dict[int, BadRow] = {}
    skipped: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    visited = 0
    quarters = _Quarters(rows, request.seed, LENGTHS_FROM if request.by_length else 0)
    lengths: list[int] = []
    while len(taken) != request.limit and (found := quarters.next_row(len(taken))) is not None:
        index, row = found
        visited += 1
        made = _made(row, index, protocol, tokenizer, request)
        if isinstance(made, Skipped):
            skipped[made.reason] += 1
        elif isinstance(made, BadRow):
            bad[index] = made
        elif row.sample_id in taken:
            bad[index] = BadRow(row.sample_id, f"row {index + 1}: id '{row.sample_id}' was used before")
        else:
            kept = made if request.duplicates == "keep" else tuple(_without_duplicates(made))
            if len(kept) < len(made):
                skipped[DUPLICATE] += len(made) - len(kept)
            if kept:
                samples += kept
                taken.add(row.sample_id)
                lengths.append(_length(row))
                origins[(ORIGINS if request.session else protocol.origins)[type(row)]] += 1
    if not samples:
        raise DataError(_nothing_drawn(rows, protocol, list(bad.values()), skipped))
    detail = {
        **rows.detail,
        "rows": str(len(rows)),
        "rows_visited": str(visited),
        "order": f"shuffled, seed {request.seed}{', from each quarter of the lengths in turn' * request.by_length}",
        "samples_from": _counts(origins),
    }
    if request.by_length:
        detail["lengths"] = quarters.told(lengths) + _all_prompts(quarters, protocol, tokenizer, request)
    if skipped:
        detail["skipped"] = _counts(skipped)
    if request.session is not None:
        positions = None if request.max_positions is None else request.max_positions - protocol.limit(request)
        detail["sessions"] = _of_sessions(request.session, len(taken), positions)
    drawn = tuple(samples)
    duplicates = skipped[DUPLICATE] + sum(sample.duplicate for sample in drawn)
    source = SourceInfo(rows.kind, rows.label, fingerprint(drawn), detail)
    bad_rows = _told_apart(bad, {sample.sample_id for sample in drawn} | taken)
    return TaskData(drawn, bad_rows, source, None if request.was_read is None else duplicates)


def _of_sessions(session: SessionRequest, number: int, positions: int | None) -> str:
    window, step = session.room(positions)
    return (
        f"{number}, of at most {session.requests} requests that are waited for, unless traces have more; windows of at "
        f"most {window} tokens whose beginning moves by {step}"
    )


def _made(
    row: Row, index: int, protocol: AnyProtocol, tokenizer: Tokenizer, request: TaskRequest
) -> tuple[Sample, ...] | BadRow | Skipped:
    if isinstance(row, BadRow):
        return row
    if isinstance(row, TraceRow) and request.session is None:
        return BadRow(row.sample_id, f"row {row.number}: {_IS_A_TRACE}")
    if request.seen and document_key(whole(row)) in request.seen:
        return Skipped(SEEN)
    if request.seen_projects and _project(row, protocol.language) in request.seen_projects:
        return Skipped(OVERLAP)
    return _unless_it_breaks(partial(_samples, protocol, row, tokenizer, request), index, row.sample_id)


def _samples(
    protocol: AnyProtocol, row: Document | LineRow | GapRow | TraceRow, tokenizer: Tokenizer, request: TaskRequest
) -> tuple[Sample, ...] | BadRow | Skipped:
    """Return what a protocol makes of a row, with what it is cut from, and marked where tuning has read it.

    A row is bad where tokens of its samples are none of the model's, and where a text or an id fits no record.
    """
    if request.session is None:
        made = protocol.sample(row, tokenizer, request)
        samples: tuple[Sample, ...] | BadRow | Skipped = (made,) if isinstance(made, Sample) else made
    else:
        samples = protocol.session(row, tokenizer, request, request.session)
    if not isinstance(samples, tuple):
        return samples
    size = request.vocab_size or sys.maxsize
    for sample in samples:
        sample.reference.encode()
        if len(sample.sample_id) > LONGEST_ID:
            return BadRow(row.sample_id, f"row {row.number}: its id is too long for the ids of its requests")
        token_ids = itertools.chain(*_prompts(sample), sample.reference_ids)
        wrong = next((token for token in token_ids if not (isinstance(token, int) and 0 <= token < size)), None)
        if wrong is not None:
            return BadRow(
                row.sample_id, f"row {row.number}: the tokenizer makes {wrong!r} of it, no token of the model"
            )
    text = whole(row)
    document = hashlib.sha256(text.encode()).hexdigest()[:16]
    project = _project(row, protocol.language)
    return tuple(
        replace(
            sample,
            prompt_ids=tuple(with_bos(tokenizer, sample.prompt_ids)),
            duplicate=request.was_read is not None and request.was_read(_compared(row, sample, tokenizer)),
            document=document,
            project=project,
            overtaken_requests=tuple(
                replace(asked, prompt_ids=tuple(with_bos(tokenizer, asked.prompt_ids)))
                for asked in sample.overtaken_requests
            ),
        )
        for sample in samples
    )


def _project(row: Document | LineRow | GapRow | TraceRow, language: Language) -> str | None:
    return row.project or language.project(whole(row))


def _prompts(sample: Sample) -> Iterator[tuple[int, ...]]:
    yield sample.prompt_ids
    yield from (asked.prompt_ids for asked in sample.overtaken_requests)


def _without_duplicates(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield samples that tuning has not read; the typing before one that is left out comes before the next."""
    typing_s = 0.0
    for sample in samples:
        typing_s += sample.typing_s
        if not sample.duplicate:
            yield replace(sample, typing_s=typing_s)
            typing_s = 0.0


def _unless_it_breaks(make: Callable[[], Made], index: int, sample_id: str) -> Made | BadRow:
    """Return what is made of one row; a reader, a protocol or a tokenizer that breaks on it makes it a bad row."""
    try:
        return make()
    except HarnessError:  # a refusal is meant for the whole source
        raise
    except Exception as error:  # of third-party code, or of damage that no reader foresees: other rows are sound
        if ran_out_of_memory(error):
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


def _compared(row: Document | LineRow | GapRow | TraceRow, sample: Sample, tokenizer: Tokenizer) -> Sequence[int]:
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


def collect(rows: Rows, language: Language, *, limit: int | None, seed: int) -> Corpus:
    """Return whole documents in the order :func:`draw` visits rows; a row of context and line is joined again.

    Editor sessions are for evaluation alone.
    """
    documents: list[Document] = []
    bad: list[BadRow] = []
    digest = hashlib.sha256()
    for index in _order(rows, seed):
        if limit is not None and len(documents) >= limit:
            break
        row = _unless_it_breaks(partial(rows.read, index), index, f"row-{index + 1}")
        if isinstance(row, TraceRow):
            row = BadRow(row.sample_id, f"row {row.number}: holds an editor session, which is no document")
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        text = whole(row)
        document = Document(row.number, row.sample_id, text, _project(row, language))
        documents.append(document)
        digest.update(json.dumps([document.sample_id, document.text]).encode() + b"\n")
    if not documents:
        first = f" First reason: {bad[0].reason}" if bad else ""
        raise DataError(f"{rows.label} holds no document to learn from.{first} Give another --source or --split.")
    detail = {**rows.detail, "rows": str(len(rows)), "bad_rows": str(len(bad)), "order": f"shuffled, seed {seed}"}
    return Corpus(tuple(documents), SourceInfo(rows.kind, rows.label, digest.hexdigest(), detail))


class _Quarters:
    """Rows in the seed's order, to be taken from each quarter of their source's lengths in turn.

    Attributes:
        known: of each quarter, the rows whose lengths stand for the source's: the first ones, none of them left out.
    """

    def __init__(self, rows: Rows, seed: int, lengths_from: int) -> None:
        """Read the lengths of so many rows; of none, to take rows in the seed's order whatever their lengths."""
        self._unread = ((index, _read(rows, index)) for index in _order(rows, seed))
        first = list(itertools.islice(self._unread, lengths_from))
        lengths = sorted(_length(row) for _, row in first) or [0]
        self._ends = [lengths[len(lengths) * part // 4] for part in (1, 2, 3)]
        self._waiting: tuple[deque[tuple[int, Row]], ...] = (deque(), deque(), deque(), deque())
        for index, row in first:
            self._waiting[self._of(_length(row))].append((index, row))
        self.known = [list(quarter) for quarter in self._waiting]
        self._turns = [quarter for quarter in range(4) if self.known[quarter]] or [3]  # fewer where many are as long
        self._lacking: set[int] = set()

    def next_row(self, taken: int) -> tuple[int, Row] | None:
        """Return the next row for the sample behind so many, of its quarter or, where that has none left, the nearest.

        Of two as near it is the longer one, which costs more to leave out.
        """
        turn = self._turns[taken % len(self._turns)]
        for quarter in sorted(self._turns, key=lambda other: (abs(other - turn), -other)):
            while not self._waiting[quarter] and (found := next(self._unread, None)) is not None:
                self._waiting[self._of(_length(found[1]))].append(found)
            if self._waiting[quarter]:
                return self._waiting[quarter].popleft()
            self._lacking.add(quarter + 1)
        return None

    def told(self, drawn: Sequence[int]) -> str:
        """Say which quarters the lengths of rows that were drawn are of, and which had no more to draw."""
        counts = Counter(map(self._of, drawn))
        each = ", ".join(str(counts[quarter]) for quarter in range(4))
        said = f"rows of the source's four quarters by length, shortest first: {each}"
        if lacking := sorted(self._lacking):
            said += f"; no more may be drawn of quarter{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}"
        return said

    def _of(self, length: int) -> int:
        return bisect_right(self._ends, length)


def _all_prompts(quarters: _Quarters, protocol: AnyProtocol, tokenizer: Tokenizer, request: TaskRequest) -> str:
    """Say how long prompts of the source's rows are where some are left out; else the drawn ones stand for them."""
    if not (request.seen or request.seen_projects or request.was_read):
        return ""
    everything = replace(request, seen=frozenset(), seen_projects=frozenset(), was_read=None)
    prompts: list[int] = []
    total = sum(map(len, quarters.known))
    for known in quarters.known:
        made: list[int] = []
        for index, row in known:
            if len(made) >= PROMPTS_FROM * len(known) / total:
                break
            samples = _made(row, index, protocol, tokenizer, everything)
            made += [len(sample.prompt_ids) for sample in samples] if isinstance(samples, tuple) else []
        prompts += made
    if not prompts:
        return ""
    lengths = f"{mean(prompts):.0f} tokens on average, median {median(prompts):.0f}"
    return f"; of all its rows, whatever tuning has read, prompts have {lengths} (by {len(prompts)} of them)"


def _read(rows: Rows, index: int) -> Row:
    return _unless_it_breaks(partial(rows.read, index), index, f"row-{index + 1}")


def _length(row: Row) -> int:
    """Return the characters of a row, as far as a prompt may hold them; none where it could not be read."""
    if isinstance(row, BadRow):
        return 0
    return len(row.prompt if isinstance(row, LineRow) else whole(row))


def _order(rows: Rows, seed: int) -> list[int]:
    order = list(range(len(rows)))
    random.Random(f"order of rows, seed {seed}").shuffle(order)
    return order


def fingerprint(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 over ids, prompt tokens, references and limits of samples in their order, hex.

    Of editor sessions it covers what typing overtakes, and times, too.
    """
    digest = hashlib.sha256()
    for sample in samples:
        parts: list[object] = [sample.sample_id, sample.prompt_ids, sample.reference, sample.reference_ids]
        parts.append(sample.max_new_tokens)
        if sample.session:
            overtaken = [(asked.prompt_ids, asked.after_s) for asked in sample.overtaken_requests]
            parts += [sample.session, overtaken, sample.typing_s]
        digest.update(json.dumps(parts).encode() + b"\n")
    return digest.hexdigest()


def _nothing_drawn(rows: Rows, protocol: AnyProtocol, bad: Sequence[BadRow], skipped: Counter[str]) -> str:
    causes = [f"{len(bad)} bad, the first one: {bad[0].reason}"] if bad else []
    causes += [f"skipped: {_counts(skipped)}"] if skipped else []
    instead = "use --source embedded" if Document in protocol.origins else "give other data with --source"
    remedy = "Ask for fewer new tokens." if rows.kind == "embedded" else f"Correct the data, or {instead}."
    if skipped and not bad and set(skipped) <= {SEEN, OVERLAP, DUPLICATE}:
        remedy = "Give other data with --source, or run base weights from an empty --artefacts folder."
        if OVERLAP in skipped:
            remedy = f"{remedy[:-1]}; --allow-overlap draws other files of projects that tuning knows."
    return f"{rows.label}: none of its {len(rows)} rows can be used ({'; '.join(causes)}). {remedy}"


def _counts(counter: Counter[str]) -> str:
    return "; ".join(f"{count} × {name}" for name, count in sorted(counter.items()))
