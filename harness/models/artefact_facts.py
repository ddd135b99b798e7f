"""What an artefact's JSON may say: the type and the range of every fact that the harness reads, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.errors import complaint

__all__ = ["NEEDED", "ArtefactFacts", "fault_in"]

NEEDED: Mapping[str, tuple[str, ...]] = {
    "adapter": ("model_fingerprint",),
    "shortcut": ("model_fingerprint", "exit_points"),
}
"""Kind → facts without which it is of no use."""

_Layer = Annotated[int, Field(ge=1, le=1000)]
_Count = Annotated[int, Field(ge=0)]


class ArtefactFacts(BaseModel):
    """Facts of any kind of artefact, those that are absent left out; what is not read here may be anything.

    Attributes:
        kind: ``adapter``, ``shortcut``, or the recipe that made it.
        sha256: of the tensor file beside it.
        model, model_fingerprint: the weights that it belongs to. base_fingerprint: of those before tuning.
        adapter_sha256: of the adapter that was tuned together with a shortcut.
        tokenizer_fingerprint: of the model's tokenizer.
        exit_head: that it was trained for: ``shared``, or ``shortcut:`` and a hash.
        num_layers, hidden_size, exit_points: of the model.
        documents: keys of what it has read. ngrams: index of all its texts, in a file beside it.
        data: what a tuning has read, by task and source. trained_on: likewise, of any other training.
        recipe: how it was trained. training: of a checkpoint, the settings that it goes on with.
        start: the tuning that this one went on from. seed: of all that was random. steps, tokens: trained on so far.
        scale: of an adapter's products.
        threshold: to begin with. temperature: of an agent's decision.
        activation: of a network. observation: what it looks at.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    kind: str = ""
    sha256: str = ""
    adapter_sha256: str | None = None
    model: str = ""
    model_fingerprint: str = ""
    base_fingerprint: str = ""
    tokenizer_fingerprint: str = ""
    exit_head: str = ""
    num_layers: _Layer = 1
    hidden_size: Annotated[int, Field(ge=1, le=1 << 17)] = 1
    exit_points: list[_Layer] = Field(default_factory=list)
    documents: list[str] = Field(default_factory=list)
    ngrams: dict[str, Any] | None = None
    data: list[dict[str, Any]] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    trained_on: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    start: dict[str, Any] | None = None
    seed: int = 0
    steps: _Count = 0
    tokens: _Count = 0
    scale: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    threshold: float = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    activation: Literal["tanh", "relu"] = "tanh"
    observation: dict[str, Any] = Field(default_factory=dict)

    @field_validator("exit_points")
    @classmethod
    def _ascend(cls, points: list[int]) -> list[int]:
        if points != sorted(set(points)):
            raise ValueError("layers must ascend, each once")
        return points


def fault_in(facts: Mapping[str, Any], needed: tuple[str, ...] = ()) -> str:
    """Return what is wrong with an artefact's facts, a phrase; empty where nothing is.

    Args:
        facts: everything its JSON says.
        needed: which must be there.
    """
    for name in needed:
        if name not in facts:
            return repr(name)
    try:
        ArtefactFacts.model_validate(facts)
    except ValidationError as error:
        return f"{'.'.join(map(str, error.errors()[0]['loc']))}: {complaint(error)}"
    return ""
