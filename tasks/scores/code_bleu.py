"""CodeBLEU from its components, with an honest dataflow.

Source: Ren et al., "CodeBLEU: a Method for Automatic Evaluation of Code Synthesis", 2020, arXiv 2009.10297; the library
codebleu 0.7.0 for n-grams, syntax and the extraction of data flow. Its own final formula is not used, for it takes
``dataflow or 1``: a dataflow of 0, whether nothing matched or nothing was there to match, becomes full marks.

Deviations from the library:

- dataflow is taken over the samples whose reference has any (``dataflow_defined`` is their share) and is ``None``
  when none has; CodeBLEU is then the mean of the other three components, else of all four;
- n-grams are those of :func:`tasks.scores.match.code_tokens`, so that keywords get their weight in ``return;`` too;
- the grammars are the project's own dependencies: Python's 0.21.0, as with a later one syntax and dataflow move (arm64,
  which has no wheel of it, gets 0.25.0), and Java's 0.23.5, which scores as 0.21.0 does;
- the variables an edge comes from are ordered by position. The library orders them by Python's string hash,
  which differs from one process to the next, and its score with it.

Two things beside the grammars move syntax and dataflow a little, and every manifest records both: tree-sitter 0.25
recovers other trees than earlier ones from long broken code (72 of 2,000 contexts with words exchanged), and Python
3.12's tokenizer, by which the library takes comments out of Python, refuses other fragments than 3.11's (76 of 5,210
pairs of lines).

As in the library, an n-gram order longer than a text counts as one miss, so short texts score below 1 on both
n-gram components even when they equal their reference. Completions are fragments: syntax and dataflow are those of
what the parser recovers from them, for text and reference alike.
"""

from __future__ import annotations

import importlib.util
import tokenize
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, TypeAlias

from harness.contracts import Score
from harness.contracts.scores import Pair
from tasks.languages import grammar, parser
from tasks.scores.match import as_source, code_tokens, restored

_PLAIN_WEIGHT = 0.2
"""Weight of a token that is no keyword, as in the library."""

_MALFORMED = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)
"""Raised by the library's extraction on trees with holes; it then says "no data flow", and so do we."""

