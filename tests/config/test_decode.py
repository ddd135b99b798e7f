"""How to decode and where to stop: as written, and as built."""

from __future__ import annotations

from typing import Any

import pytest

from harness.config import RunConfig, parse_all
from harness.config.decode import DRAFT_MAX, LOSSY, DecodeSpec, build_decode, parse_decode
from harness.config.model import Named
from harness.config.rules import build_stop
from harness.contracts import Lossless
from harness.decoding.drafts.expected import Expected
from harness.decoding.drafts.lookup import Lookup
from harness.decoding.drafts.product import Product
from harness.errors import ConfigError, HarnessError, OptionError, UnknownNameError
from harness.serving.config import ServeConfig


def lossless(*sources: Named) -> DecodeSpec:
    return DecodeSpec(True, sources)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("lossy", LOSSY),
        ("lossless", DecodeSpec(True)),
        ("lossless+lookup", lossless(Named("lookup"))),
        ("lossless+lookup:n=4:k=2", lossless(Named("lookup", (("n", "4"), ("k", "2"))))),
        (" lossless + lookup : n = 4 ", lossless(Named("lookup", (("n", "4"),)))),
        ("lossless+any:path=a=b", lossless(Named("any", (("path", "a=b"),)))),
        ("lossless+lookup+expected", lossless(Named("lookup"), Named("expected"))),
        (
            "lossless+lookup:n=4 + product:bound=0.3",
            lossless(Named("lookup", (("n", "4"),)), Named("product", (("bound", "0.3"),))),
        ),
    ],
)
def test_what_is_written_is_read_and_printed_alike(text: str, spec: DecodeSpec) -> None:
    assert parse_decode(text) == spec
    assert parse_decode(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read. Write lossy, lossless, or"),
        ("losless", "cannot be read. Did you mean 'lossless'? Write"),
        ("lossy+lookup", "needs to be verified. Write lossless+lookup."),
        ("lossless+", "names no draft source. Write"),
        ("lossless+lookup+", "names no draft source. Write"),
        ("lossy+lookup+product", "Write lossless+lookup+product."),
        ("lossless+lookup+product:bound", "cannot be read at 'bound'"),
        ("lossless+product:bound=1:bound=0", "gives option 'bound' twice"),
        ("lossless+lookup:3", "cannot be read at '3'"),
        ("lossless+lookup:n=", "cannot be read at 'n='"),
        ("lossless:n=3", "cannot be read. Did you mean 'lossless'?"),
    ],
)
def test_what_cannot_be_read_is_quoted(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_decode(text)
    assert f"decode = '{text}'" in str(refusal.value)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_options_become_those_of_the_source() -> None:
    assert build_decode(LOSSY) is None
    assert build_decode(LOSSY, 4) is None
    assert build_decode(parse_decode("lossless")) == Lossless(DRAFT_MAX, ()) == Lossless()
    assert build_decode(parse_decode("lossless+lookup:n=4:k=2"), 5) == Lossless(5, (Lookup(n=4, k=2),))
    several = build_decode(parse_decode("lossless+product:bound=0.5+lookup:n=4+expected"))
    assert several == Lossless(sources=(Product(0.5), Lookup(n=4), Expected()))


@pytest.mark.parametrize(
    ("text", "most", "error", "reason"),
    [
        ("lossless+lokup", 16, UnknownNameError, r"unknown draft source 'lokup'\. Did you mean 'lookup'\?"),
        ("lossless+lookup:m=3", 16, OptionError, r"draft source 'lookup' has no option 'm'\..* Options: n, min_n, k\."),
        ("lossless+lookup:n=0", 16, OptionError, r"lookup:n=0 is not allowed: .*greater .* See `harness show lookup`"),
        ("lossless+lookup:n=x", 16, OptionError, r"lookup:n=x is not allowed: .*integer"),
        ("lossless", 0, OptionError, r"draft_max = 0 is not allowed: .*greater than or equal to 1"),
        (
            "lossless+product:bound=2",
            16,
            OptionError,
            r"product:bound=2 is not allowed: .*less .* See `harness show prod",
        ),
        ("lossless+expected:a=1", 16, OptionError, r"draft source 'expected' has no option 'a'\. It has none\."),
    ],
)
def test_refusals_name_option_value_and_range(text: str, most: int, error: type[HarnessError], reason: str) -> None:
    with pytest.raises(error, match=reason):
        build_decode(parse_decode(text), most)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("fixed:layer=4", [("fixed:layer=4", None)]),
        ("fixed:layer=4@lossless", [("fixed:layer=4", "lossless")]),
        ("fixed:layer=4,6@lossless", [("fixed:layer=4", "lossless"), ("fixed:layer=6", "lossless")]),
        ("full@lossless+lookup:n=4:k=2", [("full", "lossless+lookup:n=4:k=2")]),
        (" fixed:layer=4@lossy ", [("fixed:layer=4", "lossy")]),
        ("classifier:path=a@b", [("classifier:path=a@b", None)]),  # an option may hold an @ of its own
        ("classifier:path=a@b@lossless", [("classifier:path=a@b", "lossless")]),
    ],
)
def test_a_run_s_strategy_says_behind_an_at_how_it_decodes(written: str, found: list[tuple[str, str | None]]) -> None:
    assert [(str(spec), spec.decode) for spec in parse_all([written], in_run=True)] == found


