"""Saving and loading: a lattice alone beside the name of its base model, or the whole model.

A directory of either kind holds `lattice_config.json`, `lattice.safetensors` and `lattice_base.json`. A lattice alone
needs its base from elsewhere: a hub id or directory, a revision, and a fingerprint that tells a wrong base. A whole
model holds the base beside it in the ordinary transformers format, so that any other tool reads the backbone from the
same directory. Weights are safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lace.lattice.config import CONFIG_NAME, LatticeConfig
from lace.lattice.fingerprint import fingerprint, same_base
from lace.lattice.graft import graft

WEIGHTS_NAME = "lattice.safetensors"
BASE_NAME = "lattice_base.json"
SHIPPED_DIRECTORY = Path(__file__).parents[1] / "models"
HUB_FILES = ["*.json", "model*.safetensors", WEIGHTS_NAME, "tokenizer*", "*.model", "*.txt", "*.jinja"]
SHAPE_FILES = ["config.json", CONFIG_NAME, BASE_NAME]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


class Loaded(NamedTuple):
    """A model and its tokenizer (None if the directory has none)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED_DIRECTORY.glob("*/config.json"))


def save(
    model: PreTrainedModel, directory: str | Path, *, whole: bool = False, base: str = "", revision: str | None = None
) -> None:
    """Writes a grafted model's lattice, and with `whole` its base model too.

    Args:
        model: a grafted model.
        directory: made if needed.
        whole: for a base whose weights were trained along.
        base: hub id or directory of the base; by default where the model was loaded from.
        revision: of the base, by default the commit that it was loaded from, if that is known.

    Raises:
        ValueError: if the model carries no lattice, or a lattice alone would not know its base, or the base was trained
            along, so that a lattice alone would be of no use.
    """
    config = getattr(model, "lattice_config", None)
    if config is None:
        raise ValueError("this model carries no lattice; graft one with lace.graft(model, LatticeConfig())")
    base = base or model.config._name_or_path
    if not whole and not base:
        raise ValueError("a lattice alone must name its base model: save(..., base='org/name'), or whole=True")
    before: Any = getattr(model, "base_fingerprint", None)
    if not whole and before is not None and not same_base(before, fingerprint(model)):
        raise ValueError("the base model was trained too, so the lattice alone would not do: save(..., whole=True)")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if whole:
        model.save_pretrained(directory, state_dict={n: t for n, t in state.items() if ".lattice." not in n})
    save_file({n: t for n, t in state.items() if ".lattice." in n}, directory / WEIGHTS_NAME, {"format": "pt"})
    config.save(directory)
    about = {
        "whole": whole,
        "base_model": None if whole else base,
        "revision": None if whole else revision or getattr(model.config, "_commit_hash", None),
        "fingerprint": fingerprint(model),
    }
    (directory / BASE_NAME).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def load(
    source: str | Path,
    *,
    base: str | Path | PreTrainedModel | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Loaded:
    """Loads a shipped model by name, or a hub id or directory of: a lattice alone, a whole model, a plain model.

    Args:
        source: a plain model loads too, without a lattice; graft one to train it.
        base: another place of the base model, or the base itself, for a lattice alone.
        revision: of `source` on the hub.
        dtype: of all weights; by default that of the base checkpoint.
        device: where to.

    Raises:
        FileNotFoundError: if `source` or the base is neither here nor on the hub.
        ValueError: for a wrong base, missing tensors, shape mismatches, or pickled weights.
    """
    directory = _find(source, revision)
    if not (directory / CONFIG_NAME).exists():
        model = _load_base(directory, source, dtype)
        return Loaded(_move(model, device), _tokenizer(directory))
    config = LatticeConfig.load(directory)
    about = _read_about(directory)
    if isinstance(base, PreTrainedModel):
        model, base_directory = base, None
    else:
        place = base or (directory if about["whole"] else about["base_model"])
        base_directory = _find(place, None if base else about["revision"])
        model = _load_base(base_directory, place, dtype)
    if not same_base(about["fingerprint"], fingerprint(model)):
        raise ValueError(
            f"wrong base model for the lattice in {directory}: it belongs to {about['base_model'] or 'this folder'}, "
            "and the weights of the base given are others"
        )
    graft(model, config)
    _load_lattice(model, directory / WEIGHTS_NAME)
    tokenizer = _tokenizer(directory)
    if tokenizer is None and base_directory is not None:
        tokenizer = _tokenizer(base_directory)
    return Loaded(_move(model, device), tokenizer)


def load_shape(source: str | Path, *, revision: str | None = None) -> PreTrainedModel:
    """The model that `load` would return, on the meta device: sizes without weights, none of which is read or fetched.

    Raises:
        FileNotFoundError: if `source` or its base is neither here nor on the hub.
        ValueError: if a config cannot be read, or the model type cannot be grafted.
    """
    directory = _find(source, revision, SHAPE_FILES)
    base = directory
    grafted = (directory / CONFIG_NAME).exists()
    if grafted and not (about := _read_about(directory))["whole"]:
        base = _find(about["base_model"], about["revision"], SHAPE_FILES)
    if not (base / "config.json").exists():
        raise FileNotFoundError(f"{base} holds no transformers model (no config.json)")
    try:
        config = AutoConfig.from_pretrained(base)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read the model in {base}: {_first_line(error)}") from None
    return graft(model, LatticeConfig.load(directory)) if grafted else model


def _move(model: PreTrainedModel, device: str | torch.device) -> PreTrainedModel:
    moved: PreTrainedModel = model.to(device)  # type: ignore[arg-type]  # its wrapper hides the argument's type
    return moved


def _find(source: str | Path, revision: str | None, files: Sequence[str] = HUB_FILES) -> Path:
    """The local directory of a shipped name, a directory, or a hub id (downloaded if it is not in the cache)."""
    if str(source) in shipped_models():  # first, so that a folder of that name does not shadow it; ./NAME is the folder
        return SHIPPED_DIRECTORY / str(source)
    if not str(source):
        raise ValueError("the name of the model is empty")
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=list(files)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"no model {str(source)!r}: neither a directory, nor shipped ({', '.join(shipped_models())}), "
            f"nor to be had from the hub ({type(error).__name__})"
        ) from None


