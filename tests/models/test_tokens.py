"""Encoding through the chat template, and what happens without one."""

from __future__ import annotations

import pytest

from paser.errors import ModelError
from paser.models.tokens import SampleEncoder
from paser.records import Sample
from tests import tiny

SAMPLE = Sample("t", "1", "MIT", "Compute 2 plus 2.", "as a word", "two plus two is four")


def test_chat_template_response_and_end_of_turn() -> None:
    tokenizer = tiny.make_tokenizer()
    encoder = SampleEncoder(tokenizer)
    found = encoder.encode(SAMPLE, 1000)
    assert encoder.template == "chat"
    prompt = tokenizer.decode(found.prompt_ids)
    assert prompt.endswith("<|start|>assistant\n")
    assert "Compute 2 plus 2.\n\nas a word<|end|>" in prompt
    assert tokenizer.decode(found.response_ids) == "two plus two is four<|end|>"
    assert not found.cut
    assert encoder.count(SAMPLE) == found.tokens


def test_end_of_turn_comes_from_the_template_not_from_eos() -> None:
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = "<|start|>"
    found = SampleEncoder(tokenizer).encode(SAMPLE, 1000)
    assert tokenizer.convert_ids_to_tokens(found.response_ids[-1]) == "<|end|>"


def test_a_template_with_the_date_gives_the_same_prompt_every_day() -> None:
    tokenizer = tiny.make_tokenizer()
    today = "{{ strftime_now('%d %b %Y') }} {{ date_string }}\n"
    tokenizer.chat_template = today + tiny.CHAT_TEMPLATE
    assert SampleEncoder(tokenizer).prompt_text(SAMPLE).startswith("01 Jan 2025 01 Jan 2025\n")


def test_without_chat_template_a_plain_one_is_used() -> None:
    tokenizer = tiny.make_tokenizer(chat=False)
    encoder = SampleEncoder(tokenizer)
    found = encoder.encode(SAMPLE, 1000)
    assert encoder.template == "plain"
    assert tokenizer.decode(found.prompt_ids).endswith("### Response:\n")
    assert found.response_ids[-1] == tokenizer.eos_token_id


def test_long_samples_lose_their_end_and_say_so() -> None:
    encoder = SampleEncoder(tiny.make_tokenizer())
    full = encoder.encode(SAMPLE, 1000)
    cut = encoder.encode(SAMPLE, full.tokens - 4)
    assert cut.cut
    assert cut.response_ids == full.response_ids[:-4]
    assert encoder.encode(SAMPLE, 5).response_ids == ()


def test_a_tokenizer_without_any_end_token_is_refused() -> None:
    tokenizer = tiny.make_tokenizer(chat=False)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="eos token"):
        SampleEncoder(tokenizer)
