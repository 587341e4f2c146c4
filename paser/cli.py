"""The command line. Every verb is thin; heavy imports stay inside the verbs, so that help is instant."""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from paser import __version__
from paser.cli_audit import AsJson, audit, catalogue, print_json
from paser.errors import PaserError
from paser.progress import console

app = typer.Typer(
    name="paser",
    help="Find what pruning broke in a language model, pick the few samples that repair it, recover the "
    "model, and prove which rows went into it.\n\n"
    "Start: `paser doctor`, `paser init FOLDER`, or `paser select --help` for selection alone.",
    epilog="\b\n"
    "Exit codes:\n"
    "  0    done, or the answer is yes\n"
    "  1    an error, with its cause and remedy; or a check that failed\n"
    "  2    a wrong option or argument\n"
    "  3    the question was answered with no (audit, catalogue)\n"
    "  130  interrupted; the same command goes on where it stopped",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache = typer.Typer(help="Shards, checkpoints and downloads kept in .paser/cache.", no_args_is_help=True)
models = typer.Typer(help="Look into checkpoints, and convert those that are pickles.", no_args_is_help=True)
app.add_typer(audit, name="audit")
app.add_typer(models, name="models")
app.add_typer(catalogue, name="catalogue")
app.add_typer(cache, name="cache")

Project = Annotated[Path, typer.Option("--project", help="Folder with params.yaml and dvc.yaml.")]
HERE = Path(".")
INTERRUPTED = 130


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
) -> None:
    if debug:
        os.environ["PASER_DEBUG"] = "1"


@app.command()
def demo(project: Project = HERE) -> None:
    """Run the whole pipeline of a project and show the result; in a clone, on the default model and data.

    Example: paser demo
    """
    from paser.demo import run_demo

    run_demo(project.resolve())


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="A new or empty folder.")],
    original: Annotated[str | None, typer.Option(help="The dense model: a folder, or a URI.")] = None,
    pruned: Annotated[
        str | None, typer.Option(help="A model that is pruned already; default: the pipeline prunes.")
    ] = None,
    pool: Annotated[
        list[str] | None, typer.Option(help="Instruction rows: a file or URI. May be repeated.")
    ] = None,
    calibration: Annotated[
        list[str] | None, typer.Option(help="Rows to calibrate pruning on; default: some of the pool.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder; default all-MiniLM-L6-v2.")] = None,
    rows_format: Annotated[
        str, typer.Option("--format", help="Of the rows: auto, alpaca, sharegpt, chat or completion.")
    ] = "auto",
    license: Annotated[str, typer.Option(help="Of rows and model, as an SPDX identifier.")] = "unknown",
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="FOLDER is such a project: note PASER's code after an upgrade."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write commented params.yaml, dvc.yaml and data/sources.yaml for your own models and data.

    Local models and rows are linked, or copied, into FOLDER/data/raw.

    Example: paser init ./mine --original ./dense --pruned ./pruned --pool ./pool.jsonl

    Example: paser init . --refresh
    """
    from paser.starter import project as starting

    if refresh:
        changed = starting.refresh(folder)
        if as_json:
            print_json({"folder": str(folder), "changed": changed})
        else:
            print(f"{folder / starting.CODE}: code changed in {', '.join(changed) or 'no stage'}")
        return
    wanted = starting.Wanted(original, pruned, pool or (), calibration or (), encoder, rows_format, license)
    missing = starting.start(folder, wanted)
    if as_json:
        print_json({"folder": str(folder), "missing": [str(path) for path in missing]})
        return
    for path in missing:
        print(f"put your own at {path}, or name a URI in {folder / 'data' / 'sources.yaml'}")
    print(f"cd {folder} && git init && dvc init && paser doctor && dvc repro")


@app.command()
def doctor(project: Project = HERE, as_json: AsJson = False) -> None:
    """Check Python, packages, device, memory, disk, DVC, Prefect and the project's sources; say what to do.

    Exit code 1 when something is broken; warnings alone are 0.

    Example: paser doctor --project ./mine
    """
    from paser import doctor as examining

    found = examining.examine(project.resolve())
    if as_json:
        print_json(examining.as_json(found))
    else:
        examining.render(found)
    if not examining.healthy(found):
        raise typer.Exit(1)


@app.command()
def select(
    original: Annotated[str, typer.Option(help="The dense model: a folder, or a file:, hf: or pypi: URI.")],
    pruned: Annotated[str, typer.Option(help="The pruned model: likewise.")],
    pool: Annotated[str, typer.Option(help="The instruction pool: a JSON or JSON Lines file, or a URI.")],
    out: Annotated[Path, typer.Option(help="Folder for the result; it must not exist or be empty.")],
    budget: Annotated[
        str | None,
        typer.Option(
            help='"20%", "500" rows, "20000 tokens", "20% tokens"; default: that of --params, or 20%.'
        ),
    ] = None,
    pool_format: Annotated[
        str, typer.Option("--format", help="auto, alpaca, sharegpt, chat or completion.")
    ] = "auto",
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder; default all-MiniLM-L6-v2.")] = None,
    params: Annotated[Path | None, typer.Option(help="A params.yaml with other settings.")] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows you evaluate on, a file or URI: whatever shows their prompts is not selected. May be "
            "repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Select the rows that repair a pruned model, on any models and data, outside DVC.

    Example: paser select --original ./dense --pruned ./pruned --pool ./pool.jsonl --budget 20% --out ./picked
    """
    from paser.standalone import select_rows

    report = select_rows(original, pruned, pool, budget, out, pool_format, encoder, params, evaluation or [])
    if as_json:
        print_json(report | {"out": str(out)})
    else:
        print(out / "selected.jsonl")


