"""What both models make of one row: their answers, and how far apart they are at each token of the response.

Models are loaded at the first question and kept; one question is worked on at a time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.records import Sample

if TYPE_CHECKING:
    from paser.models.tokens import Encoded
    from paser.models.workload import ModelSet
    from paser.settings import Settings

KEPT = 200


@dataclass(frozen=True)
class Token:
    """One token of the response: JSD in nats, 0 to ln 2, and both models' loss in nats."""

    text: str
    jsd: float
    loss_original: float
    loss_pruned: float


@dataclass(frozen=True)
class Answers:
    """Both models' own answers to a row's prompt, and the tokens of the row's response.

    `cut` says that the response was longer than `score.max_tokens` or a context; `ended` which answers came
    to an end before the longest that was allowed.
    """

    original: str
    pruned: str
    ended: tuple[bool, bool]
    tokens: tuple[Token, ...]
    cut: bool

    @property
    def mean_jsd(self) -> float | None:
        return sum(token.jsd for token in self.tokens) / len(self.tokens) if self.tokens else None


class Answerer:
    """Asks the original and the pruned model of a project; the last `KEPT` results stay in memory."""

    def __init__(self, project: Path, settings: Settings, longest: int) -> None:
        """`longest`: most tokens of an answer."""
        self._project, self._settings, self._longest = project, settings, longest
        self._models: ModelSet | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Answers] = OrderedDict()

    def known(self, row_id: str) -> Answers | None:
        """The result of an earlier question."""
        return self._known.get(row_id)

    def ask(self, sample: Sample) -> Answers:
        """Greedy answers and per-token divergence. Raises ModelError where a model cannot be loaded."""
        with self._lock:
            if found := self._known.get(sample.row_id):
                return found
            models = self._loaded()
            encoded = models.encoder.encode(sample, models.limit(self._settings.score.max_tokens))
            original, pruned = models.reference, models.others["pruned"]
            texts, ended = zip(
                *(self._answer(models, model, encoded.prompt_ids) for model in (original, pruned)),
                strict=True,
            )
            answers = Answers(texts[0], texts[1], ended, self._tokens(models, encoded), encoded.cut)
            self._known[sample.row_id] = answers
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return answers

    def _loaded(self) -> ModelSet:
        from paser.cache import Cache
        from paser.models.workload import ModelSet

        if self._models is None:
            paths = {name: self._project / "data" / "models" / name for name in ("original", "pruned")}
            self._models = ModelSet.load(paths, self._settings, Cache.of(self._project))
        return self._models

    def _answer(self, models: ModelSet, model: Any, prompt: Sequence[int]) -> tuple[str, bool]:
        import torch

        from paser.models.packing import device_of

        tokenizer = models.encoder.tokenizer
        ids = torch.tensor([prompt], device=device_of(model))
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self._longest,
                do_sample=False,
                num_beams=1,
                eos_token_id=models.encoder.end_of_turn,
                pad_token_id=tokenizer.pad_token_id,
            )[0, len(prompt) :]
        ended = bool(len(made) and int(made[-1]) == models.encoder.end_of_turn)
        return str(tokenizer.decode(made, skip_special_tokens=True)), ended

    def _tokens(self, models: ModelSet, encoded: Encoded) -> tuple[Token, ...]:
        import torch

        from paser.models.packing import device_of
        from paser.models.tokenwise import token_values

        if not encoded.prompt_ids or not encoded.response_ids:
            return ()
        ids = torch.tensor([[*encoded.prompt_ids, *encoded.response_ids]])
        first, size = len(encoded.prompt_ids) - 1, len(encoded.response_ids)
        with torch.inference_mode():
            logits = []
            for model in (models.reference, models.others["pruned"]):
                logits.append(model(ids.to(device_of(model))).logits[0, first : first + size].cpu())
            values = token_values(
                logits, torch.tensor(encoded.response_ids), self._settings.score.temperature
            )
        # In order: the original's loss, the pruned one's, JSD, and the two KL.
        losses, others, jsd = values[:3].tolist()
        decode = models.encoder.tokenizer.decode
        return tuple(
            Token(str(decode([token])), jsd[i], losses[i], others[i])
            for i, token in enumerate(encoded.response_ids)
        )
