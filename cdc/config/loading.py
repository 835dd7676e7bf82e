"""Reads the configuration: a TOML file, then the environment over it, then one complete check.

Where a value is given twice, the variable ``CDC_<SECTION>__<KEY>`` wins over the file. What neither gives is taken from
the variables of the tool that came before (`cdc.config.legacy`). In the file, ``${NAME}``
stands for a variable and ``$$`` for a dollar sign; the environment's own values are taken as they are. An empty
``CDC_`` variable counts as not set.

Everything that is wrong is reported at once, each problem with the place it was written in and the nearest valid key;
no problem repeats a value, because a value may be a secret.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from cdc.config.bootstrap import BootstrapConfig, NotificationConfig, RefreshConfig
from cdc.config.legacy import fill_in
from cdc.config.model import (
    Config,
    LogsConfig,
    SourceConfig,
    TableConfig,
    TargetConfig,
    WorkerConfig,
)
from cdc.errors import ConfigurationError

DEFAULT_FILE = "cdc.toml"
PREFIX = "CDC_"
_OTHERS_OF_OURS = ("CDC_CONFIG", "CDC_UNCOMPILED", "CDC_TEST_", "CDC_DEMO_")
"""Variables with our prefix that are no part of the configuration."""

_VARIABLE = re.compile(r"\$(?:(?P<escape>\$)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<bad>\{))")

Key = tuple[str, ...]


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration in force.

    Args:
        path: The TOML file. `None` takes ``CDC_CONFIG``, then ``cdc.toml`` where there is one.
        environ: The environment; the process's own unless given.

    Raises:
        ConfigurationError: one for all problems, each on a line of its own.
    """
    environ = os.environ if environ is None else environ
    file, document = _read_file(path, environ)
    is_absent = document is None
    problems: dict[Key, str] = {}
    from_file = _interpolate(document or {}, environ, (), problems)
    unreadable = set(problems)
    from_environment = _read_environment(environ, problems)
    merged, from_the_old = fill_in(_merge(from_file, from_environment), environ, problems)
    origin = _Origin(None if is_absent else file, from_file, from_environment, from_the_old, environ)
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            key = _key_of(detail)
            consequence = detail["type"] == "default_factory_not_called" or any(key[: len(k)] == k for k in unreadable)
            if not consequence:
                problems.setdefault(key, _sentence(detail, key, merged))
        config = None
    if config is None or problems:
        raise ConfigurationError(_no_file(file) * is_absent + _report(problems, origin)) from None
    return config


def _no_file(file: Path) -> str:
    """What comes first where the default file is not there: that explains most of what is missing."""
    return (
        f"there is no file {file} here, and neither --config nor CDC_CONFIG names another; the environment alone does "
        f"not say enough\n"
    )


def _read_file(path: Path | None, environ: Mapping[str, str]) -> tuple[Path, dict[str, Any] | None]:
    """The file that counts and what it says; `None` for a default file that is not there."""
    asked = path or (Path(environ["CDC_CONFIG"]) if environ.get("CDC_CONFIG") else None)
    file = asked or Path(DEFAULT_FILE)
    try:
        return file, tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if asked is None:
            return file, None
        raise ConfigurationError(f"{file}: there is no such file (given by --config or CDC_CONFIG)") from None
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file}: is not valid TOML: {error}") from None


def _interpolate(value: Any, environ: Mapping[str, str], key: Key, problems: dict[Key, str]) -> Any:
    """The value with every ``${NAME}`` replaced; a missing variable is noted under its key."""
    if isinstance(value, dict):
        return {name: _interpolate(item, environ, (*key, name), problems) for name, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, environ, key, problems) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match["escape"]:
            return "$"
        if match["bad"]:
            problems[key] = "holds ${ without a variable's name and }; a dollar sign itself is written $$"
        elif match["name"] in environ:
            return environ[match["name"]]
        else:
            problems[key] = f"needs the environment variable {match['name']}, which is not set"
        return ""

    return _VARIABLE.sub(replace, value)


class _Environment(EnvSettingsSource):
    """The ``CDC_`` variables of a given environment, as nested keys; lists and tables may be JSON."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(Config)
        self.env_vars = {name.lower(): value for name, value in environ.items() if value}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """JSON where it is JSON; otherwise the text, which validation then judges under its own key."""
        try:
            return json.loads(value)
        except ValueError:
            return value


def _read_environment(environ: Mapping[str, str], problems: dict[Key, str]) -> dict[str, Any]:
    """What the ``CDC_`` variables say; those that name no section are noted."""
    sections = list(Config.model_fields)
    for name in sorted(environ):
        if name.startswith(PREFIX) and not name.startswith(_OTHERS_OF_OURS):
            section = name.removeprefix(PREFIX).lower().partition("__")[0]
            if section not in sections:
                nearest = get_close_matches(section, sections, 1, 0.5)
                rest = name[len(PREFIX) + len(section) :]
                hint = f"; did you mean {PREFIX}{nearest[0].upper()}{rest}?" if nearest else ""
                problems[("environment", name)] = f"is no variable of cdc{hint}"
    return _Environment(environ)()


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both, nested; where both have a value, ``above`` wins."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _key_of(detail: ErrorDetails) -> Key:
    """Where a problem is, without the steps that only pydantic's model has."""
    return tuple(str(step) for step in detail["loc"] if step != "[key]" and not isinstance(step, int))


