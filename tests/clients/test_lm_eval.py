"""lm-evaluation-harness: against a real server, with our engine in its process, and beside its own `hf` model.

The task is made of local files. Its targets are the engine's own answers, so that a score of 1 says: they agree.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lace.engine.engine import Engine
from lace.engine.sampling import SamplingParams
from lace.engine.threads import opening_ids
from lace.lattice.checkpoint import SHIPPED_DIRECTORY
from running_server import Running

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install -c constraints.txt -e '.[lm-eval]'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lace.eval.lm_eval import LaceLM

pytestmark = pytest.mark.slow
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/{name}.jsonl
  cache_dir: {folder}/cache
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 60}}
metric_list:
  - metric: exact_match
"""


def write_task(folder: Path, name: str, questions: list[str], answers: list[str]) -> None:
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, folder=folder))
    documents = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))


def run(folder: Path, name: str, model: Any, **settings: object) -> tuple[float, list[str]]:
    """Score and answers."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    report = simple_evaluate(model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, **settings)
    samples = sorted(report["samples"][name], key=lambda sample: sample["doc_id"])
    return report["results"][name]["exact_match,none"], [sample["resps"][0][0] for sample in samples]


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=n) for n, a in enumerate(arguments)]


def chosen_texts(engine: Engine, questions: list[str], threads: int, first_seed: int) -> list[str]:
    greedy = SamplingParams(threads=threads, max_tokens=60, temperature=0)
    params = [replace(greedy, seed=first_seed + number) for number in range(len(questions))]
    return [result.threads[result.chosen].text for result in engine.generate(questions, params)]


@pytest.mark.parametrize("chat", [True, False], ids=["local-chat-completions", "local-completions"])
def test_through_the_server(
    chat: bool, server: Running, questions: list[str], answers: list[str], tmp_path: Path
) -> None:
    write_task(tmp_path, "ours", questions, answers)
    name, path = ("local-chat-completions", "chat/completions") if chat else ("local-completions", "completions")
    arguments = f"model=puzzles,base_url={server.url}/v1/{path},tokenizer_backend=None,num_concurrent=4"
    score, written = run(tmp_path, "ours", name, model_args=arguments, apply_chat_template=chat)
    assert written == answers
    assert score == 1
    assert any(answer for answer in answers)


def test_in_process_with_the_lattice(puzzles: Engine, questions: list[str], tmp_path: Path) -> None:
    """Request number i draws with seed i."""
    answers = chosen_texts(puzzles, questions, threads=3, first_seed=2_000_006)
    write_task(tmp_path, "ours", questions, answers)
    assert run(tmp_path, "ours", LaceLM(puzzles, threads=3, seed=2)) == (1, answers)
    one_by_one = LaceLM(puzzles, threads=3, seed=2, batch_size=1)
    assert run(tmp_path, "ours", one_by_one) == (1, answers)
    write_task(tmp_path, "other", questions, ["something else"] * 4)
    assert run(tmp_path, "other", one_by_one)[0] == 0


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of an embedded model without its lattice: what any other tool makes of it."""
    folder = tmp_path_factory.mktemp("backbone")
    AutoModelForCausalLM.from_pretrained(SHIPPED_DIRECTORY / "puzzles-isolated").save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED_DIRECTORY / "puzzles-isolated").save_pretrained(folder)
    return folder


def transformers_greedy(folder: Path, ids: list[int], tokens: int) -> str:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=tokens)
    return str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)).strip()


def test_all_agree_on_greedy_answers(backbone: Path, questions: list[str], tmp_path: Path) -> None:
    """transformers, lm-eval's `hf`, lm-eval with our engine, and our engine."""
    asked = [f"{question} Thread 7:" for question in questions]  # as the model has learned to begin
    ours = LaceLM(str(backbone), threads=1)
    params = SamplingParams(threads=1, max_tokens=60, temperature=0)
    answers = [result.threads[0].text for result in ours.engine.generate(asked, params)]
    ids = [ours.engine.tokenizer(question)["input_ids"] for question in asked]
    assert answers == [transformers_greedy(backbone, each, 60) for each in ids]
    assert all(len(answer) > 40 for answer in answers)
    write_task(tmp_path, "ours", asked, answers)
    assert run(tmp_path, "ours", ours) == (1, answers)
    _, written = run(tmp_path, "ours", HFLM(pretrained=str(backbone), device="cpu", batch_size=2))
    assert [text.strip() for text in written] == answers