@pytest.mark.parametrize(
    ("written", "decodes"),
    [
        ("lossy", ("lossy",)),
        ("lossy,lossless", ("lossy", "lossless")),
        ("lossless, lossless , lossy", ("lossless", "lossy")),
        ("lossless+lookup:n=4,k=2,lossless", ("lossless+lookup:n=4:k=2", "lossless")),  # a comma before an option
        (["lossy", "lossless+lookup"], ("lossy", "lossless+lookup")),
        (["lossless"], ("lossless",)),
    ],
)
def test_decode_takes_one_way_or_several(written: Any, decodes: tuple[str, ...]) -> None:
    config = RunConfig.build({"decode": written})
    assert config.decodes == decodes
    assert RunConfig.build(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("written", "longest"), [(4, (4,)), ("4", (4,)), ("4, 16,4", (4, 16)), ([8, 2], (8, 2)), ((8,), (8,))]
)
def test_a_run_reads_the_longest_drafts_to_compare(written: Any, longest: tuple[int, ...]) -> None:
    config = RunConfig.build({"draft_max": written})
    assert config.longest_drafts == longest
    assert RunConfig.build(config.model_dump(mode="json")) == config


def test_a_run_refuses_how_a_strategy_is_to_decode(refused: Any) -> None:
    said = refused("--strategy", "fixed:layer=4@losless")
    assert "decode = 'losless' cannot be read. Did you mean 'lossless'?" in said
    assert "lookup:n=0 is not allowed" in refused("--strategy", "fixed:layer=4@lossless+lookup:n=0")


def test_where_a_strategy_is_not_a_run_s_it_cannot_say_how_to_decode() -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_all(["fixed:layer=4@lossless"])
    assert str(refusal.value) == (
        "--strategy 'fixed:layer=4@lossless': '@lossless' can be said of a run's strategies only (`harness run`). "
        "Leave it out here."
    )


@pytest.mark.parametrize(
    ("written", "stops"),
    [
        ("none", ("none",)),
        ("none, statement,none", ("none", "statement")),
        (["excess : threshold = 0.5", "block"], ("excess:threshold=0.5", "block")),
    ],
)
def test_a_comma_list_compares(written: Any, stops: tuple[str, ...]) -> None:
    config = RunConfig.build({"stop": written})
    assert config.stops == stops
    assert RunConfig.build(config.model_dump(mode="json")).stops == stops


def test_a_rule_is_built_with_its_options() -> None:
    built = build_stop("excess:threshold=0.25")
    assert built is not None
    assert (built.name, built.rule.threshold, built.written) == ("excess", 0.25, "excess:threshold=0.25")  # type: ignore[attr-defined]
    assert build_stop("none") is None


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("statment", r"unknown stop rule 'statment'.*Did you mean 'statement'"),
        (":", r"names no stop rule"),
        ("excess:0.5", r"cannot be read at '0\.5'"),
        ("excess:threshold=2", r"excess:threshold=2 is not allowed"),
        ("block:language=java:language=java", r"gives option 'language' twice"),
        ("block:tongue=java", r"has no option 'tongue'"),
        ("statement:language=kotlin", r"statement:language=kotlin is not allowed"),
        ("none:language=java", r"unknown stop rule 'none'"),
    ],
)
def test_what_is_no_rule_is_refused(written: str, said: str) -> None:
    for kind in (RunConfig, ServeConfig):
        with pytest.raises(HarnessError, match=said) as refused:
            kind.build({"stop": written})
        assert "\n" not in str(refused.value)
