"""Columns of the frames that the Python API returns: the one table of their units and meanings, and their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from harness.decoding.generation import Token
from harness.records import SampleRecord
from harness.records.work import COUNTERS
from reports.tables.frame import ColumnFact, column_facts

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column of a frame: name, unit of its numbers, meaning, and what takes it from a row's source, by default the
    attribute of that name.
    """

    name: str
    unit: str
    meaning: str
    value: Callable[[T], Any] | None = None

    def of(self, row: T) -> Any:
        """Return its value in a row."""
        return getattr(row, self.name) if self.value is None else self.value(row)


class TracedExit(NamedTuple):
    """One exit's reading at one position; its columns say what is what."""

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

    def at(self, column: str, default: object = None) -> Any:
        """Return its value in a column of its sample, which runs need not have kept."""
        values = getattr(self.sample, column)
        return values[self.place] if self.place < len(values) else default


def _of_run(sample: Callable[[T], SampleRecord]) -> tuple[Column[T], ...]:
    return (
        Column("operating_point", "", "strategy and options, as in rows", lambda row: sample(row).operating_point),
        Column("task", "", "task name", lambda row: sample(row).task),
        Column("repeat", "", "0-based repetition of the whole measurement", lambda row: sample(row).repeat),
        Column("sample_id", "", "which sample of the task", lambda row: sample(row).sample_id),
    )


def _counter(name: str) -> Column[SampleRecord]:
    unit = next((unit for unit in ("layers", "bytes") if unit in name), "")
    return Column(name, unit, SampleRecord.model_fields[name].description or "")


GENERATED: Sequence[Column[Token]] = (
    Column("token_id", "", "the token"),
    Column("text", "", "what it adds to the text; joined, the texts are the completion"),
    Column("exit_layer", "layers", "decoder layers executed for it"),
    Column("drafted_at", "layers", "lossless: layers before its place was drafted, 0: none ran"),
    Column("accepted", "", "lossless: whether it is the draft's, else full depth said it"),
    Column("probability", "", "softmax under the exit head that chose it"),
    Column("time_s", "s", "from the start of the request until it was there"),
)

TRACE: Sequence[Column[TracedExit]] = (
    Column("position", "", "0-based place of the token that was read"),
    Column("token_id", "", "the token that was read"),
    Column("text", "", "its text"),
    Column("exit_layer", "layers", "decoder layers executed; the last is full depth"),
    Column("top_token_id", "", "next token that this exit would choose"),
    Column("top_text", "", "its text"),
    Column("probability", "", "of that token under this exit's head"),
    Column("entropy", "nats", "of this exit's distribution"),
    Column("full_depth", "", "whether full depth would choose the same token"),
)

SAMPLES: Sequence[Column[SampleRecord]] = (
    *_of_run(lambda sample: sample),
    Column("window", "", "measured window that it ran in"),
    Column("prompt_tokens", "tokens", "read", lambda sample: len(sample.prompt_ids)),
    Column("new_tokens", "tokens", "generated", lambda sample: len(sample.token_ids)),
    Column("text", "", "the completion that was scored"),
    Column("reference", "", "what it was scored against"),
    Column("finish_reason", "", "stop, eos, length or strategy"),
    Column("stop_rule", "", "of stop, the rule that it was"),
    Column("ttft_s", "s", "from the batch's start, or the arrival, to the first token"),
    Column("latency_s", "s", "from the same to the last token"),
    Column("queue_s", "s", "waiting time; only with an arrival rate"),
    Column("session", "", "editor session that it is a request of"),
    Column("prompt_reused", "tokens", "of its prompt, not read again"),
    Column("overtaken_s", "s", "computing for requests before it that typing overtook"),
    *(_counter(name) for name in COUNTERS),
    Column("error", "", "why it failed; None for a good sample"),
)

TOKENS: Sequence[Column[RecordedToken]] = (
    *_of_run(lambda row: row.sample),
    Column("place", "", "0-based place in the completion"),
    Column("token_id", "", "the token", lambda row: row.at("token_ids")),
    Column("text", "", "what it added to the text", lambda row: row.at("token_texts", "")),
    Column("exit_layer", "layers", "decoder layers executed for it", lambda row: row.at("exit_layers")),
    Column(
        "full_depth_id",
        "",
        "full depth's token after the same ones; None: unknown",
        lambda row: row.at("full_depth_ids"),
    ),
    Column("time_s", "s", "from the start of the batch", lambda row: row.at("token_times_s")),
)

_TABLES: Mapping[str, Sequence[Column[Any]]] = {
    "generate(…).tokens": GENERATED,
    "trace(…)": TRACE,
    "read(…).samples": (
        *SAMPLES,
        Column("(a column per score)", "", "by the score's name, as `harness list` gives it"),
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
    return pandas.DataFrame({column.name: [column.of(row) for row in sources] for column in layout})
