"""Operations and security pages: settings, commands, files and figures they name exist."""

import re
from pathlib import Path

import pytest

from state.record import record_dtype
from tests.deploy.commands import parsed, unknown_settings
from tests.deploy.exported import DEPLOY, ROOT, exported

PAGES = {name: (ROOT / "docs" / f"{name}.md") for name in ("operations", "security")}
EACH = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())


@EACH
def test_settings_exist(page: Path) -> None:
    compose = set(re.findall(r"\$\{(RECSTREAM_\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert unknown_settings(set(re.findall(r"RECSTREAM_\w+", page.read_text())) - compose) == []


@EACH
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"\bdeploy/[\w./*-]*\w", text):
        assert list(ROOT.glob(path)), path


@EACH
def test_commands_exist(page: Path) -> None:
    for command in re.findall(r"`recstream ([a-z][^`]*)`", page.read_text()):
        words = command.replace(" N", " 2").split()
        if words == ["replay"]:
            continue  # named, not shown
        if words[:2] == ["models", "show"]:
            words.append("1")
        assert parsed(words)


def test_metrics_exist() -> None:
    known = {name.removesuffix(suffix) for name in exported() for suffix in ("", "_total", "_bucket")}
    for name in re.findall(r"`(recstream_\w+)`", PAGES["operations"].read_text()):
        assert name in known | exported().keys(), name


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    runbook = PAGES["operations"].read_text().partition("# Runbook")[2]
    alerts = re.findall(r"alert: (\w+)", (DEPLOY / "prometheus" / "rules" / "alerts.yml").read_text())
    assert sorted(re.findall(r"^### (\w+)$", runbook, re.MULTILINE)) == sorted(set(alerts))


def test_the_size_of_a_user_is_that_of_the_record() -> None:
    text = PAGES["operations"].read_text()
    assert f"{record_dtype(128).itemsize} bytes (GRU of 128; {record_dtype(1).itemsize - 2} + 2 per number" in text
