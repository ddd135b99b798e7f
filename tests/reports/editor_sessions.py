"""Made-up runs of editor sessions, whose requests are alike within one."""

from __future__ import annotations

from typing import Any

import numpy as np

POINTS = ("full@keep=none", "full@keep=exact", "free@lossless+lookup@keep=none", "free@lossless+lookup@keep=exact")
PROMPT, KEPT = 100, 90  # tokens


def play(
    run: Any,
    sessions: int,
    requests: int = 5,
    *,
    seed: int = 0,
    per_block: int | None = None,
    alike: float = 0.3,
) -> Any:
    """Fill a run: a warm prompt takes a tenth, a look-up 1.5 times less to decode. A window is a session by default.

    A session's requests share a factor of their times, and one of what a look-up gains, both with σ = ``alike``, and a
    third of that is how much better or worse a point that is no full depth scores in all of them.
    """
    per_block = per_block or requests
    generator = np.random.default_rng(seed)
    document, gained = np.exp(generator.normal(0, alike, (2, sessions)))
    better = generator.normal(0, alike / 3, sessions)
    noise = generator.normal(0, 0.1, (len(run.points), sessions, requests))
    for start in range(0, sessions * requests, per_block):
        places = range(start, min(start + per_block, sessions * requests))
        for index, point in enumerate(run.points):
            warm, drafts = "keep=none" not in point, "lookup" in point
            samples = []
            for place in places:
                session, request = divmod(place, requests)
                chance = noise[index, session, request]
                slow = document[session] * np.exp(chance)
                reused = KEPT if warm and request else 0
                prompt_s = 0.9 * slow * (PROMPT - reused) / PROMPT
                decoding_s = 0.12 * slow / (1.5 * gained[session] if drafts else 1.0)
                score = 0.5 + (0.0 if point.startswith("full") else better[session] + chance / 10)
                samples.append(
                    {
                        "sample_id": f"{session}-{request}", "session": f"document {session}",
                        "prompt_ids": (7,) * PROMPT, "prompt_reused": reused, "overtaken": 1,
                        "overtaken_s": prompt_s / 3, "ttft_s": prompt_s, "latency_s": prompt_s + decoding_s,
                        "token_times_s": (prompt_s, prompt_s + decoding_s / 2, prompt_s + decoding_s),
                        "scores": {"accepted_prefix": 10.0 + request, "edit_similarity": score},
                    }
                )  # fmt: skip
            computed = sum(one["latency_s"] + one["overtaken_s"] for one in samples)
            run.window(
                point, *samples, block=start // per_block, duration=computed, energy_j=20 * computed,
                energy_source="rapl",
            )  # fmt: skip
    return run
