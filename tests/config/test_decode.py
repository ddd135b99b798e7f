"""How to decode, as written, and as built."""

from __future__ import annotations

import pytest

from harness.config.decode import DRAFT_MAX, LOSSY, DecodeSpec, DraftSpec, build_decode, parse_decode
from harness.contracts import Lossless
from harness.decoding.drafts.expected import Expected
from harness.decoding.drafts.lookup import Lookup
from harness.decoding.drafts.product import Product
from harness.errors import ConfigError, HarnessError, OptionError, UnknownNameError


def lossless(*sources: DraftSpec) -> DecodeSpec:
    return DecodeSpec(True, sources)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("lossy", LOSSY),
        ("lossless", DecodeSpec(True)),
        ("lossless+lookup", lossless(DraftSpec("lookup"))),
        ("lossless+lookup:n=4:k=2", lossless(DraftSpec("lookup", (("n", "4"), ("k", "2"))))),
        (" lossless + lookup : n = 4 ", lossless(DraftSpec("lookup", (("n", "4"),)))),
        ("lossless+any:path=a=b", lossless(DraftSpec("any", (("path", "a=b"),)))),
        ("lossless+lookup+expected", lossless(DraftSpec("lookup"), DraftSpec("expected"))),
        (
            "lossless+lookup:n=4 + product:bound=0.3",
            lossless(DraftSpec("lookup", (("n", "4"),)), DraftSpec("product", (("bound", "0.3"),))),
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
        ("lookup", "cannot be read. Write lossy"),
        ("lossy+lookup", "needs to be verified. Write lossless+lookup."),
        ("lossless+", "names no draft source. Write"),
        ("lossless+:n=3", "names no draft source"),
        ("lossless+lookup+", "names no draft source. Write"),
        ("lossless++lookup", "names no draft source"),
        ("lossy+lookup+product", "Write lossless+lookup+product."),
        ("lossless+lookup+product:bound", "cannot be read at 'bound'"),
        ("lossless+product:bound=1:bound=0", "gives option 'bound' twice"),
        ("lossless+lookup:3", "cannot be read at '3'"),
        ("lossless+lookup:n=", "cannot be read at 'n='"),
        ("lossless+lookup:", "cannot be read at ''"),
        ("lossless+lookup:n=3:n=4", "gives option 'n' twice"),
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
    ("text", "proposes"),
    [("lossless", False), ("lossless+product", False), ("lossless+expected+lookup", True), ("lossy", False)],
)
def test_what_only_ends_drafts_drafts_nothing(text: str, proposes: bool) -> None:
    assert parse_decode(text).proposes is proposes


@pytest.mark.parametrize(
    ("text", "most", "error", "reason"),
    [
        ("lossless+lokup", 16, UnknownNameError, r"unknown draft source 'lokup'\. Did you mean 'lookup'\?"),
        ("lossless+lookup:m=3", 16, OptionError, r"draft source 'lookup' has no option 'm'\..* Options: n, least, k\."),
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
