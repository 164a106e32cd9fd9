"""What long-running commands log: our own lines from `RECSTREAM_LOG_LEVEL` on, libraries' from INFO on at least.

Libraries never log at DEBUG: there Kafka's clients print whole requests, with passwords, tokens and users' events.
"""

import logging
from typing import Any, Final

from streams.settings import Settings

OWN: Final = ("streams", "models", "state")
_QUIET: Final = ("aiokafka", "kafka")  # at INFO each connection, group and fetch has its line


def faust_logging(settings: Settings) -> dict[str, Any]:
    """Keywords of `faust.Worker`."""
    level = _level(settings)
    loggers = {name: {"level": level} for name in OWN} | {name: {"level": "WARNING"} for name in _QUIET}
    config = {"merge": True, "root": {"level": max(level, logging.INFO)}, "loggers": loggers}
    return {"loglevel": level, "logging_config": config}


def set_up(settings: Settings) -> None:
    """Log to standard error."""
    level = _level(settings)
    logging.basicConfig(level=max(level, logging.INFO), format="%(asctime)s %(levelname)s %(message)s")
    for name in OWN:
        logging.getLogger(name).setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setLevel(level)


def _level(settings: Settings) -> int:
    return logging.getLevelNamesMapping()[settings.log_level.upper()]
