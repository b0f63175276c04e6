"""Settings: every shipped file loads, and every mistake is named with its fix."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mor.config import Boundary, GrpoSettings, RouterSettings, load_params, parse_params
from mor.errors import ConfigError

SHIPPED = yaml.safe_load(Path("params.yaml").read_text())


def changed(key: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(SHIPPED)
    *sections, last = key.split(".")
    target = values
    for section in sections:
        target = target[section]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return values


def test_the_shipped_settings_load() -> None:
    assert load_params(Path("params.yaml")).clients.keys() == {"documents", "medical", "scenes"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("router.kin", "uniform", "router.kin: unknown key.*known keys here: kind, hidden"),
        ("router.kind", "unifrom", "router.kind: .*'means'.*got 'unifrom'"),
        ("grpo.beta", 0.0, "grpo.beta: .*greater than 0"),
        ("grpo.steps", "50", "grpo.steps: .*integer; got '50'"),
        ("seed", None, "seed: missing key"),
        ("clients.mean", {"backbone": "x"}, "clients: .*client name 'mean'"),
        ("clients.scenes", {}, "clients.scenes.backbone: missing key"),
        ("fedvqa.error_rate", 1.5, "fedvqa.error_rate: .*less than or equal to 1"),
    ],
)
def test_a_wrong_key_is_named_with_its_fix(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_params(changed(key, value))


def test_a_webhook_in_the_settings_is_refused_with_the_way_out_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"nightly.webhook: .*secret.*set the environment variable MOR_WEBHOOK") as refused:
        parse_params(changed("nightly.webhook", "https://hooks.example/T0/hunter2"))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nightly.git_remote", "https://me:hunter2@git.example/x.git"),
        ("nightly.git_remote", "https://hunter2@git.example/x.git"),
        ("nightly.git_remote", "ssh://git:hunter2@git.example/x.git"),
        ("clients.scenes.url", "https://me:hunter2@client.example:8443"),
        ("clients.scenes.url", "https://me:hunter2@client.example?x"),
        ("clients.scenes.url", ["https://me:hunter2@client.example"]),
    ],
)
def test_an_address_with_a_login_is_refused_and_not_repeated(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key) as refused:
        parse_params(changed(key, value))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "remote", ["", "origin", "git@git.example:a/b.git", "ssh://git@git.example/a/b", "https://git.example/@a"]
)
def test_an_address_without_a_password_is_taken(remote: str) -> None:
    assert parse_params(changed("nightly.git_remote", remote)).nightly.git_remote == remote


def test_a_message_with_braces_is_shown_as_it_is() -> None:
    with pytest.raises(ConfigError, match=r"client name '\{x\}' must match"):
        parse_params(changed("clients", {"{x}": {"backbone": "y"}}))


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run from the project's folder"):
        load_params(tmp_path / "params.yaml")


def test_defaults_of_the_library_are_those_of_the_shipped_settings() -> None:
    params = load_params(Path("params.yaml"))
    assert params.boundary == Boundary()
    assert params.router == RouterSettings()
    assert params.grpo == GrpoSettings()


@pytest.mark.parametrize("key", ["router.kind", "grpo.beta", "boundary.epsilon"])
def test_a_file_names_even_settings_with_a_default(key: str) -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    section, name = key.split(".")
    del values[section][name]
    with pytest.raises(ConfigError, match=f"params.yaml: {key}: missing key: add it"):
        parse_params(values)
