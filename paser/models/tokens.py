"""Samples as token ids: prompt through the chat template, response apart, one end-of-turn token.

The same encoding serves scoring, pruning, recovery and evaluation, so that what is measured is what
is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from paser.errors import ModelError
from paser.records import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"
FIXED_DAY = date(2025, 1, 1)
_MARK = "\u2042answer\u2042"


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample. `cut` says that it was longer than allowed and lost its end."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    cut: bool = False

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


class SampleEncoder:
    """Encodes samples for one tokenizer (method.md, section 2).

    `template` is `"chat"` when the tokenizer has a chat template, else `"plain"`: an instruction and a
    response heading. The end-of-turn token is the one that the chat template puts after an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.template = "chat" if tokenizer.chat_template else "plain"
        self.end_of_turn = self._end_of_turn()

    def _end_of_turn(self) -> int:
        if self.template == "chat":
            turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
            text = self._render(turns)
            after = text.rpartition(_MARK)[2].strip()
            ids = self.tokenizer.encode(after, add_special_tokens=False) if after else []
            if ids and ids[0] in self.tokenizer.all_special_ids:
                return int(ids[0])
            if ids and ids[0] in getattr(self.tokenizer, "added_tokens_decoder", {}):
                return int(ids[0])
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has neither an end-of-turn token in its chat template nor an eos token",
                remedy="set eos_token in tokenizer_config.json",
            )
        return int(self.tokenizer.eos_token_id)

    def _render(self, turns: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        """The chat template, on a fixed day: some templates write today's date into every prompt."""
        text = self.tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            strftime_now=lambda form: FIXED_DAY.strftime(form),
            date_string=FIXED_DAY.strftime("%d %b %Y"),
            add_generation_prompt=add_generation_prompt,
        )
        return str(text)

    def prompt_text(self, sample: Sample) -> str:
        if self.template == "chat":
            turns = [{"role": "user", "content": sample.prompt}]
            return self._render(turns, add_generation_prompt=True)
        return PLAIN_TEMPLATE.format(prompt=sample.prompt)

    def encode(self, sample: Sample, max_tokens: int) -> Encoded:
        """Token ids of a sample, at most `max_tokens` in all; the end is cut and flagged."""
        special = self.template == "plain"
        prompt = self.tokenizer.encode(self.prompt_text(sample), add_special_tokens=special)
        response = self.tokenizer.encode(sample.output, add_special_tokens=False)
        response.append(self.end_of_turn)
        if special and prompt and prompt[-1] == self.tokenizer.eos_token_id:
            prompt = prompt[:-1]
        room = max(max_tokens - len(prompt), 0)
        return Encoded(tuple(prompt[:max_tokens]), tuple(response[:room]), len(response) > room)

    def count(self, sample: Sample) -> int:
        """Tokens of prompt and response, uncut."""
        return self.encode(sample, 2**62).tokens
