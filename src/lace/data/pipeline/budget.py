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
        self._check("tokens", self.tokens, self.limits.tokens)
        self._check("money", self.money, self.limits.money)
        self.check_minutes()

    def check_minutes(self) -> None:
        """The same of the time alone, which also passes where no call is made."""
        self._check("minutes", self._seconds() / 60, self.limits.minutes)

    @staticmethod
    def _check(name: str, used: float, limit: float) -> None:
        if limit and used >= limit:
            raise BudgetSpent(f"budget.{name} = {limit:g} is spent; raise it and run again to go on")

    def seconds_left(self) -> float:
        """Of the minutes; infinite without a limit."""
        return self.limits.minutes * 60 - self._seconds() if self.limits.minutes else math.inf

    def _seconds(self) -> float:
        return time.monotonic() - self.started
