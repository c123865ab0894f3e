"""What a run may use up, and what it has."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from lace.data.pipeline.config import BudgetConfig


class BudgetSpent(Exception):
    """No further call may be made."""


@dataclass
class Budget:
    """Counts tokens and money over all runs with one folder, and the time of this one."""

    limits: BudgetConfig
    tokens: int = 0
    money: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, tokens: int, money: float) -> None:
        self.tokens += tokens
        self.money += money

    def check(self) -> None:
        """Raises BudgetSpent, one line, if a limit is reached."""
        minutes = self._seconds() / 60
        for name, used, limit in (
            ("tokens", self.tokens, self.limits.tokens),
            ("money", self.money, self.limits.money),
            ("minutes", minutes, self.limits.minutes),
        ):
            if limit and used >= limit:
                raise BudgetSpent(f"budget.{name} = {limit:g} is spent; raise it and run again to go on")

    def seconds_left(self) -> float:
        """Of the minutes; infinite without a limit."""
        return self.limits.minutes * 60 - self._seconds() if self.limits.minutes else math.inf

    def _seconds(self) -> float:
        return time.monotonic() - self.started
