"""Options of every command that decodes with a model: which, its weights and exits, where it runs, what measures."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "Artefacts",
    "DType",
    "Device",
    "Energy",
    "ExitHead",
    "ExitPoints",
    "KVInput",
    "Model",
    "TdpW",
    "Threads",
    "Weights",
]

Model = Annotated[str | None, typer.Option(help="Catalogue name, hub id or folder. Default: smollm2-135m.")]
KVInput = Annotated[
    str | None,
    typer.Option(help="What propagate fills them from: hidden, or shortcut. Default: hidden."),
]
ExitPoints = Annotated[
    str | None, typer.Option(help="paper, all, or layers such as 4,8,12. Default: paper.", metavar="LAYERS")
]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: float32.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: auto.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. Default: torch's choice.")]
Weights = Annotated[
    str | None,
    typer.Option(help="auto, tuned, pretrained or random. Default: auto, tuned where there is an adapter."),
]
ExitHead = Annotated[
    str | None,
    typer.Option(help="auto, shared or shortcut. Default: auto, shortcut where there are maps for the weights."),
]
Artefacts = Annotated[
    str | None,
    typer.Option(help="Folder of `harness train`, or a shipped set. Default: artefacts/MODEL, then shipped."),
]
Energy = Annotated[str | None, typer.Option(help="auto, nvml, rapl, estimate, none or replay:FILE. Default: auto.")]
TdpW = Annotated[
    float | None, typer.Option(help="Watts the energy estimate assumes for all cores. Default: 4 W per core.")
]