def _model_at(key: Key) -> type[BaseModel] | None:
    """The model whose keys stand under this one."""
    match key:
        case ():
            return Config
        case ("source",):
            return SourceConfig
        case ("worker",):
            return WorkerConfig
        case ("logs",):
            return LogsConfig
        case ("bootstrap",):
            return BootstrapConfig
        case ("refresh",):
            return RefreshConfig
        case ("notifications",):
            return NotificationConfig
        case ("targets", _):
            return TargetConfig
        case ("targets", _, "tables", _):
            return TableConfig
        case _:
            return None


def _sentence(detail: ErrorDetails, key: Key, data: dict[str, Any]) -> str:
    """What is wrong, in our words where pydantic's are about Python."""
    model = _model_at(key[:-1])
    if detail["type"] == "extra_forbidden" and model is not None:
        valid = [field.alias or name for name, field in model.model_fields.items()]
        nearest = get_close_matches(key[-1], valid, 1, 0.5)
        return "is no key of the configuration; " + (
            f"did you mean {nearest[0]}?" if nearest else f"valid here: {', '.join(valid)}"
        )
    if detail["type"] == "missing":
        match key:
            case ("source", "dsn"):
                return f"is missing: give it in the file or as {_variable(key)} or SOURCE_DATABASE_URL"
            case ("targets", _, "dsn"):
                legacy = " or DATABASE_URL" if len(data["targets"]) == 1 else ""
                return f"is missing: give it in the file or as {_variable(key)}{legacy}"
            case _:
                return "is missing"
    if detail["type"] == "too_short" and key == ("targets",):
        return "is missing: give at least one target, as in [targets.internal]"
    if detail["type"] == "literal_error":
        valid = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        given = _value_at(data, key)
        nearest = get_close_matches(given.lower(), valid, 1, 0.5) if isinstance(given, str) else []
        return f"should be {detail['ctx']['expected']}" + (f"; did you mean {nearest[0]}?" if nearest else "")
    if detail["type"] == "string_pattern_mismatch":
        return f"does not match the pattern {detail['ctx']['pattern']}"
    if detail["type"] == "model_type" or detail["type"] == "dict_type":
        return "should be a table of keys"
    return re.sub(r"^(Value error, |(Input|String|Value) (?=should))", "", detail["msg"])


class _Origin:
    """Says where a key was written: in which variable, or in the file."""

    def __init__(
        self,
        file: Path | None,
        from_file: dict[str, Any],
        from_environment: dict[str, Any],
        from_the_old: Mapping[Key, str],
        environ: Mapping[str, str],
    ) -> None:
        self._file = file
        self._from_file = from_file
        self._from_environment = from_environment
        self._from_the_old = from_the_old
        self._names = {name.upper() for name in environ}

    def of(self, key: Key) -> str:
        if key[:1] == ("environment",):
            return f"environment variable {key[1]}"
        name = _dotted(key) or "the configuration"
        for length in range(len(key), 0, -1):
            if key[:length] in self._from_the_old:
                return f"{name} (environment variable {self._from_the_old[key[:length]]})"
            if _variable(key[:length]) in self._names and _has(self._from_environment, key[:length]):
                return f"{name} (environment variable {_variable(key[:length])})"
        return name if self._file is None else f"{self._file}: {name}"

    def hint(self, key: Key) -> str:
        """For a target that only the environment knows: the one of the file that was probably meant."""
        known = self._from_file.get("targets")
        if key[:1] != ("targets",) or len(key) < 2 or not isinstance(known, dict) or not known or key[1] in known:
            return ""
        nearest = get_close_matches(key[1], list(known), 1, 0.5)
        return f" ({self._file} has no target {key[1]}" + (f"; did you mean {nearest[0]}?)" if nearest else ")")


def _report(problems: dict[Key, str], origin: _Origin) -> str:
    lines = [f"{origin.of(key)} {sentence}{origin.hint(key)}" for key, sentence in _ordered(problems)]
    return lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} problems:", *(f"  - {line}" for line in lines)])


def _ordered(problems: dict[Key, str]) -> Iterator[tuple[Key, str]]:
    yield from sorted(problems.items(), key=lambda item: item[0])


def _has(data: Any, key: Key) -> bool:
    for step in key:
        if not isinstance(data, dict) or step not in data:
            return False
        data = data[step]
    return True


def _value_at(data: Any, key: Key) -> Any:
    for step in key:
        data = data.get(step) if isinstance(data, dict) else None
    return data


def _variable(key: Key) -> str:
    return PREFIX + "__".join(step.upper() for step in key)


def _dotted(key: Key) -> str:
    return ".".join(step if re.fullmatch(r"[A-Za-z0-9_-]+", step) else f'"{step}"' for step in key)
