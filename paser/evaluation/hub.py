"""Tasks of lm-eval by name: their items come from the Hugging Face Hub, as the harness itself takes them.

HumanEval and MBPP are the exception: lm-eval's own files run what the model wrote without a sandbox, so
only their data are taken and the rest is done in `harness`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

from paser.errors import SettingsError, SourceError

# Name -> repository, configuration, split.
CODE_DATASETS: dict[str, tuple[str, str | None, str]] = {
    "humaneval": ("openai/openai_humaneval", None, "test"),
    "mbpp": ("google-research-datasets/mbpp", "full", "test"),
}


def require_harness() -> None:
    """Raises `SettingsError` where lm-eval is not installed; quiets it where it is."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "tasks need lm-eval, which is not installed here",
            remedy="pip install -c constraints.txt 'paser[tasks]', or leave the tasks out",
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def require_known(name: str) -> None:
    """Raises `SettingsError` unless lm-eval has a task or group of this name."""
    import difflib

    require_harness()
    if name in CODE_DATASETS:
        return
    names = _index().all_tasks
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        raise SettingsError(
            f"{name!r} is neither a source with `role: task` nor a task of lm-eval",
            remedy=f"did you mean {' or '.join(map(repr, close))}?" if close else "see `lm-eval ls tasks`",
        )


@functools.cache
def _index() -> Any:
    """lm-eval's thousands of task files, read once."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def hub_rows(name: str, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of HumanEval's or MBPP's data set, of its test split unless another is named."""
    import datasets

    path, configuration, test = CODE_DATASETS[name]
    try:
        return list(datasets.load_dataset(path, configuration, split=split or test))
    except Exception as error:
        raise _unreachable(name, error) from error


def hub_prompts(name: str) -> Iterator[dict[str, Any]]:
    """One `{item, texts}` for each item of a task: its prompt, in the forms that a training row may have."""
    require_harness()
    if name in CODE_DATASETS:
        for row in hub_rows(name):
            yield {"item": str(row["task_id"]), "texts": [row.get("prompt") or row["text"]]}
        return
    for key, task in load_tasks(name).items():
        for number, document in enumerate(task.eval_docs):
            text = task.doc_to_text(document)
            texts = [text] if isinstance(text, str) else list(task.doc_to_choice(document))
            if query := task.config.doc_to_decontamination_query:
                shown = document.get(query) if isinstance(query, str) else None
                texts += [shown] if isinstance(shown, str) else []
            yield {"item": f"{key}:{number}", "texts": texts}


def load_tasks(name: str) -> dict[str, Any]:
    """lm-eval's task objects by name, with their data; several for a group."""
    try:
        return dict(_index().load([name])["tasks"])
    except Exception as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> SourceError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return SourceError(
        f"task {name}: its data cannot be loaded from the Hub: {first}",
        remedy="load it once where there is a network, or take a task from local files (docs/evaluation.md)",
    )
