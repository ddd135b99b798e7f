"""Run directories on disk: append-only, resumable, packed for transport; a mix of two runs is refused."""