Edge: TypeAlias = tuple[int, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Components:
    """The components of CodeBLEU over a corpus, each in 0…1.

    Attributes:
        ngram: BLEU-4 with counts pooled.
        weighted_ngram: the same with keywords weighing five times as much among single tokens.
        syntax: share of the references' subtrees found in the texts.
        dataflow: share of the references' data-flow edges found in the texts; ``None`` when there are none.
        dataflow_defined: share of samples whose reference has any edge.
    """

    ngram: float
    weighted_ngram: float
    syntax: float
    dataflow: float | None
    dataflow_defined: float

    @property
    def score(self) -> float:
        """CodeBLEU: the mean of the components that are defined."""
        parts = [self.ngram, self.weighted_ngram, self.syntax]
        return fmean(parts if self.dataflow is None else [*parts, self.dataflow])


class _OfCodeBleu(Score):
    """A number of CodeBLEU's, by its name in :class:`Components`; each is computed once with all the others."""

    part: ClassVar[str]
    decides = False
    sections: ClassVar = {}

    def unavailable(self) -> str | None:
        """Return whether the library is absent.

        It is no dependency of the harness: its metadata demands a tree-sitter that recent Pythons have no wheel for, so
        it is installed without its dependencies, which no package can ask for.
        """
        if importlib.util.find_spec("codebleu") is not None:
            return None
        return "the package codebleu is not installed (pip install --no-deps codebleu==0.7.0)"

    def corpus(self, pairs: Sequence[Pair], language: str) -> float | None:
        found = _components(tuple(pairs), language)
        value: float | None = None if found is None else getattr(found, self.part)
        return value


class CodeBleu(_OfCodeBleu):
    """N-grams, keywords, syntax and data flow together (CodeBLEU)."""

    title = "CodeBLEU"
    part = "score"
    decides = True
    sections: ClassVar = {"Scores": 2, "figures": 4, "leaderboard": 2.4}


class Syntax(_OfCodeBleu):
    """Matching syntax subtrees, a component of CodeBLEU."""

    title = "syntax"
    part = "syntax"


class Dataflow(_OfCodeBleu):
    """Matching data-flow edges, a component of CodeBLEU."""

    title = "data flow"
    part = "dataflow"


class DataflowDefined(_OfCodeBleu):
    """Share of samples whose reference has data flow."""

    title = "flow defined"
    part = "dataflow_defined"


@lru_cache(maxsize=1)
def _components(pairs: tuple[Pair, ...], language: str) -> Components | None:
    return components(restored(pairs), language)


def components(pairs: Sequence[tuple[str, str]], language: str) -> Components | None:
    """Return the components over (text, reference) pairs; ``None`` for a language the library does not know."""
    from codebleu import bleu, syntax_match, weighted_ngram_match

    if language not in syntax_match.dfg_function:
        return None
    sources = [(as_source(text).strip(), as_source(reference).strip()) for text, reference in pairs]
    texts = [code_tokens(text) for text, _ in sources]
    references = [code_tokens(reference) for _, reference in sources]
    keywords = _keywords(language)
    weighted = [
        [[reference, {token: 1 if token in keywords else _PLAIN_WEIGHT for token in reference}]]
        for reference in references
    ]
    flows = [(Counter(data_flow(text, language)), Counter(data_flow(wanted, language))) for text, wanted in sources]
    edges = sum(wanted.total() for _, wanted in flows)
    return Components(
        ngram=float(bleu.corpus_bleu([[reference] for reference in references], texts)),
        weighted_ngram=float(weighted_ngram_match.corpus_bleu(weighted, texts)),
        syntax=syntax_match.corpus_syntax_match(
            [[reference] for _, reference in sources], [text for text, _ in sources], language, grammar(language)
        ),
        dataflow=sum((found & wanted).total() for found, wanted in flows) / edges if edges else None,
        dataflow_defined=sum(bool(wanted) for _, wanted in flows) / len(flows),
    )


@lru_cache(maxsize=4096)  # every operating point has the same references
def data_flow(code: str, language: str) -> list[Edge]:
    """Return the data-flow edges of code: (variable, relation, variables it comes from).

    Variables are numbered in the order they appear, so that renaming them changes nothing.
    """
    from codebleu.dataflow_match import dfg_function

    root = parser(language).parse(_without_comments(code, language).encode()).root_node
    names, index_to_code = [], {}
    for position, leaf in enumerate(_leaves(root)):
        names.append(leaf.text.decode())
        index_to_code[leaf.start_point, leaf.end_point] = (position, names[-1])
    try:
        found, _ = dfg_function[language](root, index_to_code, {})
    except _MALFORMED:
        return []
    relations: dict[int, str] = {}
    origins: dict[int, set[int]] = {}
    for _, position, relation, _, from_positions in found:
        relations.setdefault(position, relation)
        origins.setdefault(position, set()).update(from_positions)
    connected = {position for position, sources in origins.items() if sources}.union(*origins.values())
    numbers: dict[str, int] = {}
    edges: list[Edge] = []
    for position in sorted(connected & origins.keys()):
        sources = dict.fromkeys(names[source] for source in sorted(origins[position]))
        numbered = tuple(numbers.setdefault(name, len(numbers)) for name in sources)
        edges.append((numbers.setdefault(names[position], len(numbers)), relations[position], numbered))
    return edges


def _without_comments(code: str, language: str) -> str:
    from codebleu.parser import remove_comments_and_docstrings

    try:
        return str(remove_comments_and_docstrings(code, language))
    except (SyntaxError, SystemError, UnicodeError, tokenize.TokenError):
        # What Python's own tokenizer refuses, or fails on (that of 3.12 and newer at null bytes), stays as it is.
        return code


def _leaves(root: Any) -> list[Any]:
    """Return the nodes the library counts as tokens: leaves and whole string literals, comments excepted."""
    leaves, stack = [], [root]
    while stack:
        node = stack.pop()
        whole = not node.children or node.type in ("string_literal", "string", "character_literal")
        if whole and node.type != "comment":
            leaves.append(node)
        else:
            stack.extend(reversed(node.children))
    return leaves


@lru_cache(maxsize=8)
def _keywords(language: str) -> frozenset[str]:
    import codebleu

    file = Path(codebleu.__file__).parent / "keywords" / f"{language}.txt"
    return frozenset(line.strip() for line in file.read_text(encoding="utf-8").splitlines())
