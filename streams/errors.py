"""Errors of the edge."""

from state.errors import RecstreamError


class SettingsError(RecstreamError):
    """A setting is missing or invalid."""


class BrokerError(RecstreamError):
    """Kafka cannot be reached, refuses a request, or the embedded broker cannot run."""
