"""Secrets are hidden, and nothing else is: a value that is changed on its way to disk changes the run."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlexp.config import ConfigError
from rlexp.config.redaction import (
    REDACTED,
    RedactingFormatter,
    hidden_settings,
    hide,
    redact,
    redact_source,
    remember_secrets,
    reveal,
    with_secrets,
)
from rlexp.experiment import load_config, read_config

NAMES = ["api_key", "token", "end_token", "password", "secret", "credentials", "auth_token", "private_key"]


@given(st.sampled_from(NAMES), st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()))
def test_numbers_and_booleans_are_never_secrets(name: str, value: Any) -> None:
    config = {"env": {"kwargs": {name: value, "list": [value]}}}
    assert redact(config) == config
    assert redact([f"env.kwargs.{name}={value}"]) == [f"env.kwargs.{name}={value}"]


@pytest.mark.parametrize("value", ["<eos>", "eos", "[PAD]", "end of text", "${oc.env:TOKEN}", ""])
def test_a_token_of_a_vocabulary_is_none(value: str) -> None:
    config = {"end_token": value, "token": value, "max_tokens": "many1234"}
    assert redact(config) == config


@pytest.mark.parametrize("name", ["api_key", "password", "db.password", "secret", "client_secret", "auth_token"])
def test_what_is_named_a_secret_is_hidden(name: str) -> None:
    assert redact({name: "hunter"}) == {name: REDACTED}
    assert redact([f"+env.kwargs.{name}=hunter"]) == [f"+env.kwargs.{name}={REDACTED}"]


@pytest.mark.parametrize("text", ["{a: 1, api_key: hunter}", "{b: {api_key: 'hunter, x'}}", '[{api_key: "hunter"}]'])
def test_a_secret_in_a_mapping_of_the_command_line_is_hidden(text: str) -> None:
    (found,) = redact([f"+env.kwargs={text}"])
    assert "hunter" not in found
    assert f"api_key: {REDACTED}" in found
    assert redact(["+env.kwargs={a: 1, token: <eos>}"]) == ["+env.kwargs={a: 1, token: <eos>}"]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"api_key": ["hunter2hunter2"]},
        {"credentials": {"user": "bob", "value": "hunter2hunter2", "port": 5432, "of": "${oc.env:KEY}"}},
        {"url": "redis://:hunter2hunter2@host/0"},
    ],
)
def test_a_secret_of_several_parts_is_hidden_whole(kwargs: dict[str, Any]) -> None:
    config = {"env": {"kwargs": kwargs}}
    hidden = redact(config)
    assert "hunter2" not in repr(hidden)
    assert redact(hidden) == hidden
    for kept in ("5432", "${oc.env:KEY}", "host/0"):
        assert (kept in repr(kwargs)) == (kept in repr(hidden))
    assert "hunter2hunter2" in "".join(hidden_settings(config).values())
    remember_secrets(config)
    if "url" not in kwargs:
        assert redact("log: hunter2hunter2") == f"log: {REDACTED}"


@pytest.mark.parametrize(
    "line",
    [
        *(
            "api_key: hunter2",
            '  "password": "hunter2",',
            'login(api_key="hunter2", user=1)',
            "API_KEY: str = 'hunter2'",
        ),
        *("password = hunter2  # mine", 'self.client_secret="hunter2"', "AUTH_TOKEN: str | None = 'hunter2'"),
    ],
)
def test_a_secret_in_a_line_of_code_or_configuration_is_hidden(line: str) -> None:
    (found,) = redact_source([line])
    assert "hunter2" not in found
    assert found == line.replace("hunter2", REDACTED)


@pytest.mark.parametrize(
    "line", ["lr: 0.1  # api_key", "x = {'a': 'hunter2'}", "tokens: many", "api_key = ${oc.env:KEY}", ""]
)
def test_a_line_without_a_secret_stays(line: str) -> None:
    assert redact_source([line]) == [line]


STATE = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(), st.sampled_from(["hunter2hunter2", "Bearer hunter2hunter2", "pw"])),
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.one_of(st.text(), st.integers()), inner)
    ),
)


@given(STATE)
def test_state_without_secrets_is_the_same_with_them_again(state: Any) -> None:
    hidden = hidden_settings({"env": {"api_key": "hunter2hunter2", "list": [{"password": "pw", "name": "env.list"}]}})
    assert hidden == {"env.api_key": "hunter2hunter2", "env.list.0.password": "pw"}
    kept = hide(state, hidden)
    assert "hunter2hunter2" not in repr(kept)
    assert reveal(kept, hidden) == state
    today = hidden | {"env.api_key": "another key"}
    assert reveal(hide(["Bearer hunter2hunter2"], hidden), today) == ["Bearer another key"]


@pytest.mark.parametrize(
    "key",
    ["sk-" + "a1" * 15, "ghp_" + "a1B2" * 9, "AKIA" + "ABCD1234EFGH5678", "glpat-" + "a1" * 12, "hf_" + "aB3" * 12],
)
def test_what_looks_like_a_key_is_hidden_wherever_it_stands(key: str) -> None:
    assert redact({"note": [f"see {key}."]}) == {"note": [f"see {REDACTED}."]}
    assert redact({"hidden_token": key}) == {"hidden_token": REDACTED}


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "GH_PAT", "DB_PASS", "API_KEYS", "SENTRY_DSN", "MY_PASSPHRASE"])
def test_a_secret_of_the_environment_is_hidden_wherever_it_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "tok-123456789")
    assert redact({"tok-123456789": [{"a tok-123456789": "tok-123456789"}]}) == {
        REDACTED: [{f"a {REDACTED}": REDACTED}]
    }


def test_a_variable_that_holds_a_word_or_a_number_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORT_KEY", "inverted_double_pendulum")
    monkeypatch.setenv("RUN_TOKEN", "12345678")
    monkeypatch.setenv("SERVICE_TOKEN", "tok-123456789")
    config = {"name": "inverted_double_pendulum", "seed": "12345678", "tag": "tok-123456789"}
    assert redact(config) == config | {"tag": REDACTED}


def test_a_hidden_value_that_builds_something_must_be_given() -> None:
    values = load_config(["env=pendulum", "logger=none", "+env.kwargs.api_key=hunter2", "env.kwargs.g=9.0"]).to_dict()
    saved = redact(values)
    assert saved["env"]["kwargs"] == {"api_key": REDACTED, "g": 9.0}
    with pytest.raises(ConfigError, match=r"env\.kwargs\.api_key\n.*env\.kwargs\.api_key="):
        read_config(saved, trust=[])
    found = read_config(saved, [], {"env.kwargs.api_key": "hunter2"})
    assert found.to_dict() == values
    with pytest.raises(ConfigError, match=r"env\.kwargs\.g\n.*not|no setting"):
        read_config(saved, [], {"env.kwargs.api_key": "hunter2", "env.kwargs.g": "1"})


def test_a_hidden_tag_of_a_logger_keeps_nothing_from_being_evaluated() -> None:
    values = {"logger": {"tags": [REDACTED]}, "env": {}}
    assert with_secrets(values, {}) == (values, [])


def test_a_line_of_the_log_holds_nothing_that_a_terminal_obeys() -> None:
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "of a stranger: %s\n\tmore", ("\x1b]0;owned\x07",), None)
    assert RedactingFormatter("%(message)s").format(record) == "of a stranger: \\x1b]0;owned\\x07\n\tmore"
