"""A model as seen by everything that runs on it, and the words its configuration uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from harness.contracts.costs import UnitCosts
from harness.errors import OptionError

Weights: TypeAlias = Literal["pretrained", "tuned", "random"]
WeightsChoice: TypeAlias = Literal["auto", "pretrained", "tuned", "random"]
ExitHead: TypeAlias = Literal["auto", "shared", "shortcut"]
KVInput: TypeAlias = Literal["hidden", "shortcut"]
Graphs: TypeAlias = Literal["segments", "off"]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """How a model was asked for: what a command has to repeat to get the same one."""

    model: str = ""  # catalogue name, hub id or folder as it was given; empty where none was
    weights: WeightsChoice = "auto"  # before auto was decided
    dtype: str = "float32"  # torch dtype name
    exit_points: str = "paper"  # as given; paper where these are the paper's however they were given
    exit_head: ExitHead = "auto"  # auto, shared or shortcut
    artefacts: str | None = None  # folder or shipped set; None for the usual places
    seed: int = 0  # of random weights
    # registered name, auto for the fastest that keeps float32's tokens, or None for the format of the dtype
    weights_format: str | None = None
    device_map: str | None = None  # layers beyond the model's own device, auto or 17-32=cuda:1,…; None for none


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts of a model that strategies, byte models and reports need. Known before weights are loaded."""

    name: str  # catalogue name, hub id, or name of the folder or GGUF file
    family: str  # transformers model_type
    num_layers: int  # decoder layers
    hidden_size: int  # width of the residual stream
    vocab_size: int  # rows of the LM head
    exit_points: tuple[int, ...]  # sorted layers where strategies are asked; all below num_layers
    max_positions: int  # longest sequence the position embedding covers, tokens
    dtype: str  # torch dtype name of the activations, for example float32
    weights: Weights  # pretrained (the base weights), tuned (an adapter merged into them) or random
    layer_bytes: int  # weight bytes one decoder layer reads for a token, in that format
    lm_head_bytes: int  # weight bytes one LM-head evaluation reads
    kv_projection_bytes: int  # weight bytes of one layer's norm + K,V projections (a KV fill)
    kv_entry_bytes: int  # bytes of K and V of one position in one layer
    fingerprint: str = ""  # tells the weights from others, 16 hex digits; what trained artefacts are checked against
    base_fingerprint: str = ""  # the same of the weights before tuning
    exit_head: str = "shared"  # shared, or shortcut: and the hash of the shortcuts in use
    shortcut_bytes: int = 0  # weight bytes one exit's shortcut reads; 0 with the shared head
    exit_module: str = ""  # what a shortcut is: NAME or NAME/SIZE of harness.exit_modules; empty with the shared head
    artefacts: tuple[str, ...] = ()  # folders in which trained artefacts are looked for, in this order
    # how matrices are stored; where auto decides, the format of the dtype until weights are loaded
    weights_format: str = "float32"
    # how it was asked for; no fact of the model, so that it does not count when two are compared
    asked: ModelRequest = field(default=ModelRequest(), compare=False)
    # returns what its parts cost where it decodes, measured perhaps when first asked; not compared
    unit_costs: Callable[[], UnitCosts] | None = field(default=None, compare=False)

    @property
    def costs(self) -> UnitCosts:
        """Costs of its parts: as whoever decodes says, or else the weight bytes that they read."""
        if self.unit_costs is not None:
            return self.unit_costs()
        return UnitCosts(self.layer_bytes, self.lm_head_bytes, self.shortcut_bytes, "bytes of weights read")

    def exit_point(self, layer: int, option: str) -> int:
        """Return an exit point, or raise :class:`OptionError` that names the option (``fixed:layer=4``)."""
        if layer == self.num_layers:
            raise OptionError(f"{option} is the last layer of {self.name}. Use --strategy full.")
        if layer > self.num_layers:
            raise OptionError(f"{option} is beyond {self.name}, which has {self.num_layers} layers.")
        if layer not in self.exit_points:
            known = ", ".join(str(point) for point in self.exit_points)
            raise OptionError(
                f"{option} is not an exit point of {self.name} (exit points: {known}). "
                "Choose one of them, or widen them with --exit-points all."
            )
        return layer


class Tokenizer(Protocol):
    """The part of a tokenizer that tasks and the runner use."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end a generation."""

    @property
    def start_ids(self) -> tuple[int, ...]:
        """Ids before a text that a model reads from its beginning, as it was trained with them; empty without any."""

    def encode(self, text: str) -> list[int]:
        """Return token ids without special tokens added."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; special tokens are kept, nothing is cleaned up."""


def with_bos(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[int]:
    """Return the tokens of a text as a model reads it from its beginning: behind ``start_ids``, which come once."""
    start = tokenizer.start_ids
    return list(token_ids) if tuple(token_ids[: len(start)]) == start else [*start, *token_ids]
