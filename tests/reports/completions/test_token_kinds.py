"""Kinds of generated tokens, worked out by eye."""

from __future__ import annotations

import pytest

from reports.completions.token_kinds import KINDS, kinds_of

SHORT = {"i": "identifier", "k": "keyword", "o": "operator", "n": "number", "s": "string", "c": "comment",
         "w": "white space", "-": None}  # fmt: skip


@pytest.mark.parametrize(
    ("language", "tokens", "kinds"),
    [
        ("python", ["def", " f", "oo", "(", "x", "=", "1", ".5", "):", "\n   ", " return", ' "a', 'b"', "  # hi"],
         "kiioionnowkssc"),
        ("python", ["x", " =", " r'", "for", "'", " for", " y", " 1e", "-5", " 0x", "FF"], "iossskinnnn"),
        ("python", ["'''a", "\nif", " b'''", " if", " None"], "ssskk"),
        ("python", ["'unfinished", "\n", "while"], "swk"),  # a string ends with its line
        ("python", ["x = <STR_LIT>", " <EOL>", " <", "EOL", ">", " <NUM_LIT:1>", " < EOL >", " a < b"], "iwwwwnwi"),
        ("python", ["caf", "", "é", " naïve"], "i-ii"),  # a token that ends inside a character adds nothing
        ("python", ["print", " async", " x.", "y", " !=", " ->", " @"], "ikiiooo"),
        ("java", ["public", " int", " $x", " =", " 0L", ";", " // for", " all", "\n", "/* for", "\n*/", " true",
                  " None"],
         "kkionoccwcck".ljust(12) + "i"),
        ("java", ["'", "a", "'", ' "b\\"', 'c"', " instanceof", " List", "<", "String", ">"], "ssssskioio"),
    ],
)  # fmt: skip
def test_kinds_by_eye(language: str, tokens: list[str], kinds: str) -> None:
    assert kinds_of(tokens, language) == [SHORT[kind] for kind in kinds]


def test_every_token_of_real_code_has_a_kind() -> None:
    from pathlib import Path

    text = Path(__file__).read_text(encoding="utf-8")
    tokens = [text[start : start + 3] for start in range(0, len(text), 3)]
    kinds = kinds_of(tokens, "python")
    assert len(kinds) == len(tokens)
    assert set(kinds) <= set(KINDS)
    assert {"identifier", "keyword", "operator", "number", "string", "comment", "white space"} == set(kinds)


def test_another_language_has_no_kinds() -> None:
    assert kinds_of(["fn", " x"], "rust") == [None, None]
    assert kinds_of([], "python") == []
