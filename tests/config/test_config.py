"""The strategy mini-language, and one configuration from flags, files and Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config import RunConfig, StrategySpec, demo_strategies, parse_all, parse_strategies
from harness.config.options import build_strategy, effective_options, option_facts
from harness.contracts import SessionRequest
from harness.errors import ConfigError, HarnessError
from harness.registry import STRATEGIES
from harness.replay.options import SweepOptions
from harness.serving.config import ServeConfig
from harness.study.grid import StudyConfig


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("full", ["full"]),
        ("  full ", ["full"]),
        ("fixed:layer=4", ["fixed:layer=4"]),
        ("fixed:layer=4,6,10", ["fixed:layer=4", "fixed:layer=6", "fixed:layer=10"]),
        ("a:x=1:y=2", ["a:x=1:y=2"]),
        ("a:x=1,y=2", ["a:x=1:y=2"]),
        ("a:x=1,2:y=3,4", ["a:x=1:y=3", "a:x=1:y=4", "a:x=2:y=3", "a:x=2:y=4"]),
        ("a:x=1,2,y=3", ["a:x=1:y=3", "a:x=2:y=3"]),
        ("a: x = 1 , 2 ", ["a:x=1", "a:x=2"]),
        ("a:path=b=c", ["a:path=b=c"]),
    ],
)
def test_what_is_written_expands(text: str, expanded: list[str]) -> None:
    specs = parse_strategies(text)
    assert [str(spec) for spec in specs] == expanded
    for spec in specs:
        assert parse_strategies(str(spec)) == [spec]  # a label is valid input


def test_what_cannot_be_read_is_refused_with_the_text() -> None:
    odd = "a,b|a;b:x=1|a(x=1)|a x=1|a,x=1||:x=1|a:x|a:x=|a:=1|a:1,x=2|a:x=1,,2|a:x=1:x=2|a:x=1:|a::"
    for text in odd.split("|"):
        with pytest.raises(ConfigError) as refusal:
            parse_strategies(text)
        assert f"'{text}'" in str(refusal.value)


def test_operating_points_are_kept_once_in_order() -> None:
    config = RunConfig(strategies=("a:x=1,2", "b", "a:x=2,3", "b"))
    assert [str(spec) for spec in config.specs()] == ["a:x=1", "a:x=2", "b", "a:x=3"]


def test_the_demo_needs_nothing_and_names_registered_strategies_with_valid_options() -> None:
    assert RunConfig().strategies == ()
    specs = parse_all(demo_strategies((4, 6, 8, 10, 12, 14, 18, 22, 26)), in_run=True)
    assert specs[0] == StrategySpec("full")
    assert sum(spec.decode is None for spec in specs) == 12
    assert {spec.decode for spec in specs} == {None, "lossless", "lossless+lookup", "lossless+suffix"}
    for spec in specs:
        build_strategy(spec)
    for few in ((), (4,), (4, 6)):
        fixed = [spec for spec in parse_all(demo_strategies(few), in_run=True) if spec.name == "fixed"]
        assert [int(dict(spec.options)["layer"]) for spec in fixed] == list(few)


def test_a_configuration_survives_json() -> None:
    config = RunConfig(strategies=("oracle",), kv="skip", out=Path("here"), limit=None, tdp_w=65.5)
    assert RunConfig.build(config.model_dump(mode="json")) == config


def test_a_configuration_cannot_be_changed_or_extended() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().limit = 3  # type: ignore[misc]
    for make in (RunConfig.build, lambda values: RunConfig(**values)):
        with pytest.raises(ConfigError, match=r"^unknown configuration key 'strategis'\. Did you mean 'strategies'\?$"):
            make({"strategis": ("full",)})
        with pytest.raises(ConfigError, match=r"^limit = -1: input should be greater than or equal to 0\.$"):
            make({"limit": -1})
    with pytest.raises(ConfigError, match=r"unknown configuration key 'batchsize'\. Did you mean 'batch_size'\?"):
        RunConfig.build({"batchsize": 3})


def test_a_refusal_names_key_and_value_in_one_line() -> None:
    for key, value in (
        *(("limit", "few"), ("batch_size", 2.5), ("kv", "nothing"), ("kv", "auto,none"), ("seed", 2**32)),
        *(("tdp_w", 0), ("tdp_w", float("nan")), ("kv", [["none"]]), ("weights_format", [["fp16"]])),
        ("draft_head", "int8/x"),
    ):
        with pytest.raises(ConfigError) as refusal:
            RunConfig.build({key: value})
        message = str(refusal.value)
        assert message.startswith(key)
        assert "\n" not in message
        assert "pydantic" not in message


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"grid": {"model": "a"}}, "grid.model = 'a': input should be a valid list."),
        ({"grid": {"seed": [0]}, "run": 5}, "run = 5: input should be a valid dictionary."),
        ({"step": [{"name": "t"}]}, "command: field required."),
    ],
)
def test_a_value_within_a_table_is_named_by_its_place(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        StudyConfig.build(values)
    assert str(refusal.value) == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tasks": "py150"}, "tasks = 'py150': input should be a valid list, such as ['py150']."),
        ({"tasks": ["py150", 3]}, "tasks[1] = 3: input should be a valid string."),
        ({"tasks": ["py150,javacorpus"]}, "tasks[0] = 'py150,javacorpus': give each task by itself: --task NAME"),
        ({"draft_max": "4,"}, "draft_max = '' is not allowed: "),
        ({"draft_head": "auto/3"}, "unknown head 'auto/3'. Did you mean 'auto'?"),
        ({"kv": ["none", 3]}, "kv = ['none', 3]: unknown KV policy '3'."),
        ({"strategies": [["full"]]}, "list ['full'] is no strategy: give NAME[:option=value], or "),
        ({"draft_head": "int9"}, "unknown head 'int9'. Did you mean 'int8'?"),
    ],
)
def test_a_value_within_a_list_is_named_by_its_place(values: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError) as refusal:
        RunConfig.build(values)
    assert str(refusal.value).startswith(said)


def test_a_toml_file_gives_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('tasks = ["py150", "javacorpus"]\nlimit = 5\nkv = "recompute"\ntdp_w = 15\n')
    config = RunConfig.build(RunConfig.read_toml(file))
    assert (config.tasks, config.limit, config.kv, config.tdp_w) == (("py150", "javacorpus"), 5, "recompute", 15.0)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_shows_its_options_as_it_takes_them(name: str) -> None:
    facts = option_facts(name)
    defaults = {fact.name: fact.default for fact in facts}
    assert effective_options(build_strategy(StrategySpec(name))) == defaults
    given = StrategySpec(name, tuple((key, str(value)) for key, value in defaults.items() if value is not None))
    assert build_strategy(given) == build_strategy(StrategySpec(name))
    for fact in facts:
        assert fact.description
        assert fact.limits or fact.kind.removesuffix(" | None") == "str"
        assert STRATEGIES.load(name).__doc__


NUL, BYTES, DEEP = "a\0b", "caf\udce9", "d/" * 1200 + "x"


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (RunConfig, {"out": Path(NUL)}),
        (RunConfig, {"out": BYTES}),
        (RunConfig, {"source": BYTES}),
        (RunConfig, {"tasks": ("py150", NUL)}),
        (RunConfig, {"strategies": ["full", f"rl:agent={NUL}"]}),
        (RunConfig, {"energy": f"replay:{NUL}"}),
        (ServeConfig, {"host": NUL}),
        (SweepOptions, {"replay": Path(NUL), "strategies": ("full",)}),
        (RunConfig, {"out": DEEP}),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(model: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"NUL character|not valid UTF-8|Give a shorter path") as refused:
        model.build(values)
    assert str(refused.value).startswith(f"{next(iter(values))} = ")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scenario": "sesion"}, "unknown scenario 'sesion'. Did you mean 'session'? Write requests or session"),
        ({"scenario": "requests:window=9"}, "requests has no options"),
        ({"scenario": "session:windows=9"}, "scenario 'session' has no option 'windows'. Did you mean 'window'?"),
        ({"scenario": "session:window=3"}, "session:window=3 is not allowed"),
        ({"scenario": "session:requests=1"}, "session:requests=1 is not allowed"),
        ({"scenario": "session:window=64:step=33"}, "step=33 is more than half of window=64"),
        ({"scenario": "session", "batch_size": 2}, "Omit --batch-size, --arrival-rate and --attribute"),
        ({"scenario": "session", "arrival_rate": 1.0}, "Omit --batch-size, --arrival-rate and --attribute"),
        ({"scenario": "session", "attribute": True}, "Omit --batch-size, --arrival-rate and --attribute"),
        ({"scenario": "session", "prefetch": "drafts"}, "unknown 'drafts'. Did you mean 'draft'?"),
        ({"prefetch": "draft", "decode": "lossless+suffix"}, "--prefetch draft is of editor sessions"),
        ({"scenario": "session", "prefetch": "draft"}, "Add --decode lossless+suffix"),
        ({"scenario": "session", "prefetch": "draft", "decode": "lossless+product"}, "Add --decode lossless+suffix"),
        ({"scenario": "session", "prefetch": "draft", "decode": "lossless+lookup"}, "Add --decode lossless+suffix"),
        ({"scenario": "session", "prefetch": "none,deepen"}, "Add --prompt-exit"),
        ({"scenario": "session", "prefetch": "all"}, "has nothing to do"),
        ({"scenario": "session", "prefetch": "all", "prompt_exit": "layer=2", "keep": "none"}, "Use --keep exact"),
    ],
)
def test_a_scenario_is_refused_in_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError) as refusal:
        RunConfig(**given)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_scenario_says_how_sessions_are_drawn() -> None:
    assert RunConfig().session is None
    assert RunConfig(scenario="session:window=512:requests=3").session == SessionRequest(requests=3, window=512)
    assert SessionRequest().room(None) == (1024, 256)
    assert SessionRequest().room(100) == (100, 25)
    assert SessionRequest(step=400).room(100) == (100, 50)