def _no_weights(directory: Path) -> ValueError:
    pickled = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    hint = f"; convert what is pickled, which is never loaded: {', '.join(pickled)}" if pickled else ""
    return ValueError(f"{directory} has no weights in safetensors format{hint}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _load_base(directory: Path, source: str | Path | PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    if not (directory / "config.json").exists():
        raise FileNotFoundError(f"{directory} holds no transformers model (no config.json)")
    if not any(path.name != WEIGHTS_NAME for path in directory.glob("*.safetensors")):
        raise _no_weights(directory)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=AutoConfig.from_pretrained(directory),
            dtype=dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
        )
    except (SafetensorError, RuntimeError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read the model in {directory}: {_first_line(error)}") from None
    model: PreTrainedModel
    model, info = loaded
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise ValueError(f"the weights in {directory}: {name} has shape {tuple(found)}, not {tuple(expected)}")
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"the weights in {directory} lack {len(missing)} tensors, first {missing[0]}")
    if any(".lattice." in name for name in info["unexpected_keys"]):
        raise ValueError(f"{directory} holds a lattice, but no {CONFIG_NAME}: is it a checkpoint of an unfinished run?")
    # Where the base came from, not where it lies on this machine; a hub snapshot's folder is named after its commit.
    model.config._name_or_path = str(Path(str(source)).resolve() if Path(str(source)).is_dir() else source)
    model.config._commit_hash = directory.name if directory.parent.name == "snapshots" else None
    model.eval()
    return model


def _read_about(directory: Path) -> dict[str, Any]:
    path = directory / BASE_NAME
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        about = {key: about[key] for key in ("whole", "base_model", "revision", "fingerprint")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say what base the lattice belongs to ({type(error).__name__})") from None
    if not about["whole"] and not about["base_model"]:
        raise ValueError(f"{path} does not say what base the lattice belongs to")
    return about


def _load_lattice(model: PreTrainedModel, path: Path) -> None:
    if not path.exists():
        raise ValueError(f"no lattice weights: {_no_weights(path.parent)}, {path.name} is missing")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {_first_line(error)}") from None
    own = {name: tensor for name, tensor in model.state_dict().items() if ".lattice." in name}
    if missing := sorted(set(own) - set(state)):
        raise ValueError(f"{path} lacks {len(missing)} tensors of the lattice, first {missing[0]}")
    if unknown := sorted(set(state) - set(own)):
        raise ValueError(f"{path} holds {len(unknown)} tensors that the lattice has not, first {unknown[0]}")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise ValueError(f"{path}: {name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}")
    model.load_state_dict(state, strict=False)


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase | None:
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # the Rust side raises no narrower type
        raise ValueError(f"cannot read the tokenizer in {directory}: {_first_line(error)}") from None
    return tokenizer
