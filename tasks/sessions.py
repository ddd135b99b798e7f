"""Editor sessions: requests for completions while a document is typed, by a model of typing or as they were recorded.

The model is seeded and knows nothing of what completions say, so that every way of working gets the same requests: the
document's own text is typed, key by key, whether a completion would have spared the keys or not. Its prompts are what
stands before the cursor; code behind the cursor is never shown.

A session begins with a fifth of the document written. From there text is typed forwards, to a place where the user
waits for a completion of the line, and on. Places are of three kinds: behind a token inside a line, behind an opening
bracket, and where a line begins. There the cursor stands behind the newline and the indentation that an editor sets;
the last space of it is left to the completion, since tokenizers put it into the token that follows, and a model that is
shown it alone ends the line. (GitHub Copilot's extension leaves all of it out: ``trimLastLine``.) A place counts where
:func:`tasks.protocols.codexglue_line.cut_line` could cut: in a line of code, with a name, number or string in its rest.

Now and then the cursor jumps: back to what is written, for one request, or ahead over text that was not typed. Now and
then a wrong name is typed and deleted. Between two places an editor asks too, behind tokens where the next key takes
longer than its patience; that key overtakes the request, which nobody sees.

Numbers without a source are choices, in favour of a session that can be decoded in a minute. It promises no more than
that prompts are as much alike, and idle moments as long, as in an editor; who studies users gives recorded traces.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from harness.contracts import BadRow, Document, Overtaken, Sample, SessionRequest, TaskRequest, Tokenizer
from tasks.languages import MIN_TOKENS, Language
from tasks.protocols import too_long
from tasks.rows import LineRow, TracedRequest, TraceRow

Kind: TypeAlias = Literal["inside", "bracket", "line"]

ORIGINS: Mapping[type, str] = {
    Document: "document typed by the model of typing",
    LineRow: "input and gt joined, typed by the model of typing",
    TraceRow: "recorded trace",
}
"""Row type → in words, how a session is made of it."""

START = 0.2
"""Share of a document that is written when its session begins."""
LONGEST_DOCUMENT = 100_000
"""Characters of a document that are typed at most; each of its prompts is tokenised from the beginning."""
KINDS: Mapping[Kind, float] = {"inside": 0.5, "bracket": 0.15, "line": 0.35}
"""How often a place is of each kind; another one where there is none further on."""
BETWEEN = 40
"""Characters typed from one place to the next, on average (exponential): a line and a half of the embedded files."""
BACK, AHEAD = 0.1, 0.05
"""Chances that the cursor jumps back or ahead instead."""
LEAP = 800
"""Characters of a jump ahead, on average (exponential): thirty lines."""
CORRECTION = 0.05
"""Chance that a token is typed wrong before it is typed right."""

GAP_S, GAP_SPREAD = 0.23, 0.6
"""Mean seconds from key to key, and standard deviation of their logarithm.

The mean is 52 words per minute (Dhakal et al., "Observations on Typing from 136 Million Keystrokes", CHI 2018; good and
average typists .12 to .28 s: Card, Moran, Newell, CACM 23(7), 1980). A log-normal distribution fits such gaps well
(González et al., Heliyon 7(11), 2021); its spread is a choice: 95 % of gaps lie between .06 and .62 s.
"""
DEBOUNCE_S = 0.075
"""Seconds without a key after which an editor asks: GitHub Copilot's default, which varies it from .025 to .275."""
JUMP_S = 1.35 + 0.4 + 1.1 + 0.2 + 0.4
"""Seconds of a jump: to prepare, reach for the mouse, point, click and come back (Card, Moran, Newell, as above)."""
MOST_OVERTAKEN = 3
"""Overtaken requests between two places at most, drawn from all: behind nearly every token there is one."""

_WORD = re.compile(r"\w")
_NAME = re.compile(r"[^\W\d]\w+")


@dataclass(frozen=True, slots=True)
class _Place:
    """A cursor, and the rest of its line."""

    cursor: int
    rest: str


