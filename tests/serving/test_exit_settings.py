"""Which strategies a server has, and what a request may change about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config import ADVISED, demo_strategies, parse_all
from harness.config.decode import parse_decode
from harness.contracts import ModelInfo, ModelRequest
from harness.errors import ArtefactError, ConfigError, OptionError
from harness.models.model import resolve
from harness.serving.completions import InvalidRequestError
from harness.serving.config import ServeConfig
from harness.serving.exit_settings import Settings


@pytest.fixture(scope="module")
def info(tiny_llama: Path) -> ModelInfo:
    return resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared")).info


@pytest.fixture
def settings(info: ModelInfo) -> Settings:
    return Settings(("confidence:threshold=0.7", "fixed:layer=4", "random"), info)


def test_the_first_is_the_default_and_full_depth_is_always_there(settings: Settings) -> None:
    assert [loaded.name for loaded in settings.loaded] == ["confidence", "fixed", "random", "full"]
    assert [loaded.default for loaded in settings.loaded] == [True, False, False, False]
    assert settings.resolve(None) is settings.default
    assert settings.resolve({}) is settings.default
    assert settings.default.options == {"threshold": 0.7}


def test_without_any_those_of_a_bare_run_are_there_and_what_results_advise_leads(info: ModelInfo) -> None:
    names = [loaded.name for loaded in Settings((), info).loaded]
    assert set(names) < {spec.name for spec in parse_all(demo_strategies(info.exit_points), in_run=True)}
    default = Settings((), info, parse_decode(ServeConfig().decode)).default
    assert f"{default.name}@{default.decode}" == ADVISED
    advice = Path("docs/results/index.md").read_text().partition("## What to use")[2].partition("\n\n**")[0]
    assert f"**Draft with `{ADVISED}`**" in advice
    assert f"`{ADVISED}`" in Path("docs/tutorials/editor.md").read_text()
    assert set(names) == {"confidence", "fixed", "saturation", "full"}


def test_a_request_sets_numbers_and_the_server_keeps_its_own(settings: Settings) -> None:
    assert settings.resolve({"threshold": 0.25}).options == {"threshold": 0.25}
    assert settings.resolve({"strategy": "confidence", "threshold": "0.5"}).options == {"threshold": 0.5}
    assert settings.resolve({"strategy": "fixed", "layer": 6}).options == {"layer": 6}
    assert settings.resolve({"strategy": "fixed"}).options == {"layer": 4}
    assert settings.default.options == {"threshold": 0.7}
    one, other = (settings.resolve({"strategy": "confidence", "threshold": value}) for value in (0.5, "0.5"))
    assert one.strategy is other.strategy, "so that their rows are asked together"


def test_what_cannot_be_is_refused_in_one_line(settings: Settings) -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"strategy": "confidense"}, "not loaded. Did you mean 'confidence'"),
        ({"strategy": ["confidence"]}, "cannot be the value of an option"),
        ({"strategy": "full", "threshold": 0.5}, "cannot set 'threshold' of full"),
        ({"threshold": 1.5}, "less than or equal to 1"),
        ({"threshold": float("nan")}, "threshold = 'nan' cannot be the value"),
        ({"threshold": {"a": 1}}, "threshold"),
        ({"strategy": "fixed", "layer": 5}, "exit point"),
        ({"speed": 3}, "cannot set 'speed'"),
    ]
    for given, words in refusals:
        with pytest.raises(InvalidRequestError, match=words) as error:
            settings.resolve(given)
        assert "\n" not in str(error.value)


def test_a_path_cannot_be_set_by_a_request(plug_in: Callable[..., None], info: ModelInfo, tmp_path: Path) -> None:
    plug_in(
        "reader",
        """
        from pathlib import Path

        @dataclass(frozen=True)
        class Outside(Strategy):
            file: str = ""
            folder: Path = Path()
            level: int = 1

            def start(self, model, batch):
                if self.file:
                    open(self.file).read()
                return self

            def should_exit(self, view):
                return torch.zeros(len(view.rows), dtype=torch.bool)
        """,
    )
    settings = Settings(("reader",), info)
    assert settings.loaded[0].options == {"level": 1}
    for option in ("file", "folder"):
        with pytest.raises(InvalidRequestError, match=f"cannot set '{option}'"):
            settings.resolve({option: "/etc/passwd"})


def test_two_of_one_strategy_are_told_apart_by_how_they_were_written(info: ModelInfo) -> None:
    settings = Settings(("confidence:threshold=0.9", "confidence:threshold=0.5"), info)
    assert [loaded.name for loaded in settings.loaded] == ["confidence", "confidence:threshold=0.5", "full"]
    assert settings.resolve({"strategy": "confidence:threshold=0.5"}).options == {"threshold": 0.5}
    assert settings.resolve({"strategy": "confidence"}).options == {"threshold": 0.9}


def test_a_strategy_that_cannot_serve_is_refused_before_anything_listens(info: ModelInfo) -> None:
    refusals: tuple[tuple[str, type[Exception], str], ...] = (
        ("oracle", ConfigError, "cannot serve"),
        ("fixed:layer=5", OptionError, "exit point"),
        ("classifier", ArtefactError, "harness train classifier"),
    )
    for written, error, words in refusals:
        with pytest.raises(error, match=words):
            Settings((written,), info)


@pytest.mark.model
def test_the_shipped_artefacts_are_loaded_and_say_their_threshold() -> None:
    found = resolve(ModelRequest("smollm2-135m"))
    settings = Settings((), found.info)
    assert settings.default.name == "full"
    classifier = next(loaded for loaded in settings.loaded if loaded.name == "classifier")
    assert classifier.artefacts
    assert 0 < classifier.options["threshold"] < 1
    assert {"agent", "heads"} & {option for loaded in settings.loaded for option in loaded.options} == set()
