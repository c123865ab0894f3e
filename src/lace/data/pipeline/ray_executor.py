"""Runs a stage on a Ray cluster: the same functions, in actors of Ray Data, each with a client of its own and its share
of the concurrency and the budget.

Actors write the calls that they make to files of their own beside the log of calls, to which they are added when the
stage ends or the next run begins; the folder of the run must be seen by all of them. Outcomes come back to this
process, which alone writes these.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lace.data.pipeline.budget import Budget, BudgetSpent
from lace.data.pipeline.config import BudgetConfig, DataConfig, Engine
from lace.data.pipeline.item import Item, Rejection
from lace.data.pipeline.keyed_log import KeyedLog
from lace.data.pipeline.local_executor import Leftovers, Outcome, decide
from lace.data.pipeline.plan import PlannedStage, calls_path, plan_stages
from lace.data.pipeline.resources import SAMPLED, Helpers, open_resources
from lace.data.pipeline.teacher import CallFailed
from lace.data.pipeline.tokenizer import load_tokenizer

PENDING_NAME = "pending"
CHUNK = 256
"""Items of a file of pending ones, which Ray reads as a whole."""
BATCH = 16
"""Items that an actor is given at a time."""


def run_ray(
    config: DataConfig,
    stage: PlannedStage,
    pending: Iterator[tuple[str, Item]],
    write: Callable[[str, str, Item, Outcome], None],
    budget: Budget,
    helpers: Helpers,
    called: Callable[[int, int, float], None],
) -> Leftovers:
    """Decides all pending items on the cluster that Ray knows, or on this machine if it knows none.

    Args:
        config: of the run.
        stage: which.
        pending: keys and items of the stage before.
        write: takes key, parent's key, item and outcome of each as it comes back.
        budget: of which each actor gets an equal share of what is left.
        helpers: models that actors load, each its own.
        called: told what the calls of this stage are so far.

    Raises:
        ValueError: one line, if Ray is not installed; or what a stage raises.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("the executor ray needs Ray: pip install 'lace-llm[ray]'") from None
    try:
        budget.check()
    except BudgetSpent as spent:
        return Leftovers(stopped=str(spent))
    folder = stage.folder / PENDING_NAME
    _write_pending(folder, pending)
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    actors, share = actors_of(config, stage, ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]])
    rows = ray.data.read_text(str(folder)).map_batches(
        StageActor,
        fn_constructor_args=(
            config.model_dump_json(),
            stage.name,
            actors,
            _share(budget, actors).model_dump_json(),
            helpers,
            sys.path,
        ),
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=actors),  # which Ray Data spreads over the machines by itself
        **share,
    )
    left, totals = Leftovers(), [0, 0, 0.0]
    for row in rows.iter_rows():
        totals = [totals[0] + row["calls"], totals[1] + row["tokens"], totals[2] + row["money"]]
        called(int(totals[0]), int(totals[1]), float(totals[2]))
        if row["error"]:
            raise ValueError(row["error"])
        if row["failure"] or row["stopped"]:
            left.unfinished += 1
            left.last_failure = left.last_failure or row["failure"]
            left.stopped = left.stopped or row["stopped"]
            continue
        item = Item.model_validate_json(row["item"])
        write(stage.key_of(row["parent"]), row["parent"], item, _rejected(row) if row["reason"] else item)
    budget.add(int(totals[1]), float(totals[2]))
    shutil.rmtree(folder)
    return left


def actors_of(
    config: DataConfig, stage: PlannedStage, resources: dict[str, float], nodes: list[dict[str, Any]]
) -> tuple[int, dict[str, float]]:
    """How many processes, and what each takes of the cluster.

    They mostly wait for servers, so there is one for each processor, which it takes half of: the other half reads and
    passes on. Of those that run an engine there is one for each GPU, or one on a machine where there is none, since an
    engine uses all of it; it takes half of the processors.
    """
    if stage.name != SAMPLED or not isinstance(config.base, Engine):
        return max(1, int(resources.get("CPU", 1))), {"num_cpus": 0.5}
    if gpus := int(resources.get("GPU", 0)):
        return gpus, {"num_cpus": 0.5, "num_gpus": 1}
    processors = [cpus for node in nodes if (cpus := node["Resources"].get("CPU", 0))]
    return max(1, len(processors)), {"num_cpus": min(processors, default=1.0) / 2}


def _rejected(row: dict[str, Any]) -> Rejection:
    rejection = Rejection(row["reason"], row["detail"])
    rejection.unusable = json.loads(row["unusable"])
    return rejection


