"""Learned exit decisions: what a controller looks at, its network, and how it is found and checked.

One definition serves training and decoding, is saved with the network, and is what a loaded controller uses: an agent
trained on one signal and run on another (as GREEN-CODE's published Llama agent was) cannot happen.
"""

from harness.models.controllers.controller import (
    OBSERVATIONS,
    Controller,
    Network,
    Observation,
    controllers_of,
    find_controller,
    write_controller,
)
from harness.models.controllers.learned import LearnedStrategy, TrainedStrategy, logit
from harness.models.trained import find_trained

__all__ = [
    "OBSERVATIONS",
    "Controller",
    "LearnedStrategy",
    "Network",
    "Observation",
    "TrainedStrategy",
    "controllers_of",
    "find_controller",
    "find_trained",
    "logit",
    "write_controller",
]
