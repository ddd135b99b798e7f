"""lm-eval's tasks, found by name or file; those that cannot be right here are refused before a weight is read.

A task is a program of whoever wrote it: what its YAML file names as ``!function`` is run by lm-eval, here as there.
Nothing else is: a metric that lm-eval has not itself would be fetched from the hub as a program, and is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, DataError, HarnessError, UnknownNameError, reason


class FoundTasks:
    """Tasks as lm-eval finds them.

    Attributes:
        names: as asked for, files as paths.
        manager: lm-eval's, which knows them.
        tasks: name → lm-eval's task, groups taken apart.
    """

    def __init__(self, names: list[str], manager: Any, tasks: Mapping[str, Any]) -> None:
        self.names, self.manager, self.tasks = names, manager, tasks


def find_tasks(names: list[str], include_path: Path | None) -> FoundTasks:
    """Load tasks with their documents.

    Args:
        names: tasks, groups, tags, or YAML files.
        include_path: folder of further tasks.

    Raises:
        UnknownNameError: one that lm-eval does not know.
        ConfigError: a task that reads pictures or sounds, runs code that a model wrote, or has a foreign metric; or a
            version of ``datasets`` that runs programs of data sets.
        DataError: its documents cannot be had.
    """
    import datasets
    from lm_eval.tasks import TaskManager

    if int(datasets.__version__.partition(".")[0]) < 4:
        raise ConfigError(
            f"datasets {datasets.__version__} runs programs that come with data sets where a task asks for that "
            "(trust_remote_code), and version 4 runs none:",
            ["pip install 'datasets>=4'"],
        )
    if not names:
        raise ConfigError("--tasks names nothing. Give tasks of lm-eval, or YAML files, as a comma list.")
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"--include-path {include_path}: there is no such folder. Give one with YAML files of tasks.")
    there = None if include_path is None else str(include_path)
    manager = TaskManager(include_path=there, include_defaults=False)
    if _unknown(names, manager):  # lm-eval's own thousands take seconds to read
        manager = TaskManager(include_path=there)
    known = manager.all_tasks
    for name in _unknown(names, manager):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        raise UnknownNameError("lm-eval task", name, close, "`lm_eval ls tasks` lists them; a YAML file is one, too.")
    try:
        with own_metrics():
            tasks: Mapping[str, Any] = manager.load(list(names))["tasks"]
    except (HarnessError, MemoryError):
        raise
    except Exception as error:  # the task's own, its data set's, or lm-eval's
        raise DataError(
            f"lm-eval cannot load {', '.join(names)}: {reason(error)}. Check the task's YAML file and its data."
        ) from error
    for name, task in tasks.items():
        _refuse(name, task)
    return FoundTasks(names, manager, tasks)


def _unknown(names: list[str], manager: Any) -> list[str]:
    known = set(manager.all_tasks)
    return [name for name in names if name not in known and not Path(name).is_file()]


def _refuse(name: str, task: Any) -> None:
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"the task {name} reads pictures or sounds, and the models here read text. Omit it.")
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"the task {name} runs code that the model wrote, and nothing here does. Omit it.")


@contextmanager
def own_metrics() -> Iterator[None]:
    """Let lm-eval load no metric as a program from the hub, as it does with one that it does not know.

    Raises:
        ConfigError: a task wants one.
    """
    import evaluate

    wanted: list[str] = []

    def refuse(path: str, *_: Any, **__: Any) -> None:
        wanted.append(str(path))
        raise ConfigError(f"the metric {path} is none of lm-eval's own.")

    before, evaluate.load = evaluate.load, refuse
    try:
        yield
    finally:
        evaluate.load = before
        if wanted:  # lm-eval takes the refusal for a metric without a function
            raise ConfigError(
                f"a task wants the metric {wanted[0]}, which lm-eval would fetch from the hub and run as a program. "
                "Name one of lm-eval's own in its metric_list."
            )
