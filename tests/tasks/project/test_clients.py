"""The token that server and client share."""

from __future__ import annotations

import pytest

from mor.config import ConfigError
from tasks.project.clients import token


@pytest.mark.parametrize("value", ["hunter2\n", "hunter2 x"])
def test_a_token_that_can_not_be_sent_is_named_by_its_variable_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MOR_TOKEN_SCENES", value)
    with pytest.raises(ConfigError, match="MOR_TOKEN_SCENES: the bearer token must be visible ASCII") as error:
        token("scenes")
    assert "hunter2" not in str(error.value)
