"""Columns of the frames that the Python API returns: the one table of their units and meanings, and their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from harness.decoding.generation import Token
from harness.records import SampleRecord
from harness.records.work import COUNTERS
from reports.tables.frame import ColumnFact, column_facts

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column of a frame.

    Attributes:
        name: of the column.
        unit: of its numbers; empty for counts, texts and names.
        meaning: in one line.
        value: takes it from a row's source.
    """

    name: str
    unit: str
    meaning: str
    value: Callable[[T], Any]


@dataclass(frozen=True, slots=True)
class TracedExit:
    """One exit's reading at one position.

    Attributes:
        position: of the token that was read. token_id, text: that token.
        exit_layer: decoder layers executed. top_token_id, top_text: the token that the exit's head puts first.
        probability: of that token. entropy: of the head's distribution, nats.
        full_depth: whether full depth puts the same token first.
    """

    position: int
    token_id: int
    text: str
    exit_layer: int
    top_token_id: int
    top_text: str
    probability: float
    entropy: float
    full_depth: bool


@dataclass(frozen=True, slots=True)
class RecordedToken:
    """A generated token of a run: which sample's, and its place there, 0-based."""

    sample: SampleRecord
    place: int

    @property
    def text(self) -> str:
        """Its contribution to the text; empty for an end token and in runs that did not keep it."""
        texts = self.sample.token_texts
        return texts[self.place] if self.place < len(texts) else ""

    @property
    def full_depth_id(self) -> int | None:
        """Full depth's choice; ``None`` in later repeats and in runs that did not ask."""
        chosen = self.sample.full_depth_ids
        return chosen[self.place] if self.place < len(chosen) else None


def _of_run(sample: Callable[[T], SampleRecord]) -> tuple[Column[T], ...]:
    return (
        Column("operating_point", "", "strategy and options, as in rows", lambda row: sample(row).operating_point),
        Column("task", "", "task name", lambda row: sample(row).task),
        Column("repeat", "", "0-based repetition of the whole measurement", lambda row: sample(row).repeat),
        Column("sample_id", "", "which sample of the task", lambda row: sample(row).sample_id),
    )


def _counter(name: str) -> Column[SampleRecord]:
    unit = next((unit for unit in ("layers", "bytes") if unit in name), "")
    return Column(name, unit, SampleRecord.model_fields[name].description or "", lambda sample: getattr(sample, name))


GENERATED: Sequence[Column[Token]] = (
    Column("token_id", "", "the token", lambda token: token.token_id),
    Column("text", "", "what it adds to the text; joined, the texts are the completion", lambda token: token.text),
    Column("exit_layer", "layers", "decoder layers executed for it", lambda token: token.exit_layer),
    Column(
        "drafted_at", "layers", "lossless: layers before its place was drafted, 0: none ran", lambda t: t.drafted_at
    ),
    Column("accepted", "", "lossless: whether it is the draft's, else full depth said it", lambda t: t.accepted),
    Column("probability", "", "softmax under the exit head that chose it", lambda token: token.probability),
    Column("time_s", "s", "from the start of the request until it was there", lambda token: token.time_s),
)

TRACE: Sequence[Column[TracedExit]] = (
    Column("position", "", "0-based place of the token that was read", lambda row: row.position),
    Column("token_id", "", "the token that was read", lambda row: row.token_id),
    Column("text", "", "its text", lambda row: row.text),
    Column("exit_layer", "layers", "decoder layers executed; the last is full depth", lambda row: row.exit_layer),
    Column("top_token_id", "", "next token that this exit would choose", lambda row: row.top_token_id),
    Column("top_text", "", "its text", lambda row: row.top_text),
    Column("probability", "", "of that token under this exit's head", lambda row: row.probability),
    Column("entropy", "nats", "of this exit's distribution", lambda row: row.entropy),
    Column("full_depth", "", "whether full depth would choose the same token", lambda row: row.full_depth),
)

SAMPLES: Sequence[Column[SampleRecord]] = (
    *_of_run(lambda sample: sample),
    Column("window", "", "measured window that it ran in", lambda sample: sample.window),
    Column("prompt_tokens", "tokens", "read", lambda sample: len(sample.prompt_ids)),
    Column("new_tokens", "tokens", "generated", lambda sample: len(sample.token_ids)),
    Column("text", "", "the completion that was scored", lambda sample: sample.text),
    Column("reference", "", "what it was scored against", lambda sample: sample.reference),
    Column("finish_reason", "", "stop, eos, length or strategy", lambda sample: sample.finish_reason),
    Column("stop_rule", "", "of stop, the rule that it was", lambda sample: sample.stop_rule),
    Column("ttft_s", "s", "from the batch's start, or the arrival, to the first token", lambda sample: sample.ttft_s),
    Column("latency_s", "s", "from the same to the last token", lambda sample: sample.latency_s),
    Column("queue_s", "s", "waiting time; only with an arrival rate", lambda sample: sample.queue_s),
    *(_counter(name) for name in COUNTERS),
    Column("error", "", "why it failed; None for a good sample", lambda sample: sample.error),
)

TOKENS: Sequence[Column[RecordedToken]] = (
    *_of_run(lambda row: row.sample),
    Column("place", "", "0-based place in the completion", lambda row: row.place),
    Column("token_id", "", "the token", lambda row: row.sample.token_ids[row.place]),
    Column("text", "", "what it added to the text", lambda row: row.text),
    Column("exit_layer", "layers", "decoder layers executed for it", lambda row: row.sample.exit_layers[row.place]),
    Column("full_depth_id", "", "full depth's token after the same ones; None: unknown", lambda row: row.full_depth_id),
    Column("time_s", "s", "from the start of the batch", lambda row: row.sample.token_times_s[row.place]),
)

_TABLES: Mapping[str, Sequence[Column[Any]]] = {
    "generate(…).tokens": GENERATED,
    "trace(…)": TRACE,
    "read(…).samples": (
        *SAMPLES,
        Column("(a column per score)", "", "by the score's name, as `harness list` gives it", lambda sample: None),
    ),
    "read(…).tokens": TOKENS,
}


def columns() -> pd.DataFrame:
    """Return every column of the frames that this API gives, with its unit and meaning, table by table."""
    import pandas

    tables: Mapping[str, Sequence[Column[Any] | ColumnFact]] = {"run(…), read(…).rows": column_facts(), **_TABLES}
    rows = [(table, one.name, one.unit, one.meaning) for table, each in tables.items() for one in each]
    return pandas.DataFrame(rows, columns=["table", "column", "unit", "meaning"])


def frame(layout: Sequence[Column[T]], rows: Iterable[T]) -> pd.DataFrame:
    """Return a frame with these columns."""
    import pandas

    sources = list(rows)
    return pandas.DataFrame({column.name: [column.value(row) for row in sources] for column in layout})
