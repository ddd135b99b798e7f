"""The base of every code-completion task; a task adds its language, its datasets and its embedded source."""

from __future__ import annotations

from contextlib import closing
from typing import ClassVar

from harness.contracts import Corpus, Split, StopRule, TaskData, TaskRequest, Tokenizer
from harness.errors import ConfigError, DataError
from harness.registry import PROTOCOLS
from tasks.draw import collect, draw
from tasks.languages import Language
from tasks.protocols import AnyProtocol
from tasks.rows import Rows
from tasks.sources import HubDataset, open_hub
from tasks.sources.embedded import SourceFiles
from tasks.sources.files import FORMS, open_path


class CodeCompletion:
    """A task of :class:`harness.contracts.Task` over one programming language.

    Subclass it, set ``name`` and ``code``, and return local code from :meth:`embedded` where there is any; datasets of
    the hub where there are some.

    Attributes:
        name: registered name.
        code: the language.
        documents: hub dataset of whole files, for the protocols that read documents; ``None``: there is none.
        lines: hub dataset of contexts and the lines they break off in; ``None``: there is none.
        offers: what protocols can read of it (:attr:`tasks.protocols.Protocol.wants`).
        default_protocol: of a run that names none.
    """

    name: ClassVar[str]
    code: ClassVar[Language]
    documents: ClassVar[HubDataset | None] = None
    lines: ClassVar[HubDataset | None] = None
    offers: ClassVar[frozenset[str]] = frozenset({"documents", "lines"})
    default_protocol: ClassVar[str] = "green-code"

    @property
    def language(self) -> str:
        """Programming language."""
        return self.code.name

    @property
    def session_protocol(self) -> str:
        """The protocol of editor sessions, where a run names none."""
        return "codexglue-line" if "lines" in self.offers else self.default_protocol

    @property
    def row_format(self) -> str:
        """Files that ``--source PATH`` may hold, in words."""
        return FORMS

    def protocols(self) -> tuple[str, ...]:
        """Return the registered protocols that it can be drawn under, by name."""
        return tuple(name for name, kind in PROTOCOLS.usable().items() if kind.wants in self.offers)

    def embedded(self) -> Rows:
        """Return rows that need no download."""
        hub = " or --source hub" if self.documents or self.lines else ""
        raise DataError(f"the task '{self.name}' has no embedded source. Use --source PATH{hub}.")

    def load(self, request: TaskRequest, tokenizer: Tokenizer) -> TaskData:
        """Draw the samples; see :mod:`tasks.draw` for the order."""
        protocol = self._protocol(request.protocol)
        dataset = self.documents if protocol.wants == "documents" else self.lines
        with closing(self._open(request.source, dataset, request.split)) as rows:
            return draw(rows, protocol, tokenizer, request)

    def corpus(self, source: str, split: Split, *, limit: int | None = None, seed: int = 0) -> Corpus:
        """Return whole documents; see :func:`tasks.draw.collect` for the order."""
        with closing(self._open(source, self.documents, split)) as rows:
            return collect(rows, self.code, limit=limit, seed=seed)

    def _open(self, source: str, dataset: HubDataset | None, split: Split) -> Rows:
        if source == "embedded":
            rows = self.embedded()
            return rows.part(split) if isinstance(rows, SourceFiles) else rows
        if dataset is None and source == "hub":
            raise DataError(f"the task '{self.name}' names no such dataset of the hub. Use --source PATH.")
        dataset = dataset or HubDataset(self.name, self.code.name, split)  # how folders are laid out
        if source == "hub":
            return open_hub(dataset.at(split))
        return open_path(source, dataset.at(split))

    def stop_rule(self, protocol: str, tokenizer: Tokenizer) -> StopRule:
        """Return a predicate on the tokens generated so far: true when the completion is over."""
        return self._protocol(protocol).stop_rule(tokenizer)

    def completion(self, protocol: str, text: str, around: tuple[str, str] = ("", "")) -> str:
        """Return the part of generated text that is scored."""
        before, after = around
        return self._protocol(protocol).completion_between(before, text, after)

    def _protocol(self, name: str) -> AnyProtocol:
        kind = PROTOCOLS.load(name)
        if kind.wants not in self.offers:
            raise ConfigError(
                f"the protocol '{name}' does not fit the task '{self.name}': it reads rows of {kind.wants}, and these "
                f"are of {' and '.join(sorted(self.offers))}. Omit --protocol for '{self.default_protocol}', or use "
                f"one of: {', '.join(self.protocols())}."
            )
        protocol: AnyProtocol = kind(self.code)
        return protocol
