"""Tasks of lm-eval over local files, in each of its kinds, and its own model beside ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
doc_to_text: "{{{{prompt}}}}"
metadata:
  version: 1.0
"""
KINDS = {
    "line": """\
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n", "item"]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
""",
    "long": """\
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["never"]
  max_gen_toks: 9
metric_list:
  - metric: exact_match
""",
    "choice": """\
output_type: multiple_choice
doc_to_target: 0
doc_to_choice: "{{[answer, ' total', 'x']}}"
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "whole": """\
output_type: loglikelihood_rolling
doc_to_target: "{{prompt}}{{answer}}{{prompt}}"
metric_list:
  - metric: bits_per_byte
  - metric: word_perplexity
""",
}


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Skip without lm-eval; keep what is prepared of the tasks' files out of the home folder."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'early-exit-harness[lm-eval]')")
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory, documents: list[str], datasets_cache: None) -> Path:
    """Seven beginnings of files, the rest of the line they end in, of different lengths."""
    file = tmp_path_factory.mktemp("lm-eval-rows") / "rows.jsonl"
    lines = []
    for number, text in enumerate(documents[:7]):
        end = 40 + 17 * number
        lines.append(json.dumps({"prompt": text[:end], "answer": text[end : text.index("\n", end)] or ")"}))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Path:
    """One YAML file for each of :data:`KINDS`, named ``ours_KIND``."""
    folder = tmp_path_factory.mktemp("lm-eval-tasks")
    for kind, body in KINDS.items():
        (folder / f"{kind}.yaml").write_text(HEAD.format(name=f"ours_{kind}", rows=rows) + body)
    return folder


@pytest.fixture(scope="session")
def write_task(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Callable[[str, str], Path]:
    """``write_task(name, body)`` is the YAML file of a further task over the same rows."""

    def write(name: str, body: str) -> Path:
        file = tmp_path_factory.mktemp("lm-eval-task") / f"{name}.yaml"
        file.write_text(HEAD.format(name=name, rows=rows) + body)
        return file

    return write


@pytest.fixture(scope="session")
def evaluate(task_folder: Path) -> Callable[..., dict[str, Any]]:
    """``evaluate(model, *kinds)`` is what lm-eval makes of a model on our tasks."""

    def run(model: Any, *kinds: str, **settings: Any) -> dict[str, Any]:
        import lm_eval
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(task_folder), include_defaults=False)
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model, tasks=[f"ours_{kind}" for kind in kinds], task_manager=manager, bootstrap_iters=0, **settings
        )
        return found

    return run


@pytest.fixture(scope="session")
def hf(evaluate: Callable[..., dict[str, Any]], tiny_llama: Path) -> dict[str, Any]:
    """What lm-eval's own model says of all of them."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(str(tiny_llama), batch_size=3, device="cpu", dtype="float32", trust_remote_code=False)
    return evaluate(model, *KINDS)
