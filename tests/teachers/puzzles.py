"""A strong teacher that is a program: it reads the prompts of `lace data`, and answers for puzzles that it can solve.

Its paths go different ways, some of them wrong; its steps are the lines of a path; its notes point out slips that it
recalculates; its judgement is right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from teachers import arithmetic, grids, knights
from teachers.server import Answer, Request, Script

_THREAD = re.compile(r"^Thread (\d+):$", re.MULTILINE)
_STEP = re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)
_OWN_ANSWER = re.compile(r"^Its answer: (.*)$", re.MULTILINE)
NOTES = 2
"""Of a thread at most."""


def puzzle_teacher(errors: float = 0.35, latency: float = 0.0) -> Script:
    """The script.

    Args:
        errors: share of the paths that go wrong.
        latency: seconds before each answer.
    """
    prompts: dict[str, Callable[[Request], Any]] = {
        "You write": lambda request: _solve(request.text, errors),
        "You edit": lambda request: _steps(request.text),
        "You let": lambda request: _notes(request.text),
        "You compare": lambda request: _judge(request.text),
        "You solve": lambda request: _attempt(request, errors),
    }

    def script(request: Request) -> Answer:
        reply = prompts[" ".join(request.prompt.split()[:2])](request)
        if reply is None:
            return Answer("I'm sorry, that is beyond me.", delay=latency)
        return Answer(reply if isinstance(reply, str) else json.dumps(reply), delay=latency)

    return script


def _part(text: str, name: str) -> str:
    found = re.search(rf"<{name}>\n(.*?)\n</{name}>", text, re.DOTALL)
    assert found is not None, name
    return found[1]


def _solver(question: str):  # type: ignore[no-untyped-def]  # one of three modules
    return knights if knights.read(question) else grids if grids.read(question) else arithmetic


def _solve(text: str, errors: float) -> object:
    question, tried = _part(text, "problem"), _part(text, "tried")
    turn = 0 if tried == "Nothing yet." else len(tried.splitlines())
    turn += text.count("\n- ", text.index("</tried>"))  # what was refused is not tried again
    return _solver(question).solve(question, turn, errors)


def _attempt(request: Request, errors: float) -> str:
    found = _solver(request.text).solve(request.text, request.body["seed"] % 5, errors)
    return f"{found['solution']}\nanswer: {found['answer']}" if found else "I cannot do this."


def _steps(text: str) -> object:
    solution, answer = _part(text, "solution"), _part(text, "answer")
    if "\n" not in answer:
        return {"steps": solution.splitlines()}
    *steps, last = solution.removesuffix(answer).splitlines()  # the grid stays with the words before it
    return {"steps": [*steps, f"{last}\n{answer}"]}


def _threads(text: str) -> dict[int, tuple[list[str], str]]:
    """Steps and answer by label; where answers are not told, the last steps do."""
    pieces, threads = _THREAD.split(_part(text, "threads")), {}
    for label, body in zip(pieces[1::2], pieces[2::2], strict=True):
        steps = [step for _, step in _STEP.findall(body)]
        last = steps[-1].removeprefix("So the result is ").removeprefix("Hence ").rstrip(".")
        last = last.removeprefix(r"So all of it reads \n ")
        threads[int(label)] = steps, (_OWN_ANSWER.findall(body) or [last])[0]
    return threads


def _notes(text: str) -> object:
    question, threads = _part(text, "problem"), _threads(text)
    solver, notes = _solver(question), []
    for label, (steps, answer) in threads.items():
        said = 0
        for other, (their_steps, their_answer) in threads.items():
            if other == label or said == NOTES:
                continue
            wrong = [(n, why) for n, step in enumerate(their_steps, 1) if (why := solver.mistake(question, step))]
            about = {"thread": label, "about_thread": other}
            if wrong and solver.is_right(question, answer):
                step, why = wrong[0]
                after = min(len(steps), step)
                notes.append({**about, "after_step": after, "about_step": step, "kind": "warns", "text": f"{why}."})
            elif solver.is_right(question, their_answer):
                after, step = len(steps), len(their_steps)
                told = f"that way ends at {their_answer.rstrip('.')}, which I can compare with mine."
                notes.append({**about, "after_step": after, "about_step": step, "kind": "takes", "text": told})
            else:
                continue
            said += 1
    return {"notes": notes}


def _judge(text: str) -> object:
    question, threads = _part(text, "problem"), _threads(text)
    solver = _solver(question)
    right = [label for label, (_, answer) in threads.items() if solver.is_right(question, answer)]
    best = min(right or threads)  # a rule that threads can follow without asking one another
    verdicts = []
    for label in threads:
        others = [other for other in right if other != label]
        agree = f"Thread {others[0]} and I agree" if label in right and others else "I stand alone"
        if label not in right:
            agree = f"Thread {others[0]} is right and I am not" if others else "None of us is right"
        comparison = f"{agree}; the clearest way is that of Thread {best}."
        tag = "best" if label == best else "success" if label in right else "fail"
        verdicts.append({"thread": label, "comparison": comparison, "tag": tag})
    return {"threads": verdicts}
