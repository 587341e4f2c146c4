"""Causal language models whose layers differ from what their configuration says.

`config.json` has one width and one number of heads for all layers; a structurally pruned model has its own
in each. The shapes of the saved weights say which, so the architecture is built, each linear layer gets
the shape of its weight, and then transformers loads it as any other.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paser.errors import ModelError
from paser.models.checkpoint import CONFIG, read_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]

# The key of config.json under which a folder says what its weights show; plain transformers ignores it.
BLOCK = "paser"
UNEVEN, SLICED = "uneven", "sliced"
_BLOCK_NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_HEADS = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED = ("gate_proj", "up_proj", "down_proj")


def saved_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a folder's safetensors files; reads their headers alone."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as stream:
                for name in stream.keys():  # noqa: SIM118
                    found[name] = tuple(stream.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{path}: the model cannot be loaded: {error}", remedy="fetch or save the file again"
            ) from error
    return found


def other_shapes(before: Path, after: Path) -> list[str]:
    """Names of the tensors that two saved models do not share in the same shape."""
    first, second = saved_shapes(before), saved_shapes(after)
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))


def skeleton(directory: Path) -> PreTrainedModel:
    """The model of a folder on the meta device: every module in its shape, no weights.

    Raises ModelError where `config.json` is of no known causal language model, or the weights do not fit
    together.
    """
    return _build(read_config(directory), saved_shapes(directory), str(directory))[0]


def _build(values: Mapping[str, Any], shapes: Shapes, origin: str) -> tuple[PreTrainedModel, bool]:
    """The model on the meta device, and whether plain transformers would build another."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _configuration(with_saved_blocks(values, shapes, origin)[0], origin)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise _no_model(origin, _first_line(error)) from error
    if getattr(config, "quantization_config", None):
        return model, False
    if layout(config) == SLICED:
        from paser.models.sliced import slice_modules

        slice_modules(model, shapes, origin)
        return model, True
    return model, fit(model, shapes, origin) or layout(config) is not None


def _configuration(values: Mapping[str, Any], origin: str) -> PreTrainedConfig:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(values["model_type"])
    if kind not in CONFIG_MAPPING or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise _no_model(origin, f"transformers has none of the type {kind!r}")
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(dict(values))
    except Exception as error:  # the checks of configuration classes raise classes of their own
        raise _no_model(origin, _first_line(error)) from error
    return config


