"""Java code completion."""

from __future__ import annotations

from tasks.code_completion import CodeCompletion
from tasks.languages import JAVA
from tasks.rows import Rows
from tasks.sources import HubDataset
from tasks.sources.embedded import jdk_sources


class JavaCorpus(CodeCompletion):
    """Java files from GitHub: the Java Corpus as CodeXGLUE prepared it; embedded, the JDK's modules.

    Source: Allamanis, Sutton, "Mining Source Code Repositories at Massive Scale using Language Modeling", MSR 2013.
    """

    name = "javacorpus"
    code = JAVA
    documents = HubDataset("google/code_x_glue_cc_code_completion_token", "java", "test")
    lines = HubDataset("google/code_x_glue_cc_code_completion_line", "java", "train", single_split=True)

    def embedded(self) -> Rows:
        """Return the sources of the installed JDK."""
        return jdk_sources()
