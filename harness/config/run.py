"""One run configuration, from flags, a TOML file or Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self, TypeAlias, TypeVar, cast, get_args

from pydantic import Field, PlainSerializer, PlainValidator, ValidationInfo, field_validator, model_validator

from harness.config.decode import DRAFT_MAX, DraftHead, DraftMax, draft_limits, parse_decode, parse_decodes
from harness.config.model import (
    DEFAULT_MODEL,
    STORED,
    ContradictionError,
    Folder,
    ModelConfiguration,
    ModelName,
    Placeholder,
    Seed,
    TaskName,
    comma_list,
    parse_named,
    registered,
)
from harness.config.options import build_class
from harness.config.rules import NONE, idle_prefetches, parse_prompt_exits, parse_stops
from harness.config.strategies import StrategySpec, as_strategy, parse_all, spec_of
from harness.contracts import Duplicates, Graphs, Keep, ModelRequest, Prefetch, SessionRequest, Strategy
from harness.errors import ConfigError, did_you_mean
from harness.registry import KV_POLICIES, STOPS, WEIGHTS_FORMATS

T = TypeVar("T")

OUTPUT = "The run and what is printed"
"""Panel of the help for what no result depends on."""


def _read_strategy(value: Any) -> Any:
    """Take a strategy as text, object or class; a record of an object is not the object."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and "object" in value:
        raise ConfigError(
            f"the strategy {value['object']} was given as an object and exists only in the program that defines it: "
            "continue there, with harness.run(config, resume=…), or register it as an entry point."
        )
    return as_strategy(value)


def _record_strategy(value: str | Strategy) -> str | dict[str, Any]:
    if isinstance(value, str):
        return value
    spec = spec_of(value)
    return {"object": spec.name, "options": dict(spec.options)}


GivenStrategy: TypeAlias = Annotated[str | Strategy, PlainValidator(_read_strategy), PlainSerializer(_record_strategy)]
"""An operating point as text, or a strategy object (from Python only)."""


KEEPS: tuple[Keep, ...] = get_args(Keep)
EXACT: Keep = "exact"
PREFETCHES: tuple[Prefetch, ...] = get_args(Prefetch)
NOTHING: Prefetch = "none"

REQUESTS = "requests"
"""The scenario of requests that share nothing."""

_SCENARIO = "Write requests or session[:requests=N][:window=N][:step=N]."


def parse_scenario(text: str) -> SessionRequest | None:
    """Return how editor sessions are drawn; ``None`` for ``requests``."""
    named = parse_named(text, f"scenario = '{text}'", "scenario", _SCENARIO)
    if named.name not in (REQUESTS, "session"):
        raise ConfigError(
            f"unknown scenario '{named.name}'.{did_you_mean(named.name, (REQUESTS, 'session'))} {_SCENARIO}"
        )
    if named.name == REQUESTS:
        if named.options:
            raise ConfigError(f"scenario = '{text}': requests has no options. {_SCENARIO}")
        return None
    session: SessionRequest = build_class(SessionRequest, "scenario", named.name, named.options, _SCENARIO)
    return session


_LISTS: Mapping[str, Callable[[Any], Any]] = {
    "kv": comma_list,
    "keep": comma_list,
    "weights_format": comma_list,
    "decode": parse_decodes,
    "draft_max": draft_limits,
    "stop": parse_stops,
    "prompt_exit": parse_prompt_exits,
    "prefetch": comma_list,
}
"""Options that a comma list compares → how one is read."""


def _each(value: T | tuple[T, ...]) -> tuple[T, ...]:
    return value if isinstance(value, tuple) else (value,)


