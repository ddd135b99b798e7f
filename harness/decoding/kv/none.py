"""The ``none`` policy: no cache."""

from __future__ import annotations

from typing import ClassVar

from harness.contracts import KVFacts, KVPolicy


class NoCache(KVPolicy):
    """Keep no cache and run the whole prefix for every token, through as few layers as decided.

    How GREEN-CODE's published numbers were taken (Ilager et al. 2025). Every token is asked about, the first too.
    """

    facts: ClassVar[KVFacts] = KVFacts(
        keeps_cache=False,
        note="every token runs its whole prefix again, which is compute-bound, so the byte model does "
        "not apply. A KV cache saves more than any exit strategy: compare with a cached run.",
    )
