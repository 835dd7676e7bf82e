"""What is in force, written the way the file is: ``cdc config show`` prints it, and it can be read again.

Connection strings appear without their password, and other secrets not at all.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cdc.config.model import Config


def as_toml(config: Config) -> str:
    """The whole configuration as TOML, defaults included, secrets left out."""
    data = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    data["worker"].pop("metrics_password", None)
    data["bootstrap"].pop("scalingo_api_token", None)
    for notified in data["notifications"]:
        notified.pop("token", None)
    blocks = [[f"{name} = {_value(value)}" for name, value in data.items() if not isinstance(value, dict | list)]]
    for name, section in data.items():
        if name == "targets":
            blocks.extend(_section(f"[targets.{target}]", keys) for target, keys in section.items())
        elif name == "notifications":
            blocks.extend(_section("[[notifications]]", keys) for keys in section)
        elif isinstance(section, dict):
            blocks.append(_section(f"[{name}]", section))
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def _section(title: str, keys: dict[str, Any]) -> list[str]:
    lines = [title]
    for name, value in keys.items():
        if name == "tables":
            lines.extend(f"tables.{_key(table)} = {_value(_short(wanted))}" for table, wanted in value.items())
        else:
            lines.append(f"{name} = {_value(value)}")
    return lines


def _short(wanted: dict[str, Any]) -> Any:
    """A list of columns where none is renamed."""
    columns = wanted.get("columns")
    if wanted.pop("deletes") == "keep":
        return wanted | {"deletes": "keep"}
    if columns is None or any(source != target for source, target in columns.items()):
        return wanted
    return wanted | {"columns": list(columns)} if "to" in wanted else list(columns)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
