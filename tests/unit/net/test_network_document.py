"""docs/network.md has every time and every limit of the files it is about, and each as the code has it."""

import importlib
import re
from pathlib import Path

import pytest

import hopformer

DOCUMENT = (Path(hopformer.__file__).parent / "docs" / "network.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)\.(\w+)` \| ([^|]*?) \| ([^|]*) \|$", DOCUMENT, re.MULTILINE)
UNITS = {"": 1, "s": 1, "KiB": 1 << 10, "MiB": 1 << 20}
COMPLETE = (
    "dialling",
    "directory",
    "ice",
    "known_relay",
    "path_size",
    "path_tries",
    "paths",
    "relay_channels",
    "relay_desk",
    "relay_table",
    "relays",
    "stun",
)
OWN = re.compile(r"^([A-Z][A-Z0-9_]*(?:_S|_BYTES)|MAX_\w+) = ", re.MULTILINE)


def value_of(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number.replace(",", "")) * UNITS[unit]


@pytest.mark.parametrize(("module", "name", "value", "why"), ROWS, ids=[f"{row[0]}.{row[1]}" for row in ROWS])
def test_every_row_is_as_the_code_has_it(module: str, name: str, value: str, why: str) -> None:
    assert getattr(importlib.import_module(f"hopformer.net.{module}"), name) == value_of(value)
    assert value.endswith(" s") == (name.endswith("_S") and not name.endswith("PER_S"))


def test_no_row_is_there_twice_and_none_was_overlooked() -> None:
    names = [row[:2] for row in ROWS]
    assert len(set(names)) == len(names) == len(re.findall(r"^\| `", DOCUMENT, re.MULTILINE)) > 70


@pytest.mark.parametrize("module", COMPLETE)
def test_every_time_and_limit_of_a_file_has_a_row(module: str) -> None:
    source = (Path(hopformer.__file__).parent / "net" / f"{module}.py").read_text(encoding="utf-8")
    assert set(OWN.findall(source)) <= {name for where, name, *_ in ROWS if where == module}


def test_the_files_that_it_names_are_there() -> None:
    root = Path(hopformer.__file__).parent
    for link in re.findall(r"\]\(([^)]+)\)", DOCUMENT):
        assert (root / "docs" / link).exists(), link