class RunConfig(ModelConfiguration):
    """Everything that decides a run, beside the model's configuration; saved whole in the manifest."""

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "What is compared": (
            *("strategies", "kv", "decode", "draft_head", "draft_max", "stop", "keep", "prompt_exit", "prefetch"),
            "weights_format",
        ),
        "The model": ("model", "weights", "exit_points", "exit_head", "artefacts", "dtype", "kv_input"),
        "On which samples": (
            *("tasks", "scenario", "protocol", "source", "limit", "skip", "duplicates", "max_new_tokens", "seed"),
            *("allow_overlap", "allow_code_execution"),
        ),
        "How it is measured": (
            *("batch_size", "repeats", "arrival_rate", "block_size", "attribute", "strict", "idle_s"),
            *("untimed", "energy", "tdp_w", "device", "device_map", "graphs", "threads"),
        ),
        OUTPUT: ("out",),
    }

    strategies: tuple[Annotated[GivenStrategy, Placeholder("SPEC")], ...] = Field(
        default=(),
        description="NAME[:option=value[,value…]]; a comma list makes one operating point each. Repeatable. "
        "Full depth is always added as the baseline.",
    )
    model: ModelName = DEFAULT_MODEL  # declared again: flags stand in the order of a class's own fields
    tasks: tuple[TaskName, ...] = Field(default=("py150",), description="Task, see `harness list tasks`. Repeatable.")
    scenario: str = Field(
        default=REQUESTS,
        description="requests, which share nothing; or session[:requests=8][:window=1024][:step=256], an editor in "
        "which each document is typed: windows of so many tokens, whose beginning moves in steps.",
    )
    protocol: str | None = Field(
        default=None,
        description="A name of `harness list protocols`. Default: the task's own; green-code for py150 and javacorpus, "
        "codexglue-line in sessions.",
    )
    source: str = Field(
        default="embedded", min_length=1, description="embedded, hub, or PATH of a JSONL file or dataset folder."
    )
    limit: int | None = Field(
        default=16, ge=0, le=10**9, description="Samples per task, or documents of sessions; 0 for all."
    )
    skip: int = Field(
        default=0,
        ge=0,
        le=10**9,
        description="Samples, or documents of sessions, left out before the first: those that a run with so large a "
        "--limit draws.",
    )
    duplicates: Duplicates = Field(
        default="skip",
        description="Samples whose next tokens tuning has read, 20 in a row with the context before them: skip, or "
        "keep and mark",
    )
    allow_overlap: bool = Field(
        default=False, description="Draw samples of projects, too, of which tuning has read other files."
    )
    allow_code_execution: bool = Field(
        default=False,
        description="Run completions with the tests that a dataset has for them (pass@1): code that a model wrote, "
        "in a process of its own with limits, which is no security boundary.",
    )
    max_new_tokens: int | None = Field(
        default=None, ge=1, le=4096, description="New tokens per sample. Default: the protocol's limit."
    )
    kv: str | tuple[str, ...] = Field(
        default="auto",
        description="K,V of skipped layers: auto (recompute; propagate for fixed exits), or one of `harness list kv`: "
        f"{', '.join(KV_POLICIES.names())}; a comma list compares, the first one's full depth being the baseline. The "
        "oracle, a bound, runs under exact ones (recompute, none) whatever is named.",
    )
    decode: str | tuple[str, ...] = Field(
        default="lossy",
        description="lossy takes what exits say. lossless lets exits draft and full depth verify, so that its tokens "
        "come out; lossless+SOURCE[:option=value]… asks a draft source of `harness list drafts` first. A comma list "
        "compares; what follows a strategy after @ goes for that one.",
    )
    draft_head: DraftHead = "auto"
    draft_max: DraftMax | tuple[DraftMax, ...] = Field(
        default=DRAFT_MAX, description="Tokens of a draft at most, lossless; a comma list compares"
    )
    stop: str | tuple[str, ...] = Field(
        default=NONE,
        description="What ends a completion before the protocol does: none, or NAME[:option=value]… of `harness list "
        f"stops` ({', '.join(STOPS.names())}); a comma list compares. Full depth also runs without.",
    )
    keep: str | tuple[str, ...] = Field(
        default=EXACT,
        description="In sessions, the keys and values that a request leaves to the next: none, prompt, exact (of its "
        "completion, too, where they are full depth's), all (also those made of exits' states); a comma list compares.",
    )
    prompt_exit: str | tuple[str, ...] = Field(
        default=NONE,
        description="How deep the prompt is read: none (by all layers), or NAME[:option=value]… of `harness list "
        "prompts`; layer=18:tail=64 stops all but the last 64 tokens after layer 18. A comma list compares. Full depth "
        "also runs without.",
    )
    prefetch: str | tuple[str, ...] = Field(
        default=NOTHING,
        description="In sessions, what is computed while the user types: none; deepen, which makes exact what "
        "--prompt-exit left; draft, which decodes on behind the last answer, for lossless decoding with a draft "
        "source; or all. A comma list compares. Nobody waits for it; energy counts it.",
    )
    weights_format: str | tuple[str, ...] = Field(  # type: ignore[assignment]  # a list is for runs alone
        default="auto", description=f"{STORED}; a comma list compares, the first one's full depth being the baseline."
    )
    batch_size: int = Field(default=1, ge=1, le=1024, description="Samples decoded together.")
    repeats: int = Field(default=1, ge=1, le=1000, description="Repetitions of each block, each in a fresh process.")
    arrival_rate: float | None = Field(
        default=None,
        ge=0.001,
        le=10_000,
        description="Requests per second, a Poisson process with a queue. Default: each one when the last is done.",
    )
    block_size: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Samples per interleaved block. Default: from the meter's sensor period.",
    )
    attribute: bool = Field(
        default=False,
        description="Measure where the time goes: adds a probe per strategy, which is asked and never exits.",
    )
    strict: bool = Field(
        default=False, description="Measure windows that other work contaminated again, up to 3 times."
    )
    idle_s: float | None = Field(
        default=None,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds of idle power before and after the work; 0 for none. Default: from the sensor.",
    )
    untimed: bool = Field(
        default=False,
        description="Record no time: for tokens, scores and work alone, on a machine that other work may share. Wants "
        "--energy none and a named --weights-format.",
    )
    graphs: Graphs = Field(
        default="segments",
        description="What a CUDA device is handed as one graph: segments between exits, or nothing (off).",
    )
    seed: Seed = Field(default=0, description="Decides sampling, order and random strategies.")
    out: Folder | None = Field(default=None, description="Run directory. Default: runs/TIME-MODEL-TASK.")

    @field_validator("strategies", "tasks", mode="after")
    @classmethod
    def _each_once(cls, value: tuple[str, ...], field: ValidationInfo) -> tuple[str, ...]:
        if not value and field.field_name == "tasks":
            raise ValueError("names nothing")
        return tuple(dict.fromkeys(value))

    @field_validator("limit", mode="after")
    @classmethod
    def _all(cls, value: int | None) -> int | None:
        return value or None

    @field_validator("scenario", mode="after")
    @classmethod
    def _readable(cls, value: str) -> str:
        parse_scenario(value)
        return value

    @field_validator(*_LISTS, mode="before")
    @classmethod
    def _listed(cls, value: Any, field: ValidationInfo) -> Any:
        return _LISTS[str(field.field_name)](value)

    @field_validator("kv", "weights_format", mode="after")
    @classmethod
    def _known(cls, value: str | tuple[str, ...], field: ValidationInfo) -> str | tuple[str, ...]:
        of_kv, names = field.field_name == "kv", _each(value)
        if of_kv and "auto" in names and len(names) > 1:
            raise ValueError("auto cannot be listed beside others: it chooses one policy per strategy")
        for name in names:
            registered(KV_POLICIES if of_kv else WEIGHTS_FORMATS, name, also=("auto",))
        return value

    @field_validator("keep", "prefetch", mode="after")
    @classmethod
    def _words(cls, value: str | tuple[str, ...], field: ValidationInfo) -> str | tuple[str, ...]:
        known: tuple[str, ...] = KEEPS if field.field_name == "keep" else PREFETCHES
        for name in _each(value):
            if name not in known:
                raise ValueError(f"unknown '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")
        return value

    @model_validator(mode="after")
    def _means_something_together(self) -> Self:
        for contradiction in self._contradictions():
            raise ContradictionError(contradiction)
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.repeats > 1 and not all(isinstance(item, str) for item in self.strategies):
            yield (
                f"repeats = {self.repeats} needs fresh processes, and a strategy given as an object exists only in "
                "this one. Register it as an entry point, or use repeats = 1."
            )
        timed = (
            ("energy", self.energy, self.energy == "none", 'energy = "none"'),
            ("weights_format", "auto", "auto" not in self.weights_formats, "a format by its name: auto is timed"),
            ("strict", True, not self.strict, "strict = false"),
            ("attribute", True, not self.attribute, "attribute = false"),
            ("arrival_rate", self.arrival_rate, self.arrival_rate is None, "no arrival_rate"),
            ("repeats", self.repeats, self.repeats == 1, "repeats = 1: tokens are the same again"),
            ("idle_s", self.idle_s, not self.idle_s, "idle_s = 0"),
        )
        for name, value, fits, remedy in timed if self.untimed else ():
            if not fits:
                yield f"untimed = true records no time, and {name} = {value} is about time. Use {remedy}."
        alone, queued = self.batch_size == 1, self.arrival_rate is not None
        if queued and not alone:
            yield f"--arrival-rate serves one request at a time and --batch-size is {self.batch_size}. Omit one."
        if self.attribute and (queued or not alone):
            yield "--attribute counts what single requests did, back to back. Omit --batch-size and --arrival-rate."
        if self.session and (queued or self.attribute or not alone):
            yield (
                "--scenario session decodes the requests of one editor, each when typing comes to it. Omit "
                "--batch-size, --arrival-rate and --attribute."
            )
        if not self.session and self.keep != EXACT:
            yield f"--keep {','.join(_each(self.keep))} is of editor sessions. Add --scenario session, or omit it."
        if self.prefetches != (NOTHING,) and not self.session:
            yield f"--prefetch {','.join(self.prefetches)} is of editor sessions. Add --scenario session, or omit it."
        if self.prefetches != (NOTHING,) and self.keeps == ("none",):
            yield "--prefetch computes for later requests, and --keep none leaves them nothing. Use --keep exact."
        if self.prefetches != (NOTHING,):
            written = [*self.decodes, *(str(spec.decode) for spec in self.specs() if spec.decode is not None)]
            recalling = any(parse_decode(text).recalls for text in written)
            yield from idle_prefetches(self.prefetches, shallow=self.prompt_exits != (NONE,), recalling=recalling)
        if self.attribute and self.stops != (NONE,):
            yield "--attribute compares costs of the same tokens, and a stop rule leaves some out. Omit --stop."
        if self.attribute and self.prompt_exits != (NONE,):
            yield "--attribute compares costs of the same tokens, which prompt exits change. Omit --prompt-exit."

    @property
    def session(self) -> SessionRequest | None:
        """How editor sessions are drawn; ``None`` for requests that share nothing."""
        return parse_scenario(self.scenario)

    @property
    def kv_policies(self) -> tuple[str, ...]:
        """The KV policies to compare; none where each strategy runs under its own."""
        return () if self.kv == "auto" else _each(self.kv)

    @property
    def decodes(self) -> tuple[str, ...]:
        """The ways to decode to compare."""
        return _each(self.decode)

    @property
    def longest_drafts(self) -> tuple[int, ...]:
        """The longest drafts to compare."""
        return _each(self.draft_max)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop rules to compare; ``none`` may be one of them."""
        return _each(self.stop)

    @property
    def prompt_exits(self) -> tuple[str, ...]:
        """The exits for the prompt to compare; ``none`` may be one of them."""
        return _each(self.prompt_exit)

    @property
    def weights_formats(self) -> tuple[str, ...]:
        """The weights formats to compare, the run's own first; ``auto`` may be one of them."""
        return _each(self.weights_format)

    def request(self, seed: int = 0) -> ModelRequest:
        """Return which model is asked for, in the run's own format; ``seed`` draws random weights."""
        return replace(super().request(seed), weights_format=self.weights_formats[0])

    @property
    def keeps(self) -> tuple[Keep | None, ...]:
        """What requests of a session leave to the next, to compare; ``None`` alone where they share nothing."""
        return (None,) if self.session is None else tuple(cast("Keep", name) for name in _each(self.keep))

    @property
    def prefetches(self) -> tuple[Prefetch, ...]:
        """What is computed while the user types, to compare."""
        return tuple(cast("Prefetch", name) for name in _each(self.prefetch))

    def specs(self) -> list[StrategySpec]:
        """Return the operating points as written, expanded, each once, in order."""
        return parse_all(self.strategies, in_run=True)
