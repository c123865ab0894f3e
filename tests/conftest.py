"""What all tests share: no network, one thread of the processor, and a fixture for each family of models."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

# Before any library reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lace.data.vocabulary import build_tokenizer
from lace.lattice.native import SOURCE
from lace.native import build
from tiny import FAMILIES, tiny_model

# Products of tiny matrices are fastest alone, and their sums do not depend on the machine then.
torch.set_num_threads(1)

# Shells without job control start what runs in the background deaf to Ctrl-C, which servers under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled code in a folder of the tests' own."""
    if not any(map(shutil.which, build.COMPILERS)):
        pytest.skip("there is no C compiler on this machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv(build.SWITCH, raising=False)
        build.kernel.cache_clear()
        yield
    build.kernel.cache_clear()


@pytest.fixture(params=[(), ("-mno-avx512bf16",)], ids=str)
def whether_by_pairs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processors differ in how they multiply numbers in bfloat16."""
    monkeypatch.setattr(build, "FLAGS", build.FLAGS + request.param)
    build.kernel.cache_clear()
    try:
        if build.kernel(SOURCE) is None:
            pytest.skip("the compiler does not know the instructions")
        yield
    finally:
        build.kernel.cache_clear()


@pytest.fixture
def openmp(compiled: None) -> None:
    """Compiled code that several threads of the processor share."""
    function = build.kernel(SOURCE)
    if function is None or not function.shared:
        pytest.skip("the C compiler of this machine has no OpenMP")
