"""Fixtures that several end-to-end tests share."""

import pytest


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Prefect server is named, and tables are not wrapped."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
