"""The one error tree of recstream.

RecstreamError
├── SettingsError      (streams.errors)    a setting is missing or invalid
├── BrokerError        (streams.errors)    Kafka cannot be reached or refuses
├── TokenError         (streams.oauth)     no access token for Kafka can be had
├── TableError         (models.tables)     an input table cannot be read
├── VersionRefused     (models.registry)   a model version is corrupt or does not fit
└── StateError         (state.errors)      a state file or record cannot be used
"""


class RecstreamError(Exception):
    """What happened, why, and the command or change that fixes it.

    Args:
        what: The fact, one sentence without a full stop.
        why: The cause as far as it is known.
        fix: What the reader should do next, best a command.
    """

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(". ".join(part.rstrip(".") for part in (what, why, fix) if part) + ".")


class StateError(RecstreamError):
    """A state record, snapshot or store cannot be used."""
