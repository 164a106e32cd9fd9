"""Secrets that come in files, as Docker and Kubernetes give them: `RECSTREAM_<NAME>_FILE` beside `RECSTREAM_<NAME>`.

A secret is given by the environment (or `.env`) or by a file, never by a command option: options stand in the list of
processes and in shells' histories.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from streams.errors import SettingsError

SUFFIX: Final = "_file"
_MAX_BYTES: Final = 64 * 1024  # a secret is short; a path that names something else must not fill the memory


def fill_in(given: Mapping[str, Any], names: Iterable[str], prefix: str) -> dict[str, Any]:
    """Settings with every secret that is named by a file read from it.

    Args:
        given: Settings by name as they were given; a secret `x` may be given as `x` or as the path `x_file`.
        names: Names of the secrets.
        prefix: Of the variables, for messages.

    Raises:
        SettingsError: a secret is given twice, or its file cannot be read or is empty.
    """
    values = dict(given)
    for name in names:
        path = values.get(name + SUFFIX)
        if not path:
            continue
        variable = (prefix + name).upper()
        if _plain(values.get(name)):
            raise SettingsError(
                what=f"{variable} and {variable}{SUFFIX.upper()} are both set",
                why="it would not be clear which of them holds",
                fix=f"unset one of them; {variable}{SUFFIX.upper()} is the safer one",
            )
        values[name] = SecretStr(read_secret(Path(path), variable + SUFFIX.upper()))
    return values


def read_secret(path: Path, variable: str) -> str:
    """A secret's text without the newline at its end.

    Raises:
        SettingsError: the file cannot be read, is empty or is no text.
    """
    fix = f"set {variable} to a file that holds the secret and that this user may read"
    what = f"cannot use the secret in {path} ({variable})"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode().rstrip("\r\n")
    except OSError as error:
        raise SettingsError(what, error.strerror or str(error), fix) from error
    except UnicodeDecodeError:
        raise SettingsError(what, "it is not UTF-8 text", fix) from None  # the cause would show the bytes
    if len(data) > _MAX_BYTES:
        raise SettingsError(what, f"it is longer than {_MAX_BYTES // 1024} KiB", fix)
    if not text.strip():
        raise SettingsError(what, "it is empty", fix)
    return text


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value or "")