class _Text:
    """A document as a typist sees it.

    Attributes:
        text: of the document, at most :data:`LONGEST_DOCUMENT` characters.
        ends: where tokens of code end, ascending.
        names: that occur in it, sorted.
    """

    def __init__(self, text: str, language: Language) -> None:
        if len(text) > LONGEST_DOCUMENT:  # in whole lines, where it has some
            text = text[: text.rfind("\n", 0, LONGEST_DOCUMENT) + 1] or text[:LONGEST_DOCUMENT]
        self.text, self._language = text, language
        self.names = sorted(set(_NAME.findall(self.text)))
        self.ends: list[int] = []
        self._cursors: dict[Kind, list[int]] = {kind: [] for kind in get_args(Kind)}
        for line in language.code_lines(self.text):
            self.ends += [token.end for token in line]
            if len(line) < MIN_TOKENS:
                continue
            begin = line[0].start
            begin -= self.text[max(0, begin - 1) : begin] in (" ", "\t")
            self._cursors["line"] += [begin] if begin else []
            for token in line[:-1]:
                kind: Kind = "bracket" if self.text[token.start : token.end] in "([{" else "inside"
                self._cursors[kind].append(token.end)

    def place(self, kind: Kind, start: int, stop: int) -> _Place | None:
        """Return the first place of a kind between two offsets."""
        cursors = self._cursors[kind]
        for cursor in cursors[bisect_left(cursors, start) : bisect_left(cursors, stop)]:
            rest = self.text[cursor : self._language.line_end(self.text, cursor)]
            if _WORD.search(rest):
                return _Place(cursor, rest)
        return None


class _Typist:
    """Types a document.

    Attributes:
        made: requests so far, in order.
    """

    def __init__(self, text: _Text, chance: random.Random) -> None:
        self._text, self._chance = text, chance
        self._idle = 0.0  # seconds since the last request was answered or overtaken
        self.made: list[TracedRequest] = []

    def gap(self) -> float:
        """Return the seconds from one key to the next."""
        return self._chance.lognormvariate(math.log(GAP_S) - GAP_SPREAD**2 / 2, GAP_SPREAD)

    def jump(self) -> None:
        self._idle += JUMP_S

    def type(self, start: int, stop: int) -> None:
        """Type the text between two offsets; an editor asks behind some of its tokens."""
        text, ends = self._text.text, self._text.ends
        between = ends[bisect_right(ends, start) : bisect_left(ends, stop)]
        wrong = self._wrong(between)
        gaps = {place: self.gap() for place in range(start + 1, stop) if not self._is_indentation(place)}
        asked = [place for place in between if gaps.get(place, 0) > DEBOUNCE_S]
        asked = sorted(self._chance.sample(asked, min(len(asked), MOST_OVERTAKEN - len(wrong))))
        for place, gap in gaps.items():
            if place in asked:
                self._overtaken(text[:place], gap - DEBOUNCE_S)
            else:
                self._idle += gap
            if place in wrong:
                keys = sum(self.gap() for _ in wrong[place])
                self._idle += keys
                self._overtaken(text[:place] + wrong[place], self.gap())
                self._idle += keys
        self._idle += self.gap() if stop > start else 0.0

    def wait(self, place: _Place) -> None:
        """Wait for a completion; nothing was typed before the first."""
        idle = self._idle + DEBOUNCE_S if self.made else 0.0
        self.made.append(TracedRequest(self._text.text[: place.cursor], place.rest, None, idle))
        self._idle = 0.0

    def _overtaken(self, prompt: str, after_s: float) -> None:
        self.made.append(TracedRequest(prompt, "", after_s, self._idle + DEBOUNCE_S))
        self._idle = 0.0

    def _wrong(self, places: Sequence[int]) -> dict[int, str]:
        """Return a place behind which a name is typed that does not stand there, and that name; mostly nothing."""
        mistaken = [place for place in places if self._chance.random() < CORRECTION]
        if not mistaken:
            return {}
        place = self._chance.choice(mistaken)
        found = re.compile(" *").match(self._text.text, place)
        space = found[0] if found else ""
        names = [name for name in self._text.names if not self._text.text.startswith(space + name, place)]
        return {place: space + self._chance.choice(names)} if names else {}

    def _is_indentation(self, place: int) -> bool:
        """Return whether an editor sets the character before an offset: white space at the beginning of a line."""
        text = self._text.text
        return text[place - 1] in " \t" and not text[text.rfind("\n", 0, place) + 1 : place].strip(" \t")