def _no_model(origin: str, why: str) -> ModelError:
    return ModelError(
        f"{origin}: {CONFIG} is not that of a causal language model: {why}",
        remedy="save the model with `save_pretrained`; it must load without remote code",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def with_saved_blocks(
    values: Mapping[str, Any], names: Collection[str], origin: str
) -> tuple[Mapping[str, Any], str]:
    """The configuration with as many blocks as the tensors `names` have, and a line if those are fewer.

    Raises ModelError where a block is missing between others: which block follows which is then not said.
    """
    from transformers import CONFIG_MAPPING

    kind, key = str(values.get("model_type")), "num_hidden_layers"
    if kind in CONFIG_MAPPING:
        key = CONFIG_MAPPING[kind].attribute_map.get(key, key)
    count = values.get(key)
    there = {int(found[1]) for name in names if (found := _BLOCK_NUMBER.search(name))}
    if not isinstance(count, int) or not there or not (missing := sorted({*range(count)} - there)):
        return values, ""
    left = missing[0]
    if any(number > left for number in there):
        raise ModelError(
            f"{origin}: {CONFIG} says {count} blocks, and block {left} has no weights, but later ones have: "
            "this looks like dropped blocks",
            remedy=f"renumber them: the tensors of the blocks that are left are named 0 to {len(there) - 1}",
        )
    lists = {
        name: value[:left]
        for name, value in values.items()
        if isinstance(value, list) and len(value) == count and ("layer" in name or "block" in name)
    }
    said = f"{CONFIG} says {count} blocks, the weights have {left}: it loads with {left}"
    return {**values, key: left, **lists}, said


def fewer_blocks(directory: Path) -> tuple[PreTrainedConfig | None, str]:
    """The configuration of a folder that has fewer blocks than its config.json says, and a line on that."""
    values, said = with_saved_blocks(read_config(directory), saved_shapes(directory), str(directory))
    return (_configuration(values, str(directory)), said) if said else (None, "")


def check_loads(values: Mapping[str, Any], shapes: Shapes, origin: str) -> None:
    """Raises ModelError, as `loading.load_causal_lm` would, unless tensors of `shapes` make a whole model."""
    model, unusual = _build(values, shapes, origin)
    check_complete(origin, missing(model, shapes), strange(model, shapes) if unusual else [])
    if unusual:
        check_runs(model, origin)


def missing(model: PreTrainedModel, names: Collection[str]) -> list[str]:
    """Tensors of `model` that are not among `names`, under any of the names that tied ones share; sorted."""
    same: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        same.setdefault(id(tensor), []).append(name)
    there = own_names(model, names)
    return sorted(name for group in same.values() if there.isdisjoint(group) for name in group)


def strange(model: PreTrainedModel, names: Collection[str]) -> list[str]:
    """Those among `names` that `model` has no place for, under its own names, sorted."""
    found = own_names(model, names) - set(model.state_dict())
    return sorted(name for name in found if not name.endswith("rotary_emb.inv_freq"))


def own_names(model: PreTrainedModel, names: Collection[str]) -> set[str]:
    """What transformers calls the tensors `names` of a file when it loads them: it renames those of some
    families, and adds the prefix of the base model where it is left out."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    steps = get_model_conversion_mapping(model)
    converters: list[Any] = [step for step in steps if isinstance(step, WeightConverter)]
    renamings: list[Any] = [step for step in steps if isinstance(step, WeightRenaming)]
    state, found = model.state_dict(), set[str]()
    for name in names:
        own, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        found.add(own)
        for converter in converters:
            if pattern in converter.source_patterns:
                first, *more = converter.target_patterns
                found |= {own.replace(first, other) for other in more}
    return found


def check_complete(origin: str, missing: Collection[str], strange: Collection[str]) -> None:
    """Raises ModelError where a tensor is missing, or one has no place."""
    if missing:
        raise ModelError(
            f"{origin} lacks {len(missing)} tensors that config.json promises, {min(missing)} first",
            remedy="fetch or save the model again with all of its files",
        )
    if strange:
        raise ModelError(
            f"{origin} has {len(strange)} tensors that its architecture has no place for, "
            f"{min(strange)} first",
            remedy="only linear layers may differ from config.json; convert the model with the tool that "
            "pruned it",
        )


def check_runs(model: PreTrainedModel, origin: str) -> None:
    """Raises ModelError where two tokens do not pass: in families that `check` does not know."""
    import torch

    from paser.models.packing import device_of

    device = device_of(model.get_input_embeddings())
    # Without a mask transformers looks into the positions, which have no values on the meta device.
    mask = torch.zeros(1, 1, 2, 2, device=device) if device.type == "meta" else None
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    except RuntimeError as error:
        if device.type == "meta" and "meta tensors" in str(error):
            return
        raise ModelError(
            f"{origin}: its layers do not fit together: {_first_line(error)}",
            remedy="prune it again so that what one layer gives is as wide as what the next one takes",
        ) from error


def fitted_class(directory: Path) -> type[PreTrainedModel] | None:
    """The class whose `from_pretrained` loads a folder of unusual shapes; None where plain classes do.

    It is the architecture's own class, with its name, that changes its layers when it is built.
    """
    shapes = saved_shapes(directory)
    model, unusual = _build(read_config(directory), shapes, str(directory))
    if not unusual:
        return None
    base: Any = type(model)

    class Fitted(base):  # type: ignore[misc]
        def __init__(self, config: PreTrainedConfig, *inputs: Any, **kwargs: Any) -> None:
            super().__init__(config, *inputs, **kwargs)
            if layout(config) == SLICED:
                from paser.models.sliced import slice_modules

                slice_modules(self, shapes, str(directory))
            else:
                fit(self, shapes, str(directory))

    for name in ("__name__", "__qualname__", "__module__"):
        setattr(Fitted, name, getattr(base, name))
    return Fitted


def layout(config: PreTrainedConfig) -> str | None:
    """`uneven`, `sliced`, or None for a configuration that says nothing of its own."""
    block = getattr(config, BLOCK, None)
    if block is None:
        return None
    found = block.get("layout") if isinstance(block, dict) else None
    if found not in (UNEVEN, SLICED):
        raise ModelError(
            f"config.json: {BLOCK}.layout is {found!r}, which this version does not know",
            remedy=f"expected {UNEVEN} or {SLICED}; a newer version of PASER may have written it",
        )
    return str(found)


def resize(layer: torch.nn.Linear, rows: int, columns: int, *, bias: bool) -> None:
    """Gives a linear layer another shape and an unset weight, on its device and in its dtype."""
    import torch

    weight = layer.weight
    layer.out_features, layer.in_features = rows, columns
    layer.weight = torch.nn.Parameter(weight.new_empty(rows, columns), weight.requires_grad)
    unset = torch.nn.Parameter(weight.new_empty(rows), weight.requires_grad) if bias else None
    layer.register_parameter("bias", unset)


def fit(model: PreTrainedModel, shapes: Shapes, origin: str) -> bool:
    """Gives each linear layer of `model` the shape, and the bias, that `shapes` has for it.

    Returns whether any had another. Raises ModelError where another tensor has an unexpected shape, or layers
    do not fit together; `origin` names the model in it.
    """
    import torch

    linear: set[str] = set()
    changed = False
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        linear |= {f"{name}.weight", f"{name}.bias"}
        shape = find(shapes, model, f"{name}.weight")
        if shape is None:
            continue
        bias = find(shapes, model, f"{name}.bias") is not None
        if shape != tuple(module.weight.shape) or (bias and module.bias is None):
            if len(shape) != 2:
                raise _misshapen(origin, f"{name}.weight", shape, tuple(module.weight.shape))
            resize(module, *shape, bias=bias or module.bias is not None)
            changed = True
    for name, tensor in model.named_parameters():
        shape = find(shapes, model, name)
        if name not in linear and shape is not None and shape != tuple(tensor.shape):
            raise _misshapen(origin, name, shape, tuple(tensor.shape))
    if changed:
        check(model, origin)
    return changed


def find(shapes: Shapes, model: PreTrainedModel, name: str) -> tuple[int, ...] | None:
    """The saved shape of a parameter, also in folders that leave out the prefix of the base model."""
    prefix = f"{model.base_model_prefix}."
    return shapes.get(name, shapes.get(name.removeprefix(prefix)))


def _misshapen(origin: str, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> ModelError:
    return ModelError(
        f"{origin}: tensor {name} has the shape {list(found)}, config.json means {list(expected)}",
        remedy="only linear layers may differ from config.json: correct config.json (vocab_size, "
        "hidden_size), or save the model with the tool that pruned it in a format that transformers loads",
    )


def check(model: PreTrainedModel, origin: str = "the model") -> None:
    """Raises ModelError unless heads come in whole key-value groups and widths match, in every block.

    Attention modules get the number of query heads for each key-value head that their weights mean.
    """
    for name, module in attentions(model):
        _check_heads(name, module, origin)
    for name, module in gated(model):
        gate, up, down = (getattr(module, each) for each in _GATED)
        widths = {"gate_proj": gate.out_features, "up_proj": up.out_features, "down_proj": down.in_features}
        if len({*widths.values()}) > 1 or not gate.out_features:
            raise _unfit(origin, name, f"gate_proj, up_proj and down_proj have the widths {widths}")
        if hasattr(module, "intermediate_size"):
            module.intermediate_size = gate.out_features


def _check_heads(name: str, module: Any, origin: str) -> None:
    query, key, value, output = (getattr(module, each) for each in _HEADS)
    width = int(module.head_dim)
    rows = {each: int(getattr(module, each).out_features) for each in _HEADS[:3]}
    if torn := [each for each, count in rows.items() if count % width or not count]:
        raise _unfit(
            origin, name, f"{torn[0]} has {rows[torn[0]]} rows, which are no whole heads of {width} each"
        )
    heads, groups = query.out_features // width, key.out_features // width
    if key.out_features != value.out_features:
        raise _unfit(origin, name, f"k_proj and v_proj have {groups} and {value.out_features // width} heads")
    if heads % groups:
        raise _unfit(origin, name, f"{heads} query heads cannot share {groups} key-value heads evenly")
    if output.in_features != query.out_features:
        raise _unfit(
            origin, name, f"q_proj gives {query.out_features} values, o_proj takes {output.in_features}"
        )
    module.num_key_value_groups = heads // groups
    for attribute, count in (("num_heads", heads), ("num_key_value_heads", groups)):
        if hasattr(module, attribute):
            setattr(module, attribute, count)


def _unfit(origin: str, name: str, problem: str) -> ModelError:
    return ModelError(
        f"{origin}: the layers of {name} do not fit together: {problem}",
        remedy="heads can only go in whole key-value groups, widths in all layers that share them; "
        "prune it again so, or keep zeros in place of removed rows",
    )


def attentions(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Attention modules with separate linear projections, by name."""
    for name, module in model.named_modules():
        if hasattr(module, "head_dim") and _has_linear(module, _HEADS):
            yield name, module


def gated(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Feed-forward modules with gate, up and down projections, by name."""
    for name, module in model.named_modules():
        if _has_linear(module, _GATED):
            yield name, module


def _has_linear(module: torch.nn.Module, names: tuple[str, ...]) -> bool:
    import torch

    return all(isinstance(getattr(module, name, None), torch.nn.Linear) for name in names)


def differences(model: PreTrainedModel, plain: PreTrainedModel) -> dict[str, list[int]]:
    """Parameters of `model`, by name, with their shape where `plain` has another or none."""
    expected = {name: tuple(tensor.shape) for name, tensor in plain.named_parameters()}
    return {
        name: list(tensor.shape)
        for name, tensor in model.named_parameters()
        if expected.get(name) != tuple(tensor.shape)
    }


def describe(model: PreTrainedModel, **facts: str) -> None:
    """Makes `model.config` say what the layers are, so that whoever loads the saved model can build it.

    Widths and heads that are the same in every block become the configuration's own; where that is not
    enough, the block `paser` lists the shapes that differ. `facts` (scheme, base) go into that block; those
    that it has already stay.
    """
    config: Any = model.config
    before = getattr(config, BLOCK, None) or {}
    known = {key: value for key, value in before.items() if key in ("scheme", "base")} | facts
    if before.get("layout") == SLICED:
        setattr(config, BLOCK, before | known)
        return
    if hasattr(config, BLOCK):
        delattr(config, BLOCK)
    different = _unlike(model, config)
    if different and (changes := _even(model)):
        candidate = copy.deepcopy(config)
        for key, value in changes.items():
            setattr(candidate, key, value)
        rest = _unlike(model, candidate)
        if rest is not None:
            different = rest
            for key, value in changes.items():
                setattr(config, key, value)
    if different:
        setattr(config, BLOCK, {"layout": UNEVEN, "shapes": different, **known})


def _unlike(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, list[int]] | None:
    """What `model` has in other shapes than `config` gives; None where `config` gives no model."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return differences(model, AutoModelForCausalLM.from_config(config))
    except ValueError:  # some families allow no such number of heads
        return None


def _even(model: PreTrainedModel) -> dict[str, int]:
    """What all blocks share and the configuration says differently, as its settings."""
    found: dict[str, int] = {}
    config: Any = model.config
    widths = {module.gate_proj.out_features for _, module in gated(model)}
    if len(widths) == 1:
        found["intermediate_size"] = widths.pop()
    heads = {
        (m.q_proj.out_features // m.head_dim, m.k_proj.out_features // m.head_dim, m.head_dim)
        for _, m in attentions(model)
    }
    if len(heads) == 1:
        names = ("num_attention_heads", "num_key_value_heads", "head_dim")
        found |= dict(zip(names, heads.pop(), strict=True))
    said = {key: getattr(config, key, None) for key in found}
    if any(not isinstance(value, int) for key, value in said.items() if key != "head_dim"):
        return {}
    return {key: value for key, value in found.items() if said[key] != value}


CARD = """\
# A pruned {name} that needs PASER to load

{what}. `config.json` cannot say that, so plain
transformers cannot load this folder as it is meant. It loads with

```python
import torch
from pathlib import Path
from paser.models.loading import load_causal_lm

model = load_causal_lm(Path("THIS FOLDER"), dtype=torch.bfloat16)
```

and is then an ordinary transformers model: `model.generate`, peft and accelerate work as usual.

- base model: {base}
- pruning scheme: {scheme}
- parameters: {parameters:,}
"""
_WHAT = {
    UNEVEN: "Its blocks have different widths or numbers of heads, or biases of their own",
    SLICED: "Its residual stream was rotated and sliced, and each block has shortcut matrices for it",
}


def card(model: PreTrainedModel) -> str | None:
    """The model card of a model that plain transformers cannot load; None where it can."""
    kind = layout(model.config)
    if kind is None:
        return None
    block = getattr(model.config, BLOCK)
    unique = {id(weight): weight.numel() for weight in model.parameters()}
    return CARD.format(
        name=type(model).__name__,
        what=_WHAT[kind],
        base=block.get("base", "not recorded"),
        scheme=block.get("scheme", "not recorded"),
        parameters=sum(unique.values()),
    )
