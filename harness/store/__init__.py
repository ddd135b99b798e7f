"""Run directories on disk: append-only, resumable, packed for transport; mixing two runs is refused."""
