"""Saving and loading from local directories; whatever is wrong with one is told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lace.data.vocabulary import build_tokenizer
from lace.lattice.checkpoint import BASE_NAME, WEIGHTS_NAME, load, load_shape, save, shipped_models
from lace.lattice.config import CONFIG_NAME
from lace.lattice.fingerprint import fingerprint, same_base
from lace.lattice.graft import graft, lattice_layers
from lace.lattice.size import lattice_size
from tiny import awake_model, batch, logits, plain, tiny_config, tiny_model, wake


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory with a plain model and a tokenizer."""
    directory = tmp_path / "base"
    tiny_model().save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def lattice(tmp_path: Path, base: Path) -> Path:
    """A directory with a lattice alone, which names the base."""
    directory = tmp_path / "lattice"
    save(wake(graft(load(base).model, tiny_config())), directory)
    return directory


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A directory with a whole model."""
    directory = tmp_path / "whole"
    save(awake_model(), directory, whole=True)
    return directory


def _error(source: object, kind: type[Exception] = ValueError, **options: object) -> str:
    with pytest.raises(kind) as error:
        load(source, **options)
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None  # one error, not a chain
    return str(error.value)


def test_plain_model(base: Path) -> None:
    model, tokenizer = load(base)
    assert torch.equal(logits(model, plain(batch([2]))), logits(tiny_model(), plain(batch([2]))))
    assert not lattice_layers(model)
    assert tokenizer is not None


def test_lattice_alone_roundtrip(lattice: Path, base: Path) -> None:
    model, tokenizer = load(lattice)
    given = batch([3, 2])
    assert torch.equal(logits(model, given), logits(awake_model(), given))
    assert tokenizer is not None  # the base's
    assert sorted(path.name for path in lattice.iterdir()) == sorted([CONFIG_NAME, WEIGHTS_NAME, BASE_NAME])
    assert not model.training


def test_whole_roundtrip(whole: Path) -> None:
    given = batch([3, 2])
    assert torch.equal(logits(load(whole).model, given), logits(awake_model(), given))


def test_backbone_of_a_whole_model_is_an_ordinary_model(whole: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(whole, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(model, plain(batch([2]))), logits(tiny_model(), plain(batch([2]))))


def test_tied_embeddings_roundtrip(tmp_path: Path) -> None:
    model = tiny_model("gemma2")
    assert model.config.tie_word_embeddings
    save(wake(graft(model, tiny_config())), tmp_path / "tied", whole=True)
    given = batch([3])
    assert torch.equal(logits(load(tmp_path / "tied").model, given), logits(model, given))


def test_base_can_be_given(lattice: Path, base: Path, tmp_path: Path) -> None:
    given, expected = batch([3]), logits(awake_model(), batch([3]))
    moved = base.rename(tmp_path / "moved")
    assert torch.equal(logits(load(lattice, base=moved).model, given), expected)
    assert torch.equal(logits(load(lattice, base=tiny_model()).model, given), expected)


def test_wrong_base(lattice: Path, tmp_path: Path) -> None:
    tiny_model(seed=7).save_pretrained(tmp_path / "other")
    assert "wrong base model" in _error(lattice, base=tmp_path / "other")
    assert "wrong base model" in _error(lattice, base=tiny_model("llama"))


def test_base_overwritten_with_another(lattice: Path, base: Path) -> None:
    tiny_model(seed=7).save_pretrained(base)
    assert "wrong base model" in _error(lattice)


def test_dtype(lattice: Path) -> None:
    model = load(lattice, dtype=torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert logits(model, batch([3])).isfinite().all()


def test_fingerprint_knows_the_weights_in_any_dtype(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    first = fingerprint(load(tmp_path).model)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert same_base(first, fingerprint(load(tmp_path, dtype=dtype).model))
    assert not same_base(first, fingerprint(tiny_model(seed=1)))
    trained = tiny_model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.01)
    assert not same_base(first, fingerprint(trained))


def test_lattice_alone_is_not_saved_when_the_base_was_trained_too(tmp_path: Path) -> None:
    model = graft(tiny_model(), tiny_config())
    save(model, tmp_path / "before", base="some/base")
    with torch.no_grad():
        model.model.norm.weight.mul_(1.1)
        model.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(ValueError, match="whole=True"):
        save(model, tmp_path / "after", base="some/base")
    save(model, tmp_path / "whole", whole=True)
    assert torch.equal(load(tmp_path / "whole").model.model.norm.weight, model.model.norm.weight)


def test_hub_snapshot_gives_id_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "0123abc"
    tiny_model().save_pretrained(snapshot)

    def download(repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repo_id, revision) == ("org/tiny", None) or revision == "0123abc"
        return str(snapshot)

    monkeypatch.setattr("lace.lattice.checkpoint.snapshot_download", download)
    model = graft(load("org/tiny").model, tiny_config())
    save(model, tmp_path / "lattice")
    about = json.loads((tmp_path / "lattice" / "lattice_base.json").read_text())
    assert (about["base_model"], about["revision"]) == ("org/tiny", "0123abc")
    assert lattice_layers(load(tmp_path / "lattice").model)


def test_checkpoint_of_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    graft(tiny_model(), tiny_config()).save_pretrained(tmp_path)
    assert "no lattice_config.json" in _error(tmp_path)


def test_shipped_names_are_not_shadowed_by_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "puzzles").mkdir()
    monkeypatch.chdir(tmp_path)
    assert lattice_layers(load("puzzles").model)


def _edit(path: Path, **changes: torch.Tensor | None) -> str:
    """Replaces or, with None, drops the tensor whose name ends so; returns its name."""
    state = load_file(path)
    for ending, tensor in changes.items():
        name = next(name for name in sorted(state) if name.endswith(f".{ending}"))
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    save_file(state, path, {"format": "pt"})
    return name


def test_missing_lattice_tensor(lattice: Path) -> None:
    name = _edit(lattice / WEIGHTS_NAME, null_key=None)
    assert f"lacks 1 tensors of the lattice, first {name}" in _error(lattice)


def test_lattice_shape_mismatch(lattice: Path) -> None:
    name = _edit(lattice / WEIGHTS_NAME, null_key=torch.zeros(3))
    assert f"{name} has shape (3,), not (12,)" in _error(lattice)


def test_extra_lattice_tensor(lattice: Path) -> None:
    path = lattice / WEIGHTS_NAME
    save_file({**load_file(path), "model.layers.2.self_attn.lattice.more": torch.zeros(1)}, path)
    assert "holds 1 tensors that the lattice has not" in _error(lattice)


def test_missing_base_tensor(base: Path) -> None:
    state = load_file(base / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, base / "model.safetensors", {"format": "pt"})
    assert "lack 1 tensors, first model.layers.1.mlp.up_proj.weight" in _error(base)


def test_base_shape_mismatch(base: Path) -> None:
    state = load_file(base / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 32)
    save_file(state, base / "model.safetensors", {"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight has shape (3, 32), not (48, 32)" in _error(base)


def test_pickled_weights_are_never_loaded(base: Path, whole: Path) -> None:
    for directory in (base, whole):
        (directory / "model.safetensors").unlink()
        torch.save({}, directory / "pytorch_model.bin")
        message = _error(directory)
        assert "no weights in safetensors format" in message
        assert "pytorch_model.bin" in message


def test_pickled_lattice_is_never_loaded(lattice: Path) -> None:
    (lattice / WEIGHTS_NAME).unlink()
    torch.save({}, lattice / "lattice.pt")
    assert "pickled, which is never loaded: lattice.pt" in _error(lattice)


def test_missing_lattice_weights(lattice: Path, whole: Path) -> None:
    for directory in (lattice, whole):
        (directory / WEIGHTS_NAME).unlink()
        assert "lattice.safetensors is missing" in _error(directory)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0notjson!"])
def test_corrupt_safetensors(lattice: Path, base: Path, content: bytes) -> None:
    (lattice / WEIGHTS_NAME).write_bytes(content)
    assert "not a safetensors file" in _error(lattice)
    (base / "model.safetensors").write_bytes(content)
    assert "cannot read the model" in _error(base)


def test_truncated_safetensors(lattice: Path, base: Path) -> None:
    for path in (lattice / WEIGHTS_NAME, base / "model.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    assert "not a safetensors file" in _error(lattice, base=tiny_model())
    assert "cannot read the model" in _error(base)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", "\0"])
@pytest.mark.parametrize("name", [CONFIG_NAME, BASE_NAME])
def test_corrupt_json(lattice: Path, name: str, text: str) -> None:
    (lattice / name).write_text(text)
    assert str(lattice) in _error(lattice)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "unheard-of"}'])
def test_corrupt_model_config(base: Path, text: str) -> None:
    (base / "config.json").write_text(text)
    assert str(base) in _error(base)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_corrupt_tokenizer(base: Path, text: str) -> None:
    (base / "tokenizer.json").write_text(text)
    assert "cannot read the tokenizer" in _error(base)


def test_base_record_without_a_base(lattice: Path) -> None:
    about = json.loads((lattice / BASE_NAME).read_text())
    (lattice / BASE_NAME).write_text(json.dumps({**about, "base_model": None}))
    assert "does not say what base" in _error(lattice)


@pytest.mark.parametrize("source", ["no-such/model", "no-such-model", "/no/such/directory", "a b/c d", "../nowhere"])
def test_nonexistent_model(source: str) -> None:
    assert f"no model {source!r}" in _error(source, FileNotFoundError)


def test_nonexistent_base(lattice: Path, base: Path, tmp_path: Path) -> None:
    base.rename(tmp_path / "moved")
    assert "no model" in _error(lattice, FileNotFoundError)
    (tmp_path / "empty").mkdir()
    assert "no config.json" in _error(tmp_path / "empty", FileNotFoundError)


def test_saving_needs_a_lattice_and_a_base(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="carries no lattice"):
        save(tiny_model(), tmp_path / "a")
    with pytest.raises(ValueError, match="must name its base model"):
        save(awake_model(), tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_shipped_models_are_a_list_of_names() -> None:
    assert all(isinstance(name, str) for name in shipped_models())


def test_shape_is_known_without_weights(base: Path, lattice: Path, whole: Path) -> None:
    expected = lattice_size(load(whole).model)
    for weights in base.parent.glob("*/*.safetensors"):
        weights.unlink()
    assert not lattice_layers(load_shape(base))
    for directory in (lattice, whole):
        assert lattice_size(load_shape(directory)) == expected
        assert load_shape(directory).device.type == "meta"
    (base / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_shape(lattice)
