"""The vocabulary every room shares: what each kind of plug-in, and a model, promise.

Protocols for what is plugged in, frozen dataclasses for what is handed over. No torch at run time:
importing this module must stay cheap, since ``harness list`` does it.

Words (one per idea): ``exit_layer`` is the number of decoder layers *executed* for a token,
1…``num_layers``; ``exit_points`` are the sorted layers where a strategy is asked (the last layer is
not one of them, it always ends a token); ``hidden_state`` is the residual stream *before* the final
norm; quantities carry SI suffixes (``_s``, ``_j``, ``_w``, ``_bytes``); ``None`` means not measured.
"""

from __future__ import annotations

from harness.contracts.black_boxes import Answer, BlackBox, Connection
from harness.contracts.costs import Amounts, UnitCosts, price
from harness.contracts.drafts import Draft, DraftRule, DraftSource, DraftView, Lossless
from harness.contracts.exit_modules import ExitModule, ExitModuleFacts, LinearFit
from harness.contracts.heads import (
    FULL_HEAD,
    LM_HEAD,
    CheapHead,
    HeadChoice,
    HeadFacts,
    HeadLogits,
    LMHead,
    Reading,
)
from harness.contracts.kv import Keep, KVBatch, KVFacts, KVPolicy, Leaving, Prefetch, Waiting
from harness.contracts.meters import EnergyReading, Meter
from harness.contracts.metrics import Better, Metric, Wording
from harness.contracts.models import (
    ExitHead,
    Graphs,
    KVInput,
    ModelInfo,
    ModelRequest,
    Tokenizer,
    Weights,
    WeightsChoice,
)
from harness.contracts.prompts import PromptRule
from harness.contracts.recipes import Progress, Recipe, Trained, TrainingRun
from harness.contracts.scores import Completion, Score, common_prefix, first_line
from harness.contracts.stops import CONTEXT, Cursor, NamedStop, RowStop, Stop
from harness.contracts.strategies import Batch, ExitRule, ExitView, PlannedRule, StateScore, StateTest, Strategy
from harness.contracts.tasks import (
    LONGEST_ID,
    BadRow,
    Corpus,
    Document,
    Duplicates,
    Overtaken,
    Sample,
    SessionRequest,
    SourceInfo,
    Split,
    StopRule,
    Task,
    TaskData,
    TaskRequest,
    document_key,
)
from harness.contracts.weights import OWN_FORMAT, Accuracy, LinearMap, WeightsFacts, WeightsFormat, numbers

__all__ = [
    "CONTEXT",
    "FULL_HEAD",
    "LM_HEAD",
    "LONGEST_ID",
    "OWN_FORMAT",
    "Accuracy",
    "Amounts",
    "Answer",
    "BadRow",
    "Batch",
    "Better",
    "BlackBox",
    "CheapHead",
    "Completion",
    "Connection",
    "Corpus",
    "Cursor",
    "Document",
    "Draft",
    "DraftRule",
    "DraftSource",
    "DraftView",
    "Duplicates",
    "EnergyReading",
    "ExitHead",
    "ExitModule",
    "ExitModuleFacts",
    "ExitRule",
    "ExitView",
    "Graphs",
    "HeadChoice",
    "HeadFacts",
    "HeadLogits",
    "KVBatch",
    "KVFacts",
    "KVInput",
    "KVPolicy",
    "Keep",
    "LMHead",
    "Leaving",
    "LinearFit",
    "LinearMap",
    "Lossless",
    "Meter",
    "Metric",
    "ModelInfo",
    "ModelRequest",
    "NamedStop",
    "Overtaken",
    "PlannedRule",
    "Prefetch",
    "Progress",
    "PromptRule",
    "Reading",
    "Recipe",
    "RowStop",
    "Sample",
    "Score",
    "SessionRequest",
    "SourceInfo",
    "Split",
    "StateScore",
    "StateTest",
    "Stop",
    "StopRule",
    "Strategy",
    "Task",
    "TaskData",
    "TaskRequest",
    "Tokenizer",
    "Trained",
    "TrainingRun",
    "UnitCosts",
    "Waiting",
    "Weights",
    "WeightsChoice",
    "WeightsFacts",
    "WeightsFormat",
    "Wording",
    "common_prefix",
    "document_key",
    "first_line",
    "numbers",
    "price",
]
