from __future__ import annotations

import json

import pytest

from lace.lattice.config import CONFIG_NAME, LatticeConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "all"}, "layers must be 'middle-every-other' or a list of layer numbers, not 'all'"),
        ({"layers": ()}, "layers must be distinct and at least one"),
        ({"layers": (2, 2)}, "layers must be distinct"),
        ({"kind": "rnn"}, "kind must be 'lattice' or 'mlp', not 'rnn'"),
        ({"low_dim": 0}, "low_dim must be at least 1, not 0"),
        ({"num_heads": -1}, "num_heads must be at least 1, not -1"),
        ({"max_thread_id": 0}, "max_thread_id must be at least 1"),
        ({"time_dims": 7}, "time_dims and thread_dims must be even, not 7 and 16"),
        ({"thread_dims": -2}, "time_dims and thread_dims must be even"),
        ({"visibility": "all"}, "visibility must be one of strict, causal, same_step, not 'all'"),
        ({"gate": "token"}, "gate must be 'head' or 'none', not 'token'"),
        ({"opening": "Thread:"}, "opening must hold {label}"),
    ],
)
def test_bad_setting_is_named_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is checked below)
        LatticeConfig(**settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_layers() -> None:
    assert LatticeConfig().layer_indices(8) == [4, 6]
    assert LatticeConfig().layer_indices(7) == [3, 5]
    assert LatticeConfig(layers=[3, 1]).layer_indices(4) == [1, 3]
    with pytest.raises(ValueError, match=r"layers \[4\] do not exist: the decoder has layers 0\.\.3"):
        LatticeConfig(layers=(1, 4)).layer_indices(4)


def test_save_and_load(tmp_path) -> None:
    config = LatticeConfig(
        kind="mlp", layers=(1, 3), visibility="causal", gate="none", read_self=True, opening="T{label}:"
    )
    config.save(tmp_path)
    assert LatticeConfig.load(tmp_path) == config
    assert hash(LatticeConfig.load(tmp_path)) == hash(config)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"low_dim": "wide"}', '{"layers": 4}', '{"unknown": 1}'])
def test_broken_file_is_one_clear_error(tmp_path, text: str) -> None:
    (tmp_path / CONFIG_NAME).write_text(text)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        LatticeConfig.load(tmp_path)
    assert "\n" not in str(error.value)


def test_unknown_key_is_refused() -> None:
    values = json.loads(json.dumps(LatticeConfig().to_dict())) | {"rank": 3}
    with pytest.raises(ValueError, match=r"unknown lattice settings \['rank'\]"):
        LatticeConfig.from_dict(values)
