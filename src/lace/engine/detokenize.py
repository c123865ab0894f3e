"""Token ids to text, one token at a time, without decoding the whole thread again at each step."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Text of one growing thread, with stop texts cut off.

    A lazy one, for when nobody looks before the end, decodes once. Otherwise only a short tail is decoded at each
    step: from the last token whose text is settled on. A tail that ends in half a character, or in what may be the
    beginning of a stop text, is held back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], *, lazy: bool = False) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.lazy = lazy and not stop
        self.ids: list[int] = []
        self.text = ""
        self.sent = 0
        self.stopped = False
        self._start = self._settled = 0

    def add(self, token_id: int) -> None:
        """Takes one more token; `stopped` tells whether a stop text is complete now."""
        self.ids.append(token_id)
        if self.lazy:
            return
        before = self._decode(self._start, self._settled)
        now = self._decode(self._start, len(self.ids))
        if len(now) <= len(before) or now.endswith(INCOMPLETE):
            return
        searched = max(0, len(self.text) - max(map(len, self.stop), default=0))
        self.text += now[len(before) :]
        self._start, self._settled = self._settled, len(self.ids)
        ends = [found for text in self.stop if (found := self.text.find(text, searched)) >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)], True

    def take(self, *, final: bool) -> str:
        """The text since the last call; all that is left if `final`. A lazy one has nothing before that."""
        if self.lazy and not final:
            return ""
        if final and not self.stopped:
            self.text += self._decode(self._start, len(self.ids))[len(self._decode(self._start, self._settled)) :]
            self._start = self._settled = len(self.ids)
        end = len(self.text) if final else len(self.text) - self._held()
        new, self.sent = self.text[self.sent : end], max(self.sent, end)
        return new

    def _decode(self, start: int, end: int) -> str:
        return str(self.tokenizer.decode(self.ids[start:end], skip_special_tokens=True))

    def _held(self) -> int:
        """Length of the longest tail that could still become a stop text."""
        longest = max((len(text) - 1 for text in self.stop), default=0)
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(text.startswith(self.text[-length:]) for text in self.stop):
                return length
        return 0
