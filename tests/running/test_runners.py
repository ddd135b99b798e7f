"""What the engine's runner hands to stop rules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from harness.contracts import Cursor, Sample
from harness.running.runners import EngineRunner


def test_a_rule_reads_the_code_before_a_gap_and_not_the_marks_of_the_prompt() -> None:
    asked: list[Cursor] = []
    tokenizer = SimpleNamespace(start_ids=(), decode=lambda token_ids: "".join(map(chr, token_ids)))
    plan: Any = SimpleNamespace(model=SimpleNamespace(tokenizer=tokenizer, info=None))
    engine: Any = SimpleNamespace(backbone=SimpleNamespace(device="cpu"))
    planned: Any = SimpleNamespace(task=SimpleNamespace(language="python"))
    point: Any = SimpleNamespace(stop=SimpleNamespace(start=asked.append), weights_format="own")
    batch = [
        Sample("a", tuple(map(ord, prompt)), "1", (49,), 4, around=around)
        for prompt, around in [
            ("<pre>x = <suf>\n<mid>", ("x = ", "\n")),
            ("<pre><suf> = 1<mid>", ("", " = 1")),
            ("x = ", ("", "")),
        ]
    ]
    EngineRunner(plan, {"own": engine})._rules(planned, point, batch)
    assert [cursor.before for cursor in asked] == ["x = ", "", "x = "]
