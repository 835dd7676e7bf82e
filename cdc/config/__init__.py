"""What the operator says, read once and then never changed.

`load` reads a TOML file and the environment into one frozen `Config`, or raises one `ConfigurationError` that lists
everything that is wrong with it. Nothing below this room reads the environment. Connection strings are secrets: they
are `SecretStr`, they print without their password, and no error repeats them.
"""

from cdc.config.bootstrap import BootstrapConfig, NotificationConfig, RefreshConfig
from cdc.config.dsn import for_asyncpg, redact
from cdc.config.loading import load
from cdc.config.model import (
    ALL_TARGETS,
    Config,
    LogsConfig,
    SourceConfig,
    TableConfig,
    TargetConfig,
    WorkerConfig,
    insert_only_name,
)
from cdc.config.show import as_toml

__all__ = [
    "ALL_TARGETS",
    "BootstrapConfig",
    "Config",
    "LogsConfig",
    "NotificationConfig",
    "RefreshConfig",
    "SourceConfig",
    "TableConfig",
    "TargetConfig",
    "WorkerConfig",
    "as_toml",
    "for_asyncpg",
    "insert_only_name",
    "load",
    "redact",
]
