"""``harness export``: a model with everything trained for it, as a folder that transformers reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import Field

from harness.appearance.visible_text import shell_command
from harness.commands.console import say
from harness.commands.options import configure, configured_by
from harness.config.model import Folder, ModelChoice
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.models.facts import Exported


class ExportOptions(ModelChoice):
    """The exported model and its card."""

    device: Literal["cpu"] = "cpu"
    weights: Literal["auto", "tuned", "pretrained"] = Field(
        default="auto", description="auto (tuned where there is an adapter), tuned, or pretrained (base)."
    )
    base_model: str | None = Field(
        default=None, min_length=1, max_length=200, description="Hub id that the card names. Default: the catalogue's."
    )
    runs: tuple[Folder, ...] = Field(default=(), description="Run directory of these weights, for the card's results.")


@configured_by(ExportOptions)
def export(
    given: dict[str, Any],
    directory: Annotated[
        Path, typer.Argument(help="Folder to make.", metavar="DIR", exists=False, readable=False, show_default=False)
    ],
) -> None:
    """Write tuned weights, merged, as a plain transformers folder with its exits and a model card.

    `harness run --model DIR` finds the exits and what the weights have read.
    """
    options = configure(ExportOptions, given)
    from harness.models.export import export as write
    from harness.models.model import resolve
    from harness.running.reading import read_run
    from reports.model_card import model_card

    resolved = resolve(options.request())
    recorded = [read_run(run) for run in options.runs]
    for run in recorded:
        if run.manifest.model.fingerprint != resolved.info.fingerprint:
            raise ConfigError(
                f"--run {run.directory} has other weights ({run.manifest.model.name}, {run.manifest.model.weights}, "
                f"{run.manifest.model.fingerprint or 'no fingerprint'}) than are exported ({resolved.info.name}, "
                f"{resolved.info.weights}, {resolved.info.fingerprint}). Give runs of these."
            )

    def card(exported: Exported, read: Mapping[str, Any]) -> str:
        base = options.base_model or exported.published
        return model_card(directory.name, base, exported.model_dump(), read, [run.summary for run in recorded])

    exported = write(resolved, directory, card, say)
    run_it = shell_command(["harness", "run", "--model", directory])
    say(f"{directory}: {exported.weights} weights, {exported.made_of}. Decode with them: {run_it}")
