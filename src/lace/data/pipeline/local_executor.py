"""Runs a stage on this machine: a fixed number of workers that each take the next item when they are done with one.

Nobody reads ahead, so memory does not grow with the number of items.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lace.data.pipeline.budget import BudgetSpent
from lace.data.pipeline.context import Context, Resources
from lace.data.pipeline.item import Item, Mark, Rejection
from lace.data.pipeline.outcomes import now
from lace.data.pipeline.plan import PlannedStage
from lace.data.pipeline.teacher import CallFailed

Outcome = Item | Rejection


@dataclass
class Leftovers:
    """What a run of a stage could not decide."""

    unfinished: int = 0
    """Items whose calls failed at every try."""
    last_failure: str = ""
    stopped: str = ""
    """Why the run stopped early: its budget."""


async def decide(stage: PlannedStage, key: str, parent: str, item: Item, resources: Resources) -> Outcome:
    """What a stage makes of an item; an item that is kept carries the stage's mark.

    Raises:
        CallFailed: a call failed at every try.
        BudgetSpent: no call may be made, or the minutes are over.
    """
    assert stage.kind is not None
    resources.budget.check_minutes()
    context = Context(resources, key)
    try:
        result = await stage.kind.run(item, context)
    except Rejection as rejection:
        rejection.unusable = dict(context.unusable)
        return rejection
    mark = Mark(
        stage=stage.name,
        key=key,
        parent=parent,
        made=now(),
        models=tuple(context.models),
        prompts=tuple(context.prompts),
        seeds=tuple(context.seeds),
        unusable=dict(context.unusable),
    )
    return result.model_copy(update={"history": (*item.history, mark)})


async def run_local(
    stage: PlannedStage,
    pending: Iterator[tuple[str, Item]],
    resources: Resources,
    write: Callable[[str, str, Item, Outcome], None],
    workers: int,
) -> Leftovers:
    """Decides all pending items.

    Args:
        stage: which.
        pending: keys and items of the stage before.
        resources: what the stage may use.
        write: takes key, parent's key, item and outcome of each as soon as it is decided.
        workers: items in work at the same time.
    """
    left = Leftovers()

    async def work() -> None:
        for parent, item in pending:  # one iterator for all workers
            key = stage.key_of(parent)
            try:
                outcome = await decide(stage, key, parent, item, resources)
            except CallFailed as failure:
                left.unfinished += 1
                left.last_failure = str(failure)
                continue
            except BudgetSpent as spent:
                left.unfinished += 1
                left.stopped = str(spent)
            else:
                write(key, parent, item, outcome)
            if left.stopped:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return left
