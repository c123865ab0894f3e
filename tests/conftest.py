"""What all tests share: no network, one thread of the processor, and a fixture for each family of models."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

# Before any library reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lace.data.vocabulary import build_tokenizer
from tiny import FAMILIES, tiny_model

# Products of tiny matrices are fastest alone, and their sums do not depend on the machine then.
torch.set_num_threads(1)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """The name of each supported family in turn."""
    return request.param


@pytest.fixture
def base(family: str) -> PreTrainedModel:
    """A tiny random model of each family in turn."""
    return tiny_model(family)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_tables() -> ModuleType:
    """The script that writes the tables of README and docs, as a module."""
    return _script_of_docs("make_tables")


@pytest.fixture(scope="session")
def make_samples() -> ModuleType:
    """The script that writes the sample lattices of docs/data.md, as a module."""
    return _script_of_docs("make_samples")


def _script_of_docs(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