def _write_pending(folder: Path, pending: Iterator[tuple[str, Item]]) -> None:
    """Writes lines `KEY ITEM` into small files. They are pure ASCII: Ray takes every Unicode line separator for one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    number = 0
    while chunk := list(islice(pending, CHUNK)):
        lines = (f"{parent} {json.dumps(item.model_dump(mode='json'))}\n" for parent, item in chunk)
        (folder / f"{number:06}.txt").write_text("".join(lines), encoding="ascii")
        number += 1


def _share(budget: Budget, actors: int) -> BudgetConfig:
    """What one actor may use; at least something, since 0 would mean no limit."""
    limits = budget.limits
    tokens = max(1, (limits.tokens - budget.tokens) // actors) if limits.tokens else 0
    money = (limits.money - budget.money) / actors if limits.money else 0.0
    return BudgetConfig(tokens=tokens, money=money, minutes=limits.minutes)


def _row(parent: str, text: str) -> dict[str, Any]:
    """What comes back of an item, before anything is known."""
    row: dict[str, Any] = {"parent": parent, "item": text, "calls": 0, "tokens": 0, "money": 0.0}
    return row | dict.fromkeys(("reason", "detail", "unusable", "failure", "stopped", "error"), "")


class StageActor:
    """One process of the cluster, which decides batches of items, several at the same time."""

    def __init__(self, config: str, stage: str, actors: int, budget: str, helpers: Helpers, path: list[str]) -> None:
        sys.path += [folder for folder in path if folder not in sys.path]  # a user's verifiers stand beside the config
        self.helpers = helpers
        self.config = DataConfig.model_validate_json(config)
        self.stage = next(each for each in plan_stages(self.config) if each.name == stage)
        self.budget = Budget(BudgetConfig.model_validate_json(budget))
        calls = calls_path(self.config, stage)
        own = calls.with_name(f"{stage}.{socket.gethostname()}-{os.getpid()}.part")
        self.calls = KeyedLog(calls, write_to=own)
        self.tokenizer = load_tokenizer(self.config.student.tokenizer, self.config.student.revision)
        self.concurrency = max(1, -(-self.config.run.concurrency // actors))
        self.resources: Any = None
        self._opened: Any = None
        self.used = (0, 0, 0.0)
        self.reported = (0, 0, 0.0)
        self._opening = asyncio.Lock()

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Decides a batch of lines `KEY ITEM`."""
        lines = [str(line).split(" ", 1) for line in batch["text"]]
        try:
            await self._open()
        except (ValueError, OSError) as error:
            told = str(error).partition("\n")[0]
            rows = [_row(parent, text) | {"error": told} for parent, text in lines]
        else:
            rows = await asyncio.gather(*(self._decide(parent, text) for parent, text in lines))
        rows[0] |= self._since_last_report()
        return {name: [row[name] for row in rows] for name in rows[0]}

    async def _open(self) -> None:
        """Opens what the stage uses, a model in this process included, with the first batch, and for as long as the
        actor lives."""
        async with self._opening:
            if self.resources is None:
                self._opened = open_resources(  # must not be collected
                    self.config,
                    self.stage.name,
                    self.calls,
                    self.budget,
                    self.tokenizer,
                    self.helpers,
                    self.concurrency,
                    self._count,
                )
                self.resources = await self._opened.__aenter__()

    async def _decide(self, parent: str, text: str) -> dict[str, Any]:
        item, row = Item.model_validate_json(text), _row(parent, text)
        try:
            outcome = await decide(self.stage, self.stage.key_of(parent), parent, item, self.resources)
        except CallFailed as failure:
            return row | {"failure": str(failure)}
        except BudgetSpent as spent:
            return row | {"stopped": str(spent)}
        except ValueError as error:  # Ray would wrap it in the traceback of an actor
            return row | {"error": str(error)}
        if isinstance(outcome, Rejection):
            unusable = json.dumps(outcome.unusable)
            return row | {"reason": outcome.reason, "detail": outcome.detail, "unusable": unusable}
        return row | {"item": outcome.model_dump_json()}

    def _count(self, calls: int, tokens: int, money: float) -> None:
        self.used = (calls, tokens, money)

    def _since_last_report(self) -> dict[str, float]:
        new = [now - before for now, before in zip(self.used, self.reported, strict=True)]
        self.reported = self.used
        return dict(zip(("calls", "tokens", "money"), new, strict=True))
