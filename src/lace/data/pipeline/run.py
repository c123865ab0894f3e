"""A run: stage after stage, each taking up what earlier runs have left, and in the end the files for training.

OUT/run.json                          config, command, commit, versions, folders of the stages
OUT/calls/STAGE.jsonl                 every finished call
OUT/stages/N-STAGE-hash/outcomes.jsonl   every item or rejection
OUT/lattices.json                     the run.json of these:
OUT/train, OUT/validation             lattices.jsonl, for `lace train` with data.kind = "records"
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from lace.data.pipeline.budget import Budget
from lace.data.pipeline.config import DataConfig
from lace.data.pipeline.item import Item, Rejection
from lace.data.pipeline.keyed_log import KeyedLog, merge, read_lines
from lace.data.pipeline.local_executor import Leftovers, Outcome, run_local
from lace.data.pipeline.outcomes import count_kept, read_items, write_item, write_rejection
from lace.data.pipeline.outputs import write_outputs
from lace.data.pipeline.plan import PlannedStage, calls_path, plan_stages
from lace.data.pipeline.progress import StageProgress
from lace.data.pipeline.resources import Helpers, check_resources, open_resources
from lace.data.pipeline.tokenizer import load_tokenizer
from lace.provenance import source_commit

PACKAGES = ("lace-llm", "aiohttp", "pydantic", "transformers", "tokenizers")
RUN_NAME, MADE_NAME = "run.json", "lattices.json"
LOCK_NAME = ".lock"
Executor = Literal["local", "ray"]


class Stopped(Exception):
    """A run that has not come to its end, and can go on; the message is one line that says why."""


def run_pipeline(
    config: DataConfig, command: str = "", executor: Executor = "local", helpers: Helpers | None = None
) -> dict[str, int]:
    """Runs all stages.

    Args:
        config: of the run.
        command: as it was given, for the record.
        executor: `local`, or `ray` for a cluster.
        helpers: models that run in the processes of the stages.

    Returns:
        Lattices written, by part.

    Raises:
        Stopped: a budget is spent, or some calls failed; run again to go on.
        ValueError: one line, for what does not fit together, or a server that refuses everything.
        OSError: for a model that cannot be loaded.
    """
    helpers = helpers or Helpers()
    tokenizer = load_tokenizer(config.student.tokenizer, config.student.revision)
    stages = plan_stages(config)
    if not stages[0].outcomes.exists():  # else the first stage that is left tells as soon
        asyncio.run(check_resources(config, helpers, load=executor == "local"))
    with _alone(config.run.out):
        _write_about(config, command, stages)
        budget = Budget(config.budget)
        for stage in stages[1:]:
            for line in read_lines(_calls(config, stage)):
                budget.add(line["prompt_tokens"] + line["completion_tokens"], line["cost"])
        unfinished, failure = 0, ""
        for before, stage in zip([None, *stages], stages, strict=False):
            if before is None:
                _prepare(config, stage)
                continue
            left = _run_stage(config, before, stage, budget, tokenizer, executor, helpers)
            if left.stopped:
                raise Stopped(left.stopped)
            unfinished += left.unfinished
            failure = left.last_failure or failure
        made = config.run.out / MADE_NAME
        made.unlink(missing_ok=True)  # a kill must not leave it beside files that it does not tell of
        written = write_outputs(stages[-1].outcomes, config.run.out, config)
        unfinished_copy = made.with_name(f"{MADE_NAME}.unfinished")
        shutil.copyfile(config.run.out / RUN_NAME, unfinished_copy)
        unfinished_copy.replace(made)
    if unfinished:
        raise Stopped(f"{unfinished} items are left, since calls failed ({failure}); run again to try them")
    return written


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keeps a second run out of the folder; the lock goes with the process, however it ends."""
    found = {path.name for path in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else set()
    if RUN_NAME not in found and found - {LOCK_NAME}:
        raise ValueError(f"{out} exists, but holds no run ({RUN_NAME}); give another run.out")
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is at work in {out}") from None
        yield


def _write_about(config: DataConfig, command: str, stages: list[PlannedStage]) -> None:
    about = {
        "command": command,
        "commit": source_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "config": config.model_dump(mode="json"),
        "stages": [{"name": stage.name, "folder": str(stage.folder.relative_to(config.run.out))} for stage in stages],
    }
    unfinished = config.run.out / f"{RUN_NAME}.unfinished"
    unfinished.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(config.run.out / RUN_NAME)


def _prepare(config: DataConfig, stage: PlannedStage) -> None:
    if not stage.outcomes.exists():
        from lace.data.stages.questions import prepare  # loads scipy, which a resumed run does without

        with StageProgress("questions", total=0) as progress:

            def tell(read: int, decided: int) -> None:
                progress.total, progress.done = read, decided
                progress.called(0, 0, 0.0)

            prepare(config, stage.folder, tell)
    if not count_kept(stage.outcomes):
        raise ValueError(f"no question is left; {stage.outcomes} says why")


def _run_stage(
    config: DataConfig,
    before: PlannedStage,
    stage: PlannedStage,
    budget: Budget,
    tokenizer: PreTrainedTokenizerBase,
    executor: Executor,
    helpers: Helpers,
) -> Leftovers:
    log = KeyedLog(stage.outcomes)
    pending = ((parent, item) for parent, item in read_items(before.outcomes) if stage.key_of(parent) not in log)
    total = count_kept(before.outcomes)
    with StageProgress(stage.name, total, len(log)) as progress:

        def write(key: str, parent: str, item: Item, outcome: Outcome) -> None:
            if isinstance(outcome, Rejection):
                write_rejection(log, key, parent, outcome, item.question.id)
            else:
                write_item(log, key, parent, outcome)
            progress.decided(kept=isinstance(outcome, Item))

        if len(log) >= total:
            left = Leftovers()
        elif executor == "ray":
            from lace.data.pipeline.ray_executor import run_ray

            left = run_ray(config, stage, pending, write, budget, helpers, progress.called)
            _calls(config, stage)
        else:
            left = asyncio.run(_run_here(config, stage, pending, write, budget, tokenizer, helpers, progress))
    log.close()
    return left


def _calls(config: DataConfig, stage: PlannedStage) -> Path:
    """The log of a stage's calls, with those in it that processes of a cluster have left in files of their own."""
    calls = calls_path(config, stage.name)
    merge(sorted(calls.parent.glob(f"{stage.name}.*.part")), calls)
    return calls


async def _run_here(
    config: DataConfig,
    stage: PlannedStage,
    pending: Iterator[tuple[str, Item]],
    write: Callable[[str, str, Item, Outcome], None],
    budget: Budget,
    tokenizer: PreTrainedTokenizerBase,
    helpers: Helpers,
    progress: StageProgress,
) -> Leftovers:
    calls, workers = KeyedLog(calls_path(config, stage.name)), config.run.concurrency
    opened = open_resources(
        config, stage.name, calls, budget, tokenizer, helpers, workers, progress.called, progress.waiting
    )
    async with opened as resources:
        return await run_local(stage, pending, resources, write, workers)
