"""Python code completion."""

from __future__ import annotations

from tasks.code_completion import CodeCompletion
from tasks.languages import PYTHON
from tasks.rows import Rows
from tasks.sources import HubDataset
from tasks.sources.embedded import standard_library


class Py150(CodeCompletion):
    """Python files from GitHub: PY150 as CodeXGLUE prepared it; embedded, Python's standard library.

    Source: Raychev, Bielik, Vechev, "Probabilistic Model for Code with Decision Trees", OOPSLA 2016.
    """

    name = "py150"
    code = PYTHON
    documents = HubDataset("google/code_x_glue_cc_code_completion_token", "python", "test")
    lines = HubDataset("google/code_x_glue_cc_code_completion_line", "python", "train", single_split=True)

    def embedded(self) -> Rows:
        """Return the running Python's standard library."""
        return standard_library()
