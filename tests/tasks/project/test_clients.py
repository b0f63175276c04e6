"""The token that server and client share, and the pairs that a client shows the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from mor.config import load_params
from mor.data.schema import Preference
from mor.errors import ConfigError
from tasks.project.clients import shared_anchors, token


@pytest.mark.parametrize("value", ["hunter2\n", "hunter2 x"])
def test_a_token_that_can_not_be_sent_is_named_by_its_variable_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MOR_TOKEN_SCENES", value)
    with pytest.raises(ConfigError, match="MOR_TOKEN_SCENES: the bearer token must be visible ASCII") as error:
        token("scenes")
    assert "hunter2" not in str(error.value)


def test_an_id_that_a_client_does_not_have_cannot_be_shared() -> None:
    params = load_params(Path(__file__).parents[3] / "params.yaml")
    shares = params.clients["scenes"].model_copy(update={"shared_anchors": ["p1", "patient 4711"]})
    params = params.model_copy(update={"clients": params.clients | {"scenes": shares}})
    pairs = [Preference(id="p1", image="x.png", prompt="?", chosen="good", rejected="bad")]
    with pytest.raises(ConfigError, match=r"clients.scenes.shared_anchors: 1 of its ids"):
        shared_anchors(params, "scenes", pairs)
