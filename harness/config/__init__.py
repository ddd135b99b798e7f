"""Configuration that people write: run configurations, operating points, options; from flags, files or Python."""

from harness.config.run import RunConfig
from harness.config.strategies import (
    ADVISED,
    ADVISED_DECODE,
    BASELINE,
    StrategySpec,
    demo_strategies,
    parse_all,
    parse_strategies,
)

__all__ = [
    "ADVISED",
    "ADVISED_DECODE",
    "BASELINE",
    "RunConfig",
    "StrategySpec",
    "demo_strategies",
    "parse_all",
    "parse_strategies",
]
