"""Tasks through lm-eval: the numbers of the harness itself, per item, and code only when asked for."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from paser.errors import PaserError, SettingsError, SourceError
from paser.evaluation import harness, hub
from paser.evaluation.harness import hub_task, local_task, require_runnable, run_task
from paser.evaluation.items import CHOICES, CLOZE, FUNCTION, NUMBER, PROGRAM, Items

lm_eval = pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed")
ANIMALS = ("otter", "heron", "badger", "lynx")


def choices(count: int = 6) -> Items:
    documents = [
        {
            "item": f"a:{i}",
            "query": f"Question: Which animal is number {i}?\nAnswer:",
            "choices": [f"the {name} that lives near {'the river ' * k}" for k, name in enumerate(ANIMALS)],
            "gold": i % 4,
            "probes": [f"Which animal is number {i}?"],
        }
        for i in range(count)
    ]
    return Items(CHOICES, tuple(documents), ("a note",))


@pytest.fixture(scope="module")
def loaded(llama: Path) -> tuple[Any, Any]:
    import torch

    from paser.models.loading import load_causal_lm, load_tokenizer

    return load_causal_lm(llama, dtype=torch.float32), load_tokenizer(llama)


def by_hand(model: Any, tokenizer: Any, query: str, choice: str) -> float:
    """Log-likelihood of a choice after the query, one token after the other."""
    import torch

    before = tokenizer(query)["input_ids"]
    whole = tokenizer(f"{query} {choice}")["input_ids"]
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), dim=-1)
    return sum(float(logs[i - 1, whole[i]]) for i in range(len(before), len(whole)))


def test_choices_are_judged_by_their_likelihood(loaded: tuple[Any, Any]) -> None:
    items = choices()
    (found,) = run_task(*loaded, local_task("animals", "here", items), batch_size=3)
    assert found.choices is not None
    for document, likelihoods in zip(items.documents, found.choices, strict=True):
        expected = [by_hand(*loaded, document["query"], choice) for choice in document["choices"]]
        assert likelihoods == pytest.approx(expected, rel=1e-4)
    right = [
        values.index(max(values)) == d["gold"]
        for values, d in zip(found.choices, items.documents, strict=True)
    ]
    assert found.metrics["acc"]["value"] == pytest.approx(sum(right) / 6)
    assert found.values["acc"] == [float(value) for value in right]
    longest = [
        max(range(4), key=lambda k: values[k] / len(d["choices"][k])) == d["gold"]
        for values, d in zip(found.choices, items.documents, strict=True)
    ]
    assert found.metrics["acc_norm"]["value"] == pytest.approx(sum(longest) / 6)
    share = found.metrics["acc"]["value"]
    assert found.metrics["acc"]["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 5))
    assert found.primary == "acc_norm"
    assert found.ids == [f"a:{i}" for i in range(6)]
    assert list(found.notes) == ["a note"]


def test_a_limit_is_stated_with_the_number(loaded: tuple[Any, Any]) -> None:
    (found,) = run_task(*loaded, local_task("animals", "here", choices()), limit=2)
    assert (found.items, found.of) == (2, 6)
    assert "first 2 of 6 items" in found.protocol
    assert "0 examples before the question, no chat template" in found.protocol


def test_the_context_that_makes_an_ending_likelier_wins(loaded: tuple[Any, Any]) -> None:
    document = {
        "item": "a:1",
        "contexts": ["The otter lives near", "Compute 4 plus"],
        "ending": "the river.",
        "gold": 1,
        "probes": ["x"],
    }
    (found,) = run_task(
        *loaded, local_task("blank", "here", Items(CLOZE, (document, {**document, "gold": 0})))
    )
    assert found.choices is not None
    expected = [by_hand(*loaded, context, "the river.") for context in document["contexts"]]
    assert found.choices[0] == pytest.approx(expected, rel=1e-4)
    assert sum(found.values["acc"]) == 1.0
    assert list(found.metrics) == ["acc"]


def test_numbers_are_taken_from_the_text(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    said = ["So 4 + 4 is $8.00 and 8 in all.\n#### 8", "It is 7", "nothing"]
    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, disable_tqdm=False: said)
    documents = [
        {"item": f"a:{i}", "query": "Question: 4 + 4?\nAnswer:", "target": f"#### {target}", "probes": ["q"]}
        for i, target in enumerate((8, 7, 3))
    ]
    (found,) = run_task(*loaded, local_task("sums", "here", Items(NUMBER, tuple(documents))))
    assert found.values["exact_match (strict-match)"] == [1.0, 0.0, 0.0]
    assert found.values["exact_match (flexible-extract)"] == [1.0, 1.0, 0.0]
    assert found.choices is None


FUNCTIONS = Items(
    FUNCTION,
    tuple(
        {
            "item": f"a:{i}",
            "prompt": "def double(x):\n",
            "test": "def check(f):\n    assert f(2) == 4",
            "entry_point": "double",
            "probes": ["def double(x):"],
        }
        for i in range(3)
    ),
)
EXAMPLE = {
    "item": "a:2",
    "text": "Write one.",
    "code": "def one(): return 1",
    "tests": "assert one() == 1",
    "probes": ["x"],
}
PROGRAMS = Items(
    PROGRAM,
    tuple(
        {"item": f"a:{i}", "text": "Write two.", "code": "", "tests": "assert two() == 2", "probes": ["y"]}
        for i in range(3)
    ),
    (),
    (EXAMPLE,),
)


@pytest.mark.parametrize(("items", "said"), [
    (FUNCTIONS, ["    return 2 * x\n", "    return x\n", "    while True: pass\n"]),
    (PROGRAMS, ["def two(): return 2", "```python\ndef two(): return 2\n```", "import sys; sys.exit(0)"]),
])  # fmt: skip
def test_programs_are_judged_by_running_them(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, items: Items, said: list[str]
) -> None:
    from lm_eval.models.huggingface import HFLM

    from paser.evaluation import sandbox

    try:
        sandbox.require_sandbox()
    except PaserError as error:
        pytest.skip(str(error.problem))
    monkeypatch.setattr(sandbox, "Limits", partial(sandbox.Limits, seconds=3))
    asked: list[Any] = []

    def generate(self: Any, requests: Any, disable_tqdm: bool = False) -> list[str]:
        asked.extend(request.args[0] for request in requests)
        return said

    monkeypatch.setattr(HFLM, "generate_until", generate)
    task = local_task("code", "here", items)
    require_runnable([task], run_code=True)
    (found,) = run_task(*loaded, task)
    passed = [1.0, 0.0, 0.0] if items is FUNCTIONS else [1.0, 1.0, 0.0]
    assert found.values["pass@1"] == passed
    if items is PROGRAMS:
        assert asked[0].startswith("You are an expert Python programmer, and here is your task: Write one.")
        assert asked[0].count("[BEGIN]") == 2
        assert "def one(): return 1\n[DONE]" in asked[0]


def test_programs_are_not_run_unless_asked_for() -> None:
    with pytest.raises(SettingsError, match=r"code: measuring it runs programs[\s\S]*--run-code"):
        require_runnable([local_task("code", "here", FUNCTIONS)], run_code=False)
    require_runnable([local_task("animals", "here", choices())], run_code=False)


def test_a_name_that_nobody_knows_is_told_with_its_neighbours() -> None:
    with pytest.raises(SettingsError, match=r"'helaswag' is neither[\s\S]*'hellaswag'"):
        hub.require_known("helaswag")
    known = "boolq piqa hellaswag winogrande arc_easy arc_challenge openbookqa gsm8k humaneval mbpp"
    for name in known.split():
        hub.require_known(name)


def test_a_task_of_the_hub_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no network here")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(SourceError, match=r"humaneval[\s\S]*no network here[\s\S]*local files"):
        hub_task("humaneval")
    with pytest.raises(SourceError, match=r"task piqa[\s\S]*cannot be loaded from the Hub"):
        list(hub.hub_prompts("piqa"))


def test_a_task_of_the_hub_is_asked_as_lm_eval_asks_it(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = [
        {"goal": f"Open jar {i}", "sol1": "Twist the lid.", "sol2": "Eat it.", "label": i % 2}
        for i in range(4)
    ]
    made = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: {"train": made, "validation": made})
    (found,) = run_task(*loaded, hub_task("piqa"), batch_size=2)
    assert found.task == "piqa"
    assert found.choices is not None
    assert found.choices[1][1] == pytest.approx(
        by_hand(*loaded, "Question: Open jar 1\nAnswer:", "Eat it."), rel=1e-4
    )
    prompts = list(hub.hub_prompts("piqa"))
    assert prompts[0]["texts"] == ["Question: Open jar 0\nAnswer:", "Open jar 0"]


def test_without_lm_eval_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SettingsError, match=r"needs? lm-eval[\s\S]*paser\[tasks\]"):
        harness.require_harness()