@app.command()
def damage(
    original: Annotated[str, typer.Option(help="The dense model: a folder, or a file:, hf: or pypi: URI.")],
    pruned: Annotated[
        list[str], typer.Option(help="A pruned model, or NAME=MODEL; several give one figure.")
    ],
    pool: Annotated[
        str | None,
        typer.Option(help="Rows to measure on: a file or URI. Default: held-out rows of six capabilities."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for damage.csv, .json, .svg and .png.")] = Path("damage"),
    pool_format: Annotated[
        str, typer.Option("--format", help="auto, alpaca, sharegpt, chat or completion.")
    ] = "auto",
    encoder: Annotated[
        str | None, typer.Option(help="Sentence encoder, for rows without labels; default all-MiniLM-L6-v2.")
    ] = None,
    params: Annotated[Path | None, typer.Option(help="A params.yaml with other settings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what pruning damaged, by capability, for one pruned model or several side by side.

    Example: paser damage --original ./dense --pruned wanda=./wanda --pruned 2:4=./two-four --out ./damage
    """
    from paser.damage_profile import FILES, profile_damage

    profile = profile_damage(original, pruned, pool, out, pool_format, encoder, params)
    if as_json:
        print_json(profile)
        return
    from paser.evaluation.damage import damage_table

    console().print(damage_table(profile))
    print(", ".join(str(out / name) for name in FILES))


@app.command()
def evaluate(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model, or NAME=MODEL; one name several times: runs with other seeds."),
    ] = None,
    original: Annotated[str | None, typer.Option(help="The dense model: divergences need it.")] = None,
    pruned: Annotated[
        str | None, typer.Option(help="The pruned model: gaps need it and the dense one.")
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: names in PASER's own source list, FORMAT:FILE, or lm-eval's names."
        ),
    ] = "",
    text: Annotated[
        list[str] | None, typer.Option(help="A text file for perplexity; may be repeated.")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            help="Instruction rows for loss and divergence; default, without tasks and texts: held-out "
            "rows of six capabilities."
        ),
    ] = None,
    rows_format: Annotated[
        str, typer.Option("--format", help="auto, alpaca, sharegpt, chat or completion.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(help="Only the first so many items of each task.")] = None,
    windows: Annotated[int | None, typer.Option(help="Only the first so many windows of each text.")] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run the programs that models write, in a sandbox.")
    ] = False,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder, for rows without labels.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results as JSON, CSV and Parquet.")] = None,
    params: Annotated[Path | None, typer.Option(help="A params.yaml with other settings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure models on held-out rows, tasks (through lm-eval) and texts, and the gaps between them.

    Example: paser evaluate --original ./dense --pruned ./pruned --model ./recovered --tasks hellaswag-100
    """
    from paser.evaluate import Wanted, evaluate_models
    from paser.evaluation.table import result_tables

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    wanted = Wanted(names, text or [], rows, rows_format, encoder, limit, windows, run_code)
    metrics = evaluate_models(original, pruned, model or [], wanted, out, params)
    if as_json:
        print_json(metrics)
        return
    console().print(result_tables(metrics))


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(help="A folder, a file:, hf: or pypi: URI, or BASE+ADAPTER.")],
    files: Annotated[list[Path], typer.Argument(help="Texts: .txt, .txt.gz, or the Hub's .parquet.")],
    context: Annotated[
        int | None, typer.Option(help="Tokens a window; default the model's, at most 2048.")
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens between windows; default: no overlap.")] = None,
    windows: Annotated[int | None, typer.Option(help="Only the first so many windows.")] = None,
    rolling: Annotated[bool, typer.Option("--rolling", help="lm-eval's rolling protocol instead.")] = False,
    params: Annotated[Path | None, typer.Option(help="A params.yaml with other settings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity of a model on texts, with the protocol that it was measured by.

    Example: paser perplexity ./pruned wiki.test.raw --context 2048
    """
    from paser.evaluate import text_perplexity

    found = text_perplexity(model, files, context, stride, windows, rolling, params)
    if as_json:
        print_json({name: one.as_json() for name, one in found.items()})
        return
    for name, one in found.items():
        print(f"{name}: perplexity {one.value:.3f} (loss {one.loss:.4f} nats a token)\n  {one.protocol}")


@models.command("inspect")
def models_inspect(
    model: Annotated[str, typer.Argument(help="A folder, a file:, hf: or pypi: URI, or BASE+ADAPTER.")],
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint is: parameters, zeros a layer, pattern, vocabulary, what can load it.

    Example: paser models inspect ./pruned
    """
    from paser.models import inspection

    found = inspection.inspect_uri(model)
    if as_json:
        print_json(found.as_json())
    else:
        inspection.render(found, console())


@models.command("convert")
def models_convert(
    pickle: Annotated[Path, typer.Argument(help="A pickled model, or a folder with pytorch_model*.bin.")],
    out: Annotated[Path, typer.Argument(help="Folder for the result; it must not exist or be empty.")],
    original: Annotated[
        Path | None,
        typer.Option(help="The dense model: configuration and tokenizer, where the pickle has none."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take tensors and configuration out of a pickle, in a process of its own, without running any of it.

    Example: paser models convert ./pytorch_model.bin ./pruned
    """
    from paser.models.conversion import convert

    done = convert(pickle, out, original)
    if as_json:
        print_json({**vars(done), "out": str(done.out)})
        return
    print(f"{done.out}: {done.tensors} tensors")
    if done.stand_ins:
        print(f"not loaded, only their values read: {', '.join(done.stand_ins)}")
    for note in done.notes:
        print(note)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A recovered model, for instance data/models/recovered.")],
    out: Annotated[Path, typer.Argument(help="Folder for the result; it must not exist or be empty.")],
    push: Annotated[
        str | None, typer.Option(help="Also upload it to this repository of the Hugging Face Hub.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: a new repository is public.")
    ] = False,
    entry: Annotated[
        Path | None, typer.Option(help="The model's audit entry; default: that of its project.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Assemble weights, adapter, proof, audit entry and model card in one folder that loads as any model.

    Example: paser export data/models/recovered ./to-share
    """
    from paser import export as exporting

    if push:
        exporting.check_token()
    files = exporting.export_model(model, out, entry)
    address = exporting.push(out, push, private=not public) if push else None
    if as_json:
        print_json({"out": str(out), "files": [str(path) for path in files], "pushed": address})
    else:
        print(f"{out}: {len(files)} files; README.md is the card, `paser audit verify {out}` checks it")
        if address:
            print(address)


@app.command()
def plan(
    project: Project = HERE,
    params: Annotated[Path | None, typer.Option(help="Settings; default: params.yaml.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A config.json or its folder; default: the project's original model."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of the pool; default: counted.")] = None,
    row_tokens: Annotated[
        float, typer.Option(min=1, help="With --rows: tokens of a mean row, prompt and response.")
    ] = 128.0,
    tflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="The device's matrix products; default: this processor, measured."),
    ] = None,
    memory: Annotated[float | None, typer.Option(min=0.1, help="The device's memory in GB.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what a run will cost: tokens, time, memory, disk. Loads and fetches nothing.

    In a project that has run, what the stages took is shown beside it.

    Example: paser plan --params recipes/alpaca-wanda-2-4.yaml --model recipes/models/llama-7b --rows 52002
    --tflops 312 --memory 80
    """
    from paser import plan as planning
    from paser.settings import load_settings

    settings = load_settings(params or project / "params.yaml")
    pool = planning.Pool(rows, row_tokens) if rows else planning.pool_of(project)
    config = model or planning.model_of(project)
    size = planning.size_of(config, settings.recover.targets, settings.recover.rank)
    speed = tflops or planning.measured_tflops(settings.model.precision)
    found = planning.estimate(settings, size, pool, speed)
    took = {} if params or model or rows else planning.last_run(project)
    if as_json:
        print_json(found.as_json() | {"last_run": took})
    else:
        planning.render(found, memory, console(), took)


@app.command()
def concepts(
    out: Annotated[Path, typer.Argument(dir_okay=False, help="The GraphML file to write.")],
    project: Project = HERE,
    selection: Annotated[
        Path | None, typer.Option(help="A folder that `paser select` wrote, instead of a project.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export the concept graph of a finished selection as GraphML, for networkx, Gephi and others.

    Example: paser concepts graph.graphml --selection ./picked
    """
    from paser.selectors.graph import read_graph, write_graphml

    graph = read_graph(selection or project / "data")
    write_graphml(out, graph)
    if as_json:
        print_json({"out": str(out), "concepts": len(graph)})
    else:
        print(f"{out}: {len(graph):,} concepts")


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="fetch, pool, prune, embed, cluster, score, select, ...")],
    project: Project = HERE,
    as_json: AsJson = False,
) -> None:
    """Run one stage by itself, on what the stages before it wrote; with --json, print its record.

    Example: paser stage score
    """
    from paser.stages.run import run_stage

    record = run_stage(name, project.resolve())
    if as_json:
        print_json(record)


@app.command()
def result(project: Project = HERE, as_json: AsJson = False) -> None:
    """Show what recovery gave back, by capability.

    Example: paser result --json
    """
    from paser.artifacts import read_json

    metrics = read_json(project / "data" / "metrics.json")
    if as_json:
        print_json(metrics)
        return
    from paser.evaluation.table import result_tables

    console().print(result_tables(metrics))


@app.command()
def compare(
    names: Annotated[
        list[str] | None, typer.Argument(help="Selectors; the first is what others are compared with.")
    ] = None,
    project: Project = HERE,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the pool and trainings of each.")] = 3,
    budget: Annotated[
        str | None, typer.Option(help="Training tokens of each; default: select.budget, in tokens.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the cells; what it has is not done again. Default: data/comparison there."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare selectors on the project's own models and pool, at equal training tokens.

    Needs the stages `score` and `cluster`. Selects, trains and measures once a selector and seed. Default:
    random, paser and recoverable-coverage; docs/selectors.md has all names.

    Example: paser compare random recoverable longest --seeds 5 --budget "18000 tokens"
    """
    from paser import compare as comparing

    found = comparing.compare(project, names or comparing.DEFAULT, seeds, budget, out)
    if as_json:
        print_json(found)
    else:
        console().print(comparing.table(found))


@app.command()
def explore(
    project: Project = HERE,
    host: Annotated[str, typer.Option(help="A loopback address; others are refused.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8642,
    longest: Annotated[int, typer.Option(min=1, help="Most tokens of a model's answer.")] = 128,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
) -> None:
    """Browse the pool in a local page: clusters, rows by damage, both models' answers, and why.

    Example: paser explore --project ./my-project --port 9000
    """
    from paser.explore.app import serve

    serve(project.resolve(), host, port, longest, open_page)


@cache.command("info")
def cache_info(project: Project = HERE, as_json: AsJson = False) -> None:
    """Where the cache is and how much it holds.

    Example: paser cache info
    """
    from paser.cache import Cache

    kept = Cache.of(project.resolve())
    if as_json:
        print_json({"cache": str(kept.root), "bytes": kept.size()})
    else:
        print(f"{kept.root}: {kept.size() / 1e9:.2f} GB")


@cache.command("prune")
def cache_prune(
    project: Project = HERE,
    keep_gb: Annotated[float, typer.Option(min=0, help="Gigabytes to keep, the newest.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Remove what was used longest ago. Results are never in the cache; only time is lost.

    Example: paser cache prune --keep-gb 5
    """
    from paser.cache import Cache

    removed = Cache.of(project.resolve()).prune(int(keep_gb * 1e9))
    if as_json:
        print_json({"removed": removed})
    else:
        print(f"{len(removed)} entries removed")


@app.command()
def version() -> None:
    """Print the version.

    Example: paser version
    """
    print(__version__)


def main() -> None:
    """Entry point: an error is printed as cause and remedy, with exit code 1."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # PASER shows its own progress, libraries none
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # outside UTF-8, one sign less instead of no answer
    try:
        app()
    except Exception as error:
        if os.environ.get("PASER_DEBUG"):
            traceback.print_exc()
        known = error if isinstance(error, PaserError) else _unforeseen(error)
        print(f"error: {known}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("interrupted; finished shards are kept, run the same command again", file=sys.stderr)
        raise


def _unforeseen(error: Exception) -> PaserError:
    """An error of the machine, or of PASER itself, in its own words and with the place it came from."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(__file__).parent in Path(frame.filename).parents
    ]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    said = " ".join(str(error).split()) or "no message"
    if isinstance(error, OSError):
        return PaserError(f"{said}{where}", remedy="check that the path exists, may be used, and has room")
    if isinstance(error, MemoryError) or "out of memory" in said.lower():
        remedy = "`paser plan` says what a run needs; lower score.batch_tokens or recover.micro_batch_size"
        return PaserError(f"out of memory: {said}{where}", remedy=remedy)
    return PaserError(
        f"{type(error).__name__}: {said}{where}",
        remedy="PASER did not foresee this: `paser --debug ...` shows the trace, please report it",
    )


if __name__ == "__main__":
    main()
