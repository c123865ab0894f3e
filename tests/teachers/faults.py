"""Everything that goes wrong with real endpoints, mixed into a script at a given rate, the same way in every run."""

from __future__ import annotations

from random import Random

from teachers.server import FOREVER, Answer, Request, Script

TRANSPORT = ("429", "500", "503", "408", "hang", "half", "dropped", "garbage", "wrong shape")
"""What a retry of the same call mends."""
CONTENT = ("empty", "refusal", "truncated", "malformed", "wrong count")
"""What only another call mends."""


def with_faults(script: Script, rate: float, *, hang: float = FOREVER, retry_after: float = 0.2) -> Script:
    """A script of which a share of the answers fails: half of them on the way, half by what they say."""

    def faulty(request: Request) -> Answer:
        rng = Random(f"{request.key}/{request.number}")
        point = rng.random()
        if point < rate / 2:
            return spoil(rng.choice(TRANSPORT), script(request), hang=hang, retry_after=retry_after)
        if Random(f"{request.key}/content").random() < rate / 2:  # of the call, however often it is tried
            return spoil(rng.choice(CONTENT), script(request))
        return script(request)

    return faulty


def spoil(fault: str, good: Answer, *, hang: float = FOREVER, retry_after: float = 0.2) -> Answer:
    """An answer that fails in one way, instead of a good one."""
    text = good.text or ""
    if fault in ("429", "500", "503", "408"):
        headers = {"Retry-After": str(retry_after)} if fault in ("429", "503") else {}
        return Answer("not now", status=int(fault), headers=headers)
    faults = {
        "hang": Answer(text, delay=hang),
        "half": Answer(text, delay=good.delay, cut=0.5),
        "dropped": Answer(None, body=b"x", cut=0.0),
        "garbage": Answer(None, body=b"\x00<html>bad gateway"),
        "wrong shape": Answer(None, body=b'{"choices": []}'),
        "empty": Answer(" ", delay=good.delay),
        "refusal": Answer(None if good.text is None else "", refusal="I will not.", delay=good.delay),
        "truncated": Answer(text[: max(1, len(text) // 2)], delay=good.delay, finish_reason="length"),
        "malformed": Answer(text.replace(":", " ").replace("{", "(", 1), delay=good.delay),
        "wrong count": Answer('{"steps": [], "notes": [], "threads": []}', delay=good.delay),
    }
    return faults[fault]
