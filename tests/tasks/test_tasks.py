from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import pytest

from harness.contracts import TaskRequest
from harness.errors import ConfigError
from harness.registry import PROTOCOLS, TASKS
from tasks.code_completion import CodeCompletion
from tasks.languages import JAVA
from tasks.rows import RecordRows, Rows
from tasks.sources import HubDataset


def test_a_stranger_adds_a_task_in_a_few_lines(words: Any) -> None:
    class Jokes(CodeCompletion):
        name: ClassVar[str] = "jokes"
        code = JAVA
        documents = HubDataset("me/jokes", "java", "test")
        lines = HubDataset("me/joke-lines", "java", "test")

        def embedded(self) -> Rows:
            record = {"id": "a", "code": "int a = 1 ;\n" * 20}
            return RecordRows("embedded", "embedded: one joke", 1, lambda index: record)

    task = Jokes()
    for protocol in ("green-code", "codexglue-line"):
        data = task.load(TaskRequest(protocol, "embedded"), words)
        assert data.source.label == "embedded: one joke"
        assert data.samples[0].reference


def test_a_task_takes_the_protocols_that_it_names_and_refuses_all_others() -> None:
    for task in (TASKS.load(name)() for name in TASKS.names()):
        assert task.default_protocol in task.protocols()
        for protocol in PROTOCOLS.names():
            if protocol in task.protocols():
                assert isinstance(task.completion(protocol, "x = 1\n"), str)
            else:
                with pytest.raises(ConfigError, match=rf"use one of: {', '.join(task.protocols())}\.$"):
                    task.completion(protocol, "x = 1\n")


def test_importing_a_task_is_light() -> None:
    heavy = "torch transformers datasets pandas pyarrow codebleu tree_sitter sacrebleu rouge_score nltk huggingface_hub"
    code = f"import sys, tasks.py150, tasks.javacorpus; print(*(set({heavy.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
