"""Commands and their options, and what is registered."""

from __future__ import annotations

import re
from typing import Any

from tests.reference.command import harness


def record() -> dict[str, Any]:
    """Return command → options that its help names, kind → registered names, and the texts of all of them."""
    front = harness("--help").out
    commands = re.findall(r"^│ ([a-z][a-z-]+) {2,}\S", front, re.MULTILINE)
    texts = {"help": front}
    options: dict[str, list[str]] = {}
    for command in commands:
        text = texts[f"help {command}"] = harness(command, "--help").out
        options[command] = _options(text)
        for below in re.findall(r"^│ ([a-z][a-z-]+) {2,}\S", text, re.MULTILINE) if command == "train" else ():
            text = texts[f"help {command} {below}"] = harness(command, below, "--help").out
            options[f"{command} {below}"] = _options(text)
    listed = texts["list"] = harness("list").out
    names = _names(listed)
    for strategy in names.get("strategies", ()):
        texts[f"show {strategy}"] = harness("show", strategy).out
    return {"options": options, "names": names, "texts": texts}


def _names(listed: str) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    kind = ""
    for line in map(str.rstrip, listed.splitlines()):
        if re.fullmatch(r"[a-z]+([ _-][a-z]+)*", line):
            kind = line
            names[kind] = []
        elif kind and (found := re.match(r"([a-z0-9][\w.-]*) {2,}", line)) and found[1] != "name":
            names[kind].append(found[1])
    return names


def _options(text: str) -> list[str]:
    return sorted({flag for line in text.splitlines() for flag in re.findall(r"^│ (?:-\w, )?(--[a-z-]+)", line)})
