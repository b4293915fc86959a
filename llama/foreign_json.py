"""Typed reads from JSON that somebody else wrote: every value is checked, and what is wrong is said in one line.

A key that is absent or null takes the default. Unknown keys are left alone here; config.py says which of them matter.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, ModelError


def read_json_object(path: Path, error: type[ModelError] = ConfigError) -> dict[str, object]:
    """The JSON object in ``path``.

    Raises:
        ModelError: as ``error``: the file is missing, unreadable, not JSON or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} is missing; a model folder in Hugging Face layout has one") from None
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}") from None
    except (ValueError, RecursionError) as failure:
        raise error(f"{path} is not valid JSON: {str(failure).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


@dataclass(frozen=True, slots=True)
class Fields:
    """The keys of one JSON object. ``source`` is the file (and the key inside it) that messages name."""

    source: str
    values: Mapping[str, object]

    def get(self, key: str) -> object:
        """The raw value, or None where the key is absent."""
        return self.values.get(key)

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """An integer of ``low .. high``, both included; 4096.0 counts as 4096.

        Raises:
            ConfigError: it is anything else.
        """
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A finite number of ``low .. high``, both included.

        Raises:
            ConfigError: it is anything else.
        """
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low:g} to {high:g}")
        assert math.isfinite(value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
            ConfigError: it is anything else.
        """
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string.

        Raises:
            ConfigError: it is anything else.
        """
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; none where the key is absent.

        Raises:
            ConfigError: it is anything else.
        """
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; none where the key is absent.

        Raises:
            ConfigError: it is anything else.
        """
        value = self.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
            raise self.wrong(key, "a token id or a list of token ids")
        return tuple(ids)

    def object(self, key: str) -> "Fields | None":
        """The object under ``key``, or None where it is absent or null.

        Raises:
            ConfigError: it is anything else.
        """
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(f"{self.source}: {key}", value)

    def wrong(self, key: str, expected: str) -> ConfigError:
        """The error for a value that is not what ``expected`` says."""
        return ConfigError(f"{self.source}: {key} is {reprlib.repr(self.get(key))}; expected {expected}")
