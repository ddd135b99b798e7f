"""A calibrated operating point, which ``harness run --strategy @FILE`` reads, and what is promised of it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Literal, TypeAlias

from pydantic import Field

from harness.contracts import Weights
from harness.records.manifest import TaskRecord
from harness.records.record import Count, Positive, Record

Method: TypeAlias = Literal["learn-then-test", "conformal"]
PValueName: TypeAlias = Literal["betting", "hoeffding-bentkus"]
Unit: TypeAlias = Literal["document", "project"]
Share = Field(ge=0, le=1)


class TestedSetting(Record):
    """One setting of the strategy on the calibration documents.

    Attributes:
        value: of the option that is calibrated.
        risk: mean loss over the documents; with the project as the unit, over the mean losses of projects.
        p_value: of "its risk is above the allowed one"; ``None`` behind the first that failed, which are not tested.
        bound: what conformal risk control promises of its expected loss; ``None`` for tests.
        passed: it may be chosen.
        exit_layer_mean: decoder layers of a decided token, mean; ``None`` where none was decided.
    """

    value: float
    risk: float = Share
    p_value: float | None = Field(default=None, ge=0, le=1)
    bound: float | None = Field(default=None, ge=0, le=1)
    passed: bool
    exit_layer_mean: float | None = None


class Guarantee(Record):
    """The promise: the mean loss over documents, or projects, drawn like these, decoded like these.

    Attributes:
        target: as asked for, for example ``agreement=0.95``.
        risk: ε, the largest mean loss allowed.
        confidence: 1 − δ, the least probability over calibration documents that the promise holds; ``None`` where it is
            one of expectation.
        method: ``learn-then-test`` or ``conformal``.
        p_value: how it was tested; ``None`` where it was not.
        option: the option that was calibrated. tested: its settings, from strict to lax.
        unit: what is drawn alike and counts once.
        documents: ids of the calibration documents, in the order drawn. hashes: of their whole texts, likewise.
        projects: how many of the documents are of each project that is known.
        left_out: documents that have no loss, or whose project is not known where that is the unit.
        task: where they come from. max_new_tokens: of a completion; ``None``: the protocol's limit.
        run: id of the run that decoded them. records: its seal.
        model, weights, dtype, exit_head, fingerprint: of the model. weights_format, kv, batch_size: how it decoded.
        prompt_exit: how deep its prompts were read; empty for full depth.
        artefacts: what trained parts the strategy runs on: name → SHA-256, of tensors and, in certificates since
            December 2026, of facts. plugins: package of another project that the run used → hash of its code.
        exit_points: layers after which it is asked. kv_input: what skipped keys and values are filled in from.
    """

    target: str
    risk: float = Field(gt=0, lt=1)
    confidence: float | None = Field(default=None, gt=0, lt=1)
    method: Method
    p_value: PValueName | None = None
    option: str
    tested: tuple[TestedSetting, ...]
    unit: Unit = "document"
    documents: tuple[str, ...]
    hashes: tuple[str, ...] = ()
    projects: dict[str, Positive] = Field(default_factory=dict)
    left_out: Count = 0
    task: TaskRecord
    max_new_tokens: Positive | None = None
    run: str = ""
    records: str = ""
    model: str
    weights: Weights
    dtype: str
    exit_head: str
    fingerprint: str
    weights_format: str
    kv: str
    batch_size: Positive
    prompt_exit: str = ""
    artefacts: dict[str, str] = Field(default_factory=dict)
    exit_points: tuple[Count, ...] | None = None
    kv_input: str | None = None
    plugins: dict[str, str] = Field(default_factory=dict)

    @property
    def promise(self) -> str:
        """The promise in one sentence."""
        loss = f"{self.target.partition('=')[0].removesuffix('_loss')}"
        lost = f"at most {self.risk:g} of {loss.replace('_', ' ')} is lost on average over {self.unit}s like these"
        if self.confidence is None:
            return f"{lost}, in expectation over calibrations"
        return f"{lost}, with confidence {self.confidence:g}"


def is_same_source(one: TaskRecord, other: TaskRecord) -> bool:
    """Tell whether two tasks draw from the same rows alike: by what files hold, by names where that is not recorded."""
    contents = {one.detail.get("content"), other.detail.get("content")}
    same = one.source == other.source if None in contents else len(contents) == 1
    return same and (one.name, one.protocol) == (other.name, other.protocol)


def known_documents(mine: Mapping[str, str], theirs: Mapping[str, str], *, same_source: bool) -> Set[str]:
    """Return the ids of documents that are another's as well: by their texts, and within one source by their ids."""
    texts = set(theirs.values()) - {""}
    return {name for name, text in mine.items() if text in texts or (same_source and name in theirs)}


def shared_projects(projects: Mapping[str, int]) -> str:
    """Return the warning that documents of one project count as independent; empty where none share one."""
    documents, largest = sum(projects.values()), max(projects, key=lambda name: projects[name], default="")
    if documents == len(projects):
        return ""
    return (
        f"{documents} documents are of {len(projects)} projects ({projects[largest]} of {largest}) and count as "
        "independent: the promise may break for new projects. --unit project makes one about those."
    )


class CalibratedPoint(Record):
    """The operating point as ``--strategy`` takes it, and what is promised of it.

    Attributes:
        schema_version: of this document.
        strategy: the operating point as ``--strategy`` takes it.
        guarantee: what is promised of it.
    """

    schema_version: int = 1
    strategy: str
    guarantee: Guarantee