def test_lattice_off_is_transformers(questions: list[str]) -> None:
    """A grafted model, whose threads are given their openings."""
    for strategy in ("independent", "lace"):  # a lone thread has nobody to read
        model = LaceLM("puzzles-isolated", threads=1, strategy=strategy)
        settings = {"until": [], "max_gen_toks": 30}
        written = model.generate_until(requests("generate_until", *((question, settings) for question in questions)))
        for number, (question, text) in enumerate(zip(questions, written, strict=True)):
            (result,) = model.engine.generate(question, model.params(number, settings), strategy="independent")
            tokenizer = model.engine.tokenizer
            opening = opening_ids(tokenizer, model.engine.config.opening, result.threads[0].label)
            ids = tokenizer(question)["input_ids"] + opening
            assert text == transformers_greedy(SHIPPED_DIRECTORY / "puzzles-isolated", ids, 30)


def test_scores_are_those_of_the_base_model(puzzles: Engine, questions: list[str]) -> None:
    ours = LaceLM(Engine(puzzles.model, puzzles.tokenizer), batch_size=3)
    ours.engine.max_positions = 40
    theirs = HFLM(pretrained=str(SHIPPED_DIRECTORY / "puzzles"), device="cpu", batch_size=2, max_length=40)
    pairs = [
        (questions[0], " (x+y)*z"),
        (questions[1], " 3 + 4 = 7"),
        (f"{questions[2]} Thread 7:", " (x"),
        ("", questions[3]),
        (" ".join(questions), " 1 + 2"),  # longer than the model can read
    ]
    for (logprob, best), (expected, expected_best) in zip(
        ours.loglikelihood(requests("loglikelihood", *pairs)),
        theirs.loglikelihood(requests("loglikelihood", *pairs)),
        strict=True,
    ):
        assert logprob == pytest.approx(expected, abs=1e-3)
        assert best == expected_best
    likeliest = theirs.tokenizer.decode(
        theirs.model(torch.tensor([ours.tok_encode(questions[0])])).logits[0, -1].argmax()
    )
    assert ours.loglikelihood(requests("loglikelihood", (questions[0], f" {likeliest}")))[0][1]
    texts = [(questions[0],), (" ".join(questions * 2),)]  # the second takes several windows
    rolling = requests("loglikelihood_rolling", *texts)
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling), abs=1e-3)


def test_settings_of_tasks(puzzles: Engine) -> None:
    model = LaceLM(puzzles, threads=2, max_gen_toks=99)
    assert model.params(0, {"until": "\n"}) == SamplingParams(
        threads=2, max_tokens=99, temperature=0, stop=("\n",), seed=0
    )
    drawn = model.params(3, {"until": [], "do_sample": True, "temperature": 0.7, "top_p": 0.8, "max_new_tokens": 5})
    assert drawn == SamplingParams(threads=2, max_tokens=5, temperature=0.7, top_p=0.8, seed=3)
    assert model.params(0, {"do_sample": False, "temperature": 0.7}).temperature == 0
    with pytest.raises(ValueError, match=r"^lace takes the generation settings .*, not num_beams$"):
        model.params(0, {"num_beams": 4})
    with pytest.raises(ValueError, match="strategy must be one of"):
        LaceLM(puzzles, strategy="other")
    with pytest.raises(ValueError, match="batch_size must be auto or at least 1"):
        LaceLM(puzzles, batch_size="many")
    with pytest.raises(ValueError, match="threads must be between 1 and 256, not 0"):
        LaceLM(puzzles, threads=0)


def test_command(puzzles: Engine, questions: list[str], tmp_path: Path) -> None:
    write_task(tmp_path, "ours", questions, chosen_texts(puzzles, questions, threads=2, first_seed=0))
    command = [sys.executable, "-m", "lace.eval.lm_eval", "--model", "lace", "--tasks", "ours"]
    command += ["--model_args", "pretrained=puzzles,threads=2,strategy=lace", "--batch_size", "auto"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("out*.json")
    assert json.loads(report.read_text())["results"]["ours"]["exact_match,none"] == 1
