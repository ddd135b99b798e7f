"""Which documents are read to trace, to tune and to judge a model."""

from __future__ import annotations

import os.path
from typing import Self

from pydantic import Field, model_validator

from harness.config.model import Configuration, Source, TaskName
from harness.errors import ConfigError

__all__ = ["DocumentChoice"]


class DocumentChoice(Configuration):
    """Tasks, and where their documents come from.

    Raises:
        ConfigError: a single file, which has rows of one language, for all tasks because none was named.
    """

    tasks: tuple[TaskName, ...] = Field(
        default=("py150", "javacorpus"), description="Task whose documents are read. Repeatable."
    )
    sources: tuple[Source, ...] = Field(
        default=("embedded",), description="embedded, hub, or PATH. Repeatable; each in equal shares."
    )

    @model_validator(mode="after")
    def _a_file_is_of_one_task(self) -> Self:
        if "tasks" not in self.model_fields_set:
            for source in self.sources:
                if os.path.isfile(os.path.expanduser(source)):
                    raise ConfigError(
                        f"--source {source} is one file and would be read as {' and as '.join(self.tasks)}. "
                        "Name its --task."
                    )
        return self
