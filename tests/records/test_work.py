"""A counter is declared once: whoever declares one more finds it wherever the work of a generation is shown."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from harness.records import SampleRecord
from harness.records.work import COUNTERS, Discarded, DraftWork, Work

DECLARED = """
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
import sys


class OneMore(SourceFileLoader):
    def get_code(self, name):
        source, last = self.get_data(self.path).decode(), "    exit_layers: Annotated["
        assert source.count(last) == 1
        declared = 'made_up_bytes: Annotated[Count, Field(description="counted by a test")] = 0'
        return compile(source.replace(last, f"    {declared}\\n{last}"), self.path, "exec")


class Finder:
    @staticmethod
    def find_spec(name, path, target=None):
        if name == "harness.records.work":
            file = f"{path[0]}/work.py"
            return spec_from_file_location(name, file, loader=OneMore(name, file))


sys.meta_path.insert(0, Finder)
"""
SHOWN = """
import json
from harness.api.columns import SAMPLES, columns, frame
from harness.decoding.generation import Generation
from harness.records import SampleRecord, Work
from harness.serving.completions import EarlyExitReport, Finished, Prompt, Setting
from strategies.full import Full

made = Generation(token_ids=[5, 7], exit_layers=[4, 2])
made.made_up_bytes += 3
work = Work.of(made)
line = SampleRecord(window=0, operating_point="full", task="t", sample_id="a", **vars(work)).model_dump_json()
samples = frame(SAMPLES, [SampleRecord.model_validate_json(line)])
full = Setting("full", {}, Full())
done = Finished("", "", "length", (), Prompt((1,)), 0, full, "none", 4, work, 0, 0, 0, None, "none")
answer = EarlyExitReport.model_validate(done)
(said,) = columns().query("column == 'made_up_bytes'").itertuples()
print(json.dumps([json.loads(line)["made_up_bytes"], int(samples.made_up_bytes[0]), answer.counts["made_up_bytes"],
                  (work + work).made_up_bytes, [said.unit, said.meaning]]))
"""


@pytest.mark.slow
def test_a_counter_that_is_declared_and_counted_is_in_records_frames_and_answers() -> None:
    ran = subprocess.run([sys.executable, "-c", DECLARED + SHOWN], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [3, 3, 3, 6, ["bytes", "counted by a test"]]


def test_a_record_without_tokens_has_cost_nothing() -> None:
    """A black box's, which does not say what it did."""
    sample = SampleRecord(window=0, operating_point="it", task="t", sample_id="a", prompt_ids=(1, 2))
    assert set(sample.decode_amounts().values()) == {0}


@pytest.mark.parametrize("tokens", [0, 3, 4096])
def test_its_text_is_its_counters_and_no_page_of_tokens(tokens: int) -> None:
    work = Work(**{name: place for place, name in enumerate(COUNTERS)}, drafting=DraftWork(passes=7))
    work.exit_layers, work.drafted_at, work.accepted = (12,) * tokens, (4,) * tokens, (True,) * tokens
    work.discarded = tuple(Discarded(place, (1, 2), (4, 4), ("a", "b")) for place in range(tokens))
    text = repr(work)
    named = [part.partition("=")[0] for part in text.removeprefix("Work(").split(", ")]
    assert named[: len(COUNTERS) - 1] == list(COUNTERS[1:])  # the first one is 0
    assert all(f"{name}={place}" in text for place, name in enumerate(COUNTERS) if place)
    assert "passes=7" in text
    assert ("exit_layers" in text) == bool(tokens)
    assert len(text) < 2000
    if tokens > 100:
        assert f"exit_layers=<{tokens} values>" in text
