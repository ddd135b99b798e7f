"""Print the table of KV policies from run directories: python docs/kv_policies.py RUN_DIR… > table.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pandas as pd

import harness

FIGURES = {"exact_prefix": "{:.3f}", "own_text_agreement": "{:.3f}", "exact_line": "{:.2f}"}


def estimate(row: pd.Series, name: str, form: str, unit: str = "") -> str:
    """Return a value with its interval, where it has one."""
    text = form.format(row[name]) + unit
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return text if pd.isna(low) or low == high else f"{text} [{form.format(low)}, {form.format(high)}]"


def table(rows: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of the table: a row per stream, precision, strategy and policy."""
    yield "| text | strategy | KV | exact prefix | own text | exact line | layers skipped | decoding |"
    yield "|:--|:--|:--|--:|--:|--:|--:|--:|"
    for _, row in rows.sort_values(["dtype", "source", "task", "strategy", "kv"], kind="stable").iterrows():
        text = f"{row['source'].removeprefix('embedded: ').partition(' (path')[0]}, {row['language']}, {row['dtype']}"
        figures = " | ".join(estimate(row, name, form) for name, form in FIGURES.items())
        skipped, speed = f"{100 * row['layers_skipped']:.1f} %", estimate(row, "decode_speedup", "{:.2f}", "×")
        yield f"| {text} | {row['strategy']} | `{row['kv']}` | {figures} | {skipped} | {speed} |"


if __name__ == "__main__":
    found = pd.concat([harness.read(path).rows for path in sys.argv[1:]], ignore_index=True)
    print("\n".join(table(found[~found["strategy"].isin(["full"])])))
