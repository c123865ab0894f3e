"""Has a program say which paths are right."""

from __future__ import annotations

from lace.data.pipeline.context import Context
from lace.data.pipeline.gather import gather
from lace.data.pipeline.item import Item, Rejection


async def verify(item: Item, context: Context) -> Item:
    """Checks every path's answer.

    Raises:
        Rejection: if none is right, since exactly one thread must be best; or if the verifier fails.
    """
    verdicts = await gather(context.check(item.question, path.answer) for path in item.paths)
    if not any(verdicts):
        raise Rejection("no path is right", f"answers {[path.answer for path in item.paths]}")
    paths = [path.model_copy(update={"right": right}) for path, right in zip(item.paths, verdicts, strict=True)]
    return item.model_copy(update={"paths": tuple(paths)})
