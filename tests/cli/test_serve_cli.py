"""`lace serve`: what it refuses before it listens."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from command import Run
from lace.serve.settings import ServerSettings, is_loopback, read_api_keys


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_a_public_address_needs_keys(host: str, lace: Callable[..., Run]) -> None:
    run = lace("serve", "--host", host)
    assert run.returncode == 2
    assert run.stderr.startswith(f"lace: error: {host} can be reached from other machines: give --api-key-file")
    assert run.stderr.count("\n") == 1
    assert ServerSettings("m", host=host, without_key=True).host == host
    assert ServerSettings("m", host=host, api_keys=frozenset({"k"})).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.5.6.7"])
def test_loopback_does_not(host: str) -> None:
    assert is_loopback(host)
    assert ServerSettings("m", host=host).host == host


def test_key_file(tmp_path: Path, lace: Callable[..., Run]) -> None:
    path = tmp_path / "keys"
    path.write_text("# team A\nfirst\n\n  second  \n")
    assert read_api_keys(path) == {"first", "second"}
    path.write_text("# nobody\n")
    run = lace("serve", "--api-key-file", str(path))
    assert (run.returncode, "holds no API key" in run.stderr) == (2, True)
    path.write_text("with blank\n")
    with pytest.raises(ValueError, match="printable ASCII"):
        read_api_keys(path)
    assert lace("serve", "--api-key-file", str(tmp_path / "none")).returncode == 2
    path.write_bytes(b"\xff\xfe")
    run = lace("serve", "--api-key-file", str(path))
    assert (run.returncode, f"{path} is no text" in run.stderr) == (2, True)


@pytest.mark.parametrize(
    "wrong",
    [("--threads", "0"), ("--port", "70000"), ("--max-concurrent", "0"), ("--cache-tokens", "0"), ("--host", "")],
    ids=str,
)
def test_bad_settings_are_named(wrong: tuple[str, str], lace: Callable[..., Run]) -> None:
    run = lace("serve", *wrong)
    assert run.returncode == 2
    assert run.stderr.startswith(f"lace: error: {wrong[0].removeprefix('--')} ")
    assert run.stderr.count("\n") == 1


def test_an_address_in_use_is_one_line(lace: Callable[..., Run]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        run = lace("serve", "--port", str(port))
    assert run.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in run.stderr


def test_a_model_that_is_not_there_ends_the_server(lace: Callable[..., Run], tmp_path: Path) -> None:
    run = lace("serve", "--model", str(tmp_path / "none"), "--port", "0")
    assert run.returncode == 2
    assert "lace: error:" in run.stderr
