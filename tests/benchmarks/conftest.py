from tests.models.conftest import build_version

__all__ = ["build_version"]
