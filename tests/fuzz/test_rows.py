"""A row that is no sample is counted, whatever is wrong with it, and every good one beside it is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import strategies as st

from tests.fuzz.cases import Ran, Warm
from tests.fuzz.hostile import SPECIAL, TEXTS, VALUES, Draw, as_json, changed_bytes, changed_json, make_special

Fuzz = Callable[..., None]
Fresh = Callable[[], AbstractContextManager[Path]]

CODE = "def load(items, limit):\n    for item in items:\n        total = item.size + limit\n    return total\n" * 6
PROTOCOLS = ("green-code", "codexglue-line")
LONG = 4000
"""Bytes of a prompt, well within the positions that cases are drawn for."""

BAD = [
    *(b"{", b"nothing", b"[1]", b"null", b'"text"', b"{}", b"[" * 50_000, b"\x80\xff\x00", b'{"id": "n", "code": "x"'),
    *(b'{"id": "\\ud800", "code": "x = 1"}', b'{"id": "s", "code": "\\udfff"}', b'{"id": "caf\xe9", "code": "x = 1"}'),
    *(b'{"id": 1.5, "code": "x"}', b'{"id": true, "code": "x"}', b'{"id": null, "code": "x"}'),
    *(b'{"id": "", "code": "x"}', b'{"id": ["a"], "code": "x"}', b'{"id": {}, "code": "x"}'),
    *(b'{"id": "n", "code": 7}', b'{"id": "n", "code": {"a": 1}}', b'{"id": "n", "code": ""}'),
    *(b'{"id": "n", "code": ["a", 1]}', b'{"id": "n", "code": ["\\ud800"]}', b'{"id": "n", "cod": "x"}'),
    *(b'{"id": "n", "input": "x", "gt": "\\ud800"}', b'{"id": "n", "input": 1, "gt": "x"}'),
    *(b'{"id": "n", "input": "x"}', b'{"id": NaN, "code": "x = 1"}', b'{"id": 1e400, "code": "x = 1"}'),
    b'{"id": ' + b"9" * 5000 + b', "code": "x"}',
]
"""Lines that no protocol can make a sample of."""


def good(number: int, protocol: str) -> dict[str, Any]:
    """Return a row of which there is nothing to complain."""
    code = CODE.replace("load", f"load_{number}")
    if protocol == "codexglue-line":
        return {"id": f"good-{number}", "input": code, "gt": "total"}
    return {"id": f"good-{number}", "code": code}


@dataclass(frozen=True)
class Drawn:
    """What the door makes of a source.

    Attributes:
        samples: their ids.
        bad: (id, reason) of bad rows.
        detail: of the source.
    """

    samples: list[str]
    bad: list[tuple[str, str]]
    detail: dict[str, str]

    @classmethod
    def of(cls, ran: Ran) -> Drawn:
        found = json.loads(ran.out)
        return cls(found["samples"], [tuple(row) for row in found["bad"]], found["detail"])

    def check(self, wanted: Sequence[str], hopeless: Sequence[int], rows: int) -> None:
        """Hold against what was written.

        Args:
            wanted: ids of rows that must be drawn.
            hopeless: numbers of rows that must be counted as bad.
            rows: of the source.
        """
        lost = set(wanted) - set(self.samples)
        assert not lost, f"loses {lost}"
        assert len(self.samples) == len(set(self.samples)), "draws an id twice"
        reasons = [reason for _, reason in self.bad]
        for number in hopeless:
            assert any(reason.startswith(f"row {number}: ") for reason in reasons), f"does not count row {number}"
        assert int(self.detail["rows"]) == rows
        skipped = sum(int(part.split(" × ")[0]) for part in self.detail.get("skipped", "").split("; ") if part)
        assert len(self.samples) + len(self.bad) + skipped == rows, "loses count of rows"


def judged(ran: Ran, done: str, *expectation: Any) -> Ran:
    try:
        refused = ran.refused
        if not refused:
            Drawn.of(ran).check(*expectation)
        else:
            assert not expectation[0], f"refuses a source with good rows\n{ran}"
    except AssertionError as error:
        raise AssertionError(f"{done}\n{error}\n{ran}") from None
    return ran


def test_no_line_ends_a_run(fuzz: Fuzz, warm: Warm, fresh: Fresh) -> None:
    def case(draw: Draw) -> Ran:
        protocol = draw(st.sampled_from(PROTOCOLS))
        lines: list[bytes] = []
        wanted, hopeless = [], []
        for number in range(1, draw(st.integers(1, 5)) + 1):
            kind = draw(st.sampled_from(["good", "bad", "any", "any", "changed"]))
            if kind == "good":
                wanted.append(f"good-{number}")
                lines.append(json.dumps(good(number, protocol)).encode())
            elif kind == "bad":
                hopeless.append(number)
                lines.append(draw(st.sampled_from(BAD)))
            elif kind == "changed":
                changed, _ = changed_json(draw, good(number, protocol) | {"id": f"changed-{number}"})
                lines.append(as_json(changed).encode())
            else:
                fields = st.dictionaries(st.sampled_from(["id", "code", "input", "gt"]), VALUES)
                lines.append(as_json(draw(fields) | {"x": draw(TEXTS)}).encode())
        ends = draw(st.sampled_from([b"\n", b"\n", b"\n", b"\r\n"]))
        with fresh() as place:
            (place / "rows.jsonl").write_bytes(ends.join([*lines, b""]))
            ran = warm.run(protocol, "rows.jsonl", cwd=place, door="draw")
            return judged(ran, f"{protocol}: {[line[:80] for line in lines]}", wanted, hopeless, len(lines))

    fuzz("rows: JSON lines", case, cases=60)


@pytest.mark.slow
def test_no_file_of_rows_hangs_or_crashes(fuzz: Fuzz, warm: Warm, fresh: Fresh) -> None:
    """Damaged files as wholes: bytes changed anywhere, and what is no file."""

    def case(draw: Draw) -> Ran:
        protocol = draw(st.sampled_from(PROTOCOLS))
        suffix = draw(st.sampled_from(["jsonl", "parquet"]))
        rows = [good(number, protocol) for number in range(3)]
        with fresh() as place:
            file = place / f"rows.{suffix}"
            if draw(st.integers(0, 4)) == 0:
                said = draw(st.sampled_from(SPECIAL))
                make_special(file, said)
            else:
                if suffix == "parquet":
                    pandas.DataFrame(rows).to_parquet(file)
                else:
                    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
                data, said = changed_bytes(draw, file.read_bytes())
                file.write_bytes(data)
            ran = warm.run(protocol, file.name, cwd=place, door="draw")
            try:
                ran.judge()
            except AssertionError as error:
                raise AssertionError(f"{file.name}: {said}\n{error}") from None
            return ran

    fuzz("rows: files", case, cases=20)
