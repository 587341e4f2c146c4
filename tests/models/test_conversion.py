"""Pickles: tensors and configuration come out, and nothing that is in them is ever run."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paser.errors import ModelError
from paser.models.conversion import convert
from paser.models.inspection import inspect
from paser.models.loading import load_causal_lm, load_tokenizer
from paser.models.unpickling import Refusal, save_tensors, tensors_of, unpickle
from tests.models import foreign


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _text(command: str) -> bytes:
    return b"X" + len(command).to_bytes(4, "little") + command.encode()


def _zip_twice(path: Path, command: str) -> None:
    torch.save({"w": torch.zeros(2)}, path.with_suffix(".good"))
    with zipfile.ZipFile(path.with_suffix(".good")) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name))
        bad.writestr("other/data.pkl", pickle.dumps(Calls(os.system, command), 2))


def _saved(*parts: Any, **options: Any) -> Callable[[Path, str], None]:
    def write(path: Path, command: str) -> None:
        function, *arguments = parts
        arguments = [command if argument is None else argument for argument in arguments]
        torch.save({"w": torch.zeros(2), "x": Calls(function, *arguments)}, path, **options)

    return write


EVIL: dict[str, tuple[Callable[[Path, str], None], list[str]]] = {
    "system": (_saved(os.system, None), ["posix.system"]),
    "eval": (_saved(eval, "open('MARK', 'w')"), ["__builtin__.eval"]),
    "exec": (_saved(exec, "open('MARK', 'w')"), ["__builtin__.exec"]),
    "getattr": (
        _saved(getattr, Calls(__import__, "os"), "system"),
        ["__builtin__.__import__", "__builtin__.getattr"],
    ),
    "popen": (_saved(subprocess.Popen, ["touch", "MARK"]), ["commands.Popen"]),
    "partial": (
        lambda path, command: torch.save(Calls(functools.partial(os.system, command)), path),
        ["functools.partial", "posix.system"],
    ),
    "old-torch": (_saved(os.system, None, _use_new_zipfile_serialization=False), ["posix.system"]),
    "protocol-4": (_saved(os.system, None, pickle_protocol=4), ["posix.system"]),
    "plain": (lambda p, c: _write(p, pickle.dumps(Calls(os.system, c))), ["posix.system"]),
    "protocol-0": (lambda p, c: _write(p, f"cos\nsystem\n(S'{c}'\ntR.".encode()), ["os.system"]),
    "inst": (lambda p, c: _write(p, f"(S'{c}'\nios\nsystem\n.".encode()), ["os.system"]),
    "dotted": (
        lambda p, c: _write(p, b"\x80\x02ctransformers.utils.hub\nos.system\n" + _text(c) + b"\x85R."),
        ["transformers.utils.hub.os.system"],
    ),
    "stack": (
        lambda p, c: _write(p, b"\x80\x04\x8c\x0ctransformers\x8c\x09os.system\x93" + _text(c) + b"\x85R."),
        ["transformers.os.system"],
    ),
    "library-function": (
        lambda p, c: _write(
            p,
            b"\x80\x02ctransformers.dynamic_module_utils\nget_class_from_dynamic_module\n"
            + _text(c)
            + b"\x85R.",
        ),
        ["transformers.dynamic_module_utils.get_class_from_dynamic_module"],
    ),
    "second-pickle": (_zip_twice, ["posix.system"]),
}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize("name", EVIL)
def test_code_in_a_pickle_is_refused_by_name_and_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, refused = EVIL[name]
    write(tmp_path / "evil.bin", "touch MARK")
    with pytest.raises(Refusal) as caught:
        unpickle(tmp_path / "evil.bin")
    assert caught.value.names == refused
    assert not (tmp_path / "MARK").exists()


def test_the_command_refuses_such_a_pickle_whole(llama: Path, tmp_path: Path) -> None:
    mark = tmp_path / "MARK"
    EVIL["system"][0](tmp_path / "evil.bin", f"touch {mark}")
    with pytest.raises(
        ModelError, match=r"evil\.bin is refused and nothing in it was run: it names posix\.system"
    ):
        convert(tmp_path / "evil.bin", tmp_path / "out", llama)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_an_llm_pruner_pickle_becomes_a_folder_that_loads(llama: Path, tmp_path: Path) -> None:
    expected = foreign.llm_pruner(llama, tmp_path / "pytorch_model.bin")
    done = convert(tmp_path / "pytorch_model.bin", tmp_path / "out")
    assert "LLMPruner.models.hf_llama.modeling_llama.LlamaForCausalLM" in done.stand_ins
    model = load_causal_lm(tmp_path / "out", dtype=torch.float16)
    assert torch.equal(foreign.logits(model), expected)
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.get_vocab() == load_tokenizer(llama).get_vocab()
    assert tokenizer.chat_template == load_tokenizer(llama).chat_template
    found = inspect(tmp_path / "out")
    assert (found.widths()[0]["heads"], found.widths()[1]["mlp_width"]) == (2, 40)
    assert "llm-pruner" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("nested", [False, True])
def test_pickled_masks_become_safetensors_beside_their_weights(
    llama: Path, tmp_path: Path, nested: bool
) -> None:
    from safetensors.torch import load_file, save_file

    expected = foreign.masked(llama, tmp_path / "theirs")
    weights = tmp_path / "theirs/model.safetensors"
    tensors = load_file(weights)
    masks = {n.removesuffix(".weight_mask"): t for n, t in tensors.items() if n.endswith("_mask")}
    save_file({n.removesuffix("_orig"): t for n, t in tensors.items() if not n.endswith("_mask")}, weights)
    torch.save({"masks": masks} if nested else masks, tmp_path / "masks.pt")
    with pytest.raises(ModelError, match=r"masks alone[\s\S]*--original"):
        convert(tmp_path / "masks.pt", tmp_path / "out")
    done = convert(tmp_path / "masks.pt", tmp_path / "out", tmp_path / "theirs")
    assert "14 masks in masks.safetensors" in done.notes[0]
    assert torch.equal(foreign.logits(load_causal_lm(tmp_path / "out", dtype=torch.float32)), expected)
    found = inspect(tmp_path / "out").sparsity
    assert found is not None
    assert found.overall == pytest.approx(0.5, abs=0.01)


def test_a_pickled_state_dict_needs_a_configuration(llama: Path, tmp_path: Path) -> None:
    model = load_causal_lm(llama, dtype=torch.float32)
    (tmp_path / "own").mkdir()
    torch.save(model.state_dict(), tmp_path / "own/pytorch_model.bin")
    with pytest.raises(ModelError, match=r"tensors alone[\s\S]*--original"):
        convert(tmp_path / "own/pytorch_model.bin", tmp_path / "out")
    convert(tmp_path / "own", tmp_path / "out", llama)
    again = load_causal_lm(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(foreign.logits(again), foreign.logits(model))


def test_a_rotated_checkpoint_of_slicegpt(llama: Path, tmp_path: Path) -> None:
    model = foreign.rotated(llama)
    torch.save(model.state_dict(), tmp_path / "model_0.25.pt")
    (tmp_path / "model_0.25.json").write_text("{}", encoding="utf-8")
    convert(tmp_path / "model_0.25.pt", tmp_path / "out", llama)
    again = load_causal_lm(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(foreign.logits(again), foreign.logits(model))
    found = inspect(tmp_path / "out")
    assert found.format == "SliceGPT rotated"
    assert found.unfit is None


def test_tensors_of_no_model_are_refused(llama: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "w.bin")
    with pytest.raises(ModelError, match="lacks 20 tensors of a LlamaForCausalLM"):
        convert(tmp_path / "w.bin", tmp_path / "out", llama)
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_made_to_fill_memory_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**12)}, tmp_path / "w.bin")
    content, _ = unpickle(tmp_path / "w.bin")
    size = (tmp_path / "w.bin").stat().st_size
    with pytest.raises(ValueError, match="tensors would take 4,000,000,000,000 bytes"):
        save_tensors(tensors_of(content), size, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" + bytes(range(100)), b"\x80\x02}q\x00"])
def test_a_file_that_is_no_pickle_is_called_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(ValueError, match="truncated, or no pickle"):
        unpickle(tmp_path / "w.bin")


def test_the_process_has_no_environment_and_no_network(tmp_path: Path) -> None:
    """Run as `convert` runs it: secrets do not get in, connections do not get out."""
    import sys

    code = (
        "import os, resource, socket\n"
        "from paser.models.unpickling import forbid, isolate\n"
        "cut = isolate(32 << 30, 60, 1 << 20)\n"
        "forbid()\n"
        "kinds = resource.RLIMIT_CPU, resource.RLIMIT_FSIZE\n"
        "print(cut, *(resource.getrlimit(kind)[0] for kind in kinds))\n"
        "for attempt in (lambda: os.system('true'), lambda: socket.create_connection(('127.0.0.1', 9))):\n"
        "    try:\n"
        "        attempt()\n"
        "    except OSError as error:\n"
        "        print(type(error).__name__)\n"
    )
    root = str(Path(__file__).parent.parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PATH": os.defpath, "PYTHONPATH": root},
    )  # fmt: skip
    cut, seconds, size, *errors = done.stdout.split()
    assert cut in ("True", "False")
    assert (seconds, size) == ("60", str(1 << 20))
    assert errors == ["PermissionError", "PermissionError"]