def typed(text: str, language: Language, requests: int, chance: random.Random) -> tuple[TracedRequest, ...]:
    """Return the requests of a session in which a document is typed, by the model of typing.

    Args:
        text: of the document.
        language: of the code.
        requests: waited for, at most; where the document ends before, there are fewer. Overtaken ones are not counted.
        chance: decides everything.
    """
    document = _Text(text, language)
    typist = _Typist(document, chance)
    front, away = int(START * len(document.text)), False  # what is written; whether the cursor is elsewhere
    for number in range(requests):
        kinds = chance.choices(list(KINDS), list(KINDS.values())) + list(KINDS)
        draw = chance.random() if number else 1.0
        if draw < BACK:
            start = chance.randrange(front)
            back = next(filter(None, (document.place(kind, start, front) for kind in kinds)), None)
            if back is not None:
                typist.jump()
                typist.wait(back)
                away = True
                continue
        leaps = BACK <= draw < BACK + AHEAD
        start = front + (1 + int(chance.expovariate(1 / (LEAP if leaps else BETWEEN))) if number else 0)
        ahead = next(filter(None, (document.place(kind, start, len(document.text)) for kind in kinds)), None)
        if ahead is None:
            break
        if leaps or away:
            typist.jump()
        if number and not leaps:
            typist.type(front, ahead.cursor)
        typist.wait(ahead)
        front, away = ahead.cursor, False
    return tuple(typist.made)


def session_samples(
    trace: Sequence[TracedRequest],
    row: Document | LineRow | TraceRow,
    language: Language,
    tokenizer: Tokenizer,
    request: TaskRequest,
    session: SessionRequest,
    new: int,
) -> tuple[Sample, ...] | BadRow:
    """Return what is waited for in a session, with what was overtaken before it.

    A prompt is a window of the tokens before the cursor, counted from the beginning of its text: where they are more
    than the window holds, as many steps are left out as are needed. So successive prompts begin alike.

    Args:
        trace: what the editor asked.
        row: where it comes from.
        language: of the code, which says where a reference ends.
        tokenizer: of the model.
        request: carries the model's positions.
        session: windows and steps.
        new: completion limit, tokens.
    """
    if bad := too_long(row, 1, new, request):
        return bad
    window, step = session.room(None if request.max_positions is None else request.max_positions - new)

    def cut(prompt: str) -> tuple[int, ...]:
        token_ids = tokenizer.encode(prompt)
        return tuple(token_ids[step * math.ceil(max(0, len(token_ids) - window) / step) :])

    samples: list[Sample] = []
    overtaken: list[Overtaken] = []
    typing_s = 0.0
    for number, asked in enumerate(trace):
        typing_s += asked.typing_s + (asked.after_s or 0.0)
        prompt_ids = cut(asked.prompt)
        if not prompt_ids:
            return BadRow(row.sample_id, f"row {row.number}: the tokenizer makes no token of requests[{number}].prompt")
        if asked.after_s is not None:
            overtaken.append(Overtaken(prompt_ids, asked.after_s, asked.typing_s))
            continue
        rest = asked.reference[: language.line_end(asked.reference)]
        if not rest.strip():
            return BadRow(row.sample_id, f"row {row.number}: the line of requests[{number}].reference is empty")
        samples.append(
            Sample(
                f"{row.sample_id}#{len(samples) + 1}",
                prompt_ids,
                rest.strip(),
                tuple(tokenizer.encode(rest.rstrip())),
                new,
                session=row.sample_id,
                overtaken_requests=tuple(overtaken),
                typing_s=typing_s,
            )
        )
        overtaken, typing_s = [], 0.0
    return tuple(samples)
