"""Cheap heads for a model: whether one can be had, the artefact it is made from, and the options of what reads one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from harness.contracts import FULL_HEAD, LM_HEAD, CheapHead, ExitView, HeadChoice, ModelInfo, Reading, Strategy
from harness.errors import ArtefactError, OptionError, UnknownNameError
from harness.models.trained import find, require
from harness.registry import HEADS

if TYPE_CHECKING:
    from torch import Tensor

AUTO_DRAFT_HEADS = ("shortlist", "lowrank")
"""Heads that ``auto`` looks for to read drafts with, cheapest first."""


def _known(text: str) -> str:
    choice = HeadChoice.of(text)
    if not choice.is_full and choice.name not in HEADS:
        raise UnknownNameError("head", choice.name, [FULL_HEAD, *HEADS.names()])
    if choice.size is not None and (choice.is_full or not _head(choice).facts.sizes):
        raise ValueError(f"the head {choice.name} has no size")
    return text


HeadName = Annotated[str, AfterValidator(_known)]
"""An option that names a head: ``full``, ``NAME`` or ``NAME/SIZE``."""


def _head(choice: HeadChoice) -> type[CheapHead]:
    found: type[CheapHead] = HEADS.load(choice.name)
    return found


@dataclass(frozen=True)
class ReadsHead(Strategy):
    """A strategy whose checks read a head: the LM head, or a cheap one that approximates it."""

    head: Annotated[
        HeadName,
        Field(description="what a check reads: full, or NAME or NAME/SIZE of harness list heads, an approximation"),
    ] = field(default=FULL_HEAD, kw_only=True)
    token: Annotated[
        str,
        Field(
            pattern="^(full|head)$",
            description="which head an exit's token comes from: full, the LM head; or head, the one checked: lossy",
        ),
    ] = field(default="full", kw_only=True)

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Every exit point of the model, once what the head is made from is found and checked."""
        if self.token == "head" and self._choice.is_full:
            raise OptionError("token=head means the cheap head of a check, and head=full has none. Give head=NAME.")
        self.artefacts(model)
        return model.exit_points

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """The artefact that the head is made from."""
        return head_artefacts(self._choice, model)

    def cheap_heads(self) -> tuple[HeadChoice, ...]:
        """The head, unless it is the LM head."""
        return () if self._choice.is_full else (self._choice,)

    def reading(self, view: ExitView) -> Reading:
        """Return what the head says of a view, and let it choose the tokens where it shall."""
        choice = self._choice
        if choice.is_full:
            return view
        if self.token == "head":
            view.answer_by(choice)
        return view.read(choice)

    @cached_property
    def _choice(self) -> HeadChoice:
        return HeadChoice.of(self.head)


def draft_head(text: str, model: ModelInfo) -> HeadChoice:
    """Return the head that reads a model's drafts."""
    if text != "auto":
        try:
            choice = HeadChoice.of(_known(text))
        except ValueError as error:
            raise OptionError(f"draft_head = '{text}' is not allowed: {error}.") from None
        head_artefacts(choice, model)
        return choice
    for name in AUTO_DRAFT_HEADS:
        choice = HeadChoice(name)
        try:
            head_artefacts(choice, model)
        except ArtefactError:
            continue
        return choice
    return LM_HEAD


def head_artefacts(choice: HeadChoice, model: ModelInfo) -> dict[str, str]:
    """Return the hashes of the artefact that a head is made from; nothing for one that is made from none."""
    kind = "" if choice.is_full else _head(choice).facts.artefact
    return require(find(kind, model)).hashes() if kind else {}


def head_tensors(model: ModelInfo, device: str, kind: str) -> Mapping[str, Tensor]:
    """Return the tensors of what a head of a model is made from."""
    return require(find(kind, model)).tensors(device)
