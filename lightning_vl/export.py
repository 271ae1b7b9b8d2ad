"""``python -m lightning_vl export``: a network out of its run, as a folder that others can use and start from.

The folder has the network's weights alone in one file, what it takes to build the network and to make its inputs, and a
model card. `init_from` takes it like a checkpoint, and :func:`load` gives the network itself.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

import lightning_vl
from lightning_vl.errors import UserError
from lightning_vl.run import CONFIG, read_results

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1  # of config.json: fields are added, never renamed
CARD = "README.md"
CHECKPOINTS = {"best": "best.ckpt", "last": "last.ckpt"}
NOT_STATED = "not stated"


class Paper(NamedTuple):
    """What a card says of a paper's network.

    Attributes:
        name: of the system.
        arxiv: number.
        start: the class of `init_from` that takes the export.
    """

    name: str
    arxiv: str
    start: str


PAPERS = {  # by the modules of their networks, the more special ones first
    "lightning_vl.papers.bert.": Paper("BERT", "1810.04805", "BertInitialisation"),
    "lightning_vl.papers.clip.": Paper("CLIP", "2103.00020", "ClipInitialisation"),
    "lightning_vl.papers.vit.bit.": Paper("BiT", "1912.11370", "BiTInitialisation"),
    "lightning_vl.papers.vit.": Paper("ViT", "2010.11929", "ViTInitialisation"),
    "lightning_vl.papers.vivit.": Paper("ViViT", "2103.15691", "VideoInitialisation"),
}


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Returns:
        Exit code 0.

    Raises:
        UserError: see :func:`export`.
    """
    arguments = _parser().parse_args(argv)
    export(arguments.run, arguments.checkpoint, arguments.out)
    for path in sorted(arguments.out.iterdir()):
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lightning_vl export",
        description="Write a run's network as one safetensors file, with what it takes to use it and a model card.",
        epilog="example: python -m lightning_vl export runs/vit_tiny/ID exported/vit_tiny",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, runs/<experiment>/<id>")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; there must be none of this name yet")
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="best|last|FILE",
        help="which of its checkpoints: the tested one (default), the last one, or a file or sharded folder",
    )
    return parser


def export(run: Path, checkpoint: str, out: Path) -> None:
    """Writes the folder: whole, or not at all.

    Args:
        run: the run's folder.
        checkpoint: "best", "last", or the path of a file or of a sharded checkpoint's folder.
        out: the folder to write.

    Raises:
        UserError: the folder is there already or cannot be written, the run or the checkpoint is not there, or the
            checkpoint is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from lightning_vl.checkpoints import consolidate, is_sharded, load_whole
    from lightning_vl.weights import DESCRIPTION, MODEL, state_dict

    if out.exists():
        raise UserError(f"{out} exists already", "name another folder, or remove this one")
    config = _configuration(run)
    path = _checkpoint(run, checkpoint)
    content = consolidate(path) if is_sharded(path) else load_whole(path)
    # the format has no tensors that share their memory
    weights = {name: tensor.contiguous().clone() for name, tensor in state_dict(content, str(path)).items()}
    description, vocabulary = _description(content, path)
    card = model_card(run, path, out.name, config, content, description)
    partial = out.with_name(f"{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was cut off
        partial.mkdir(parents=True)
        save_file(weights, partial / MODEL, metadata={"format": "pt"})
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        for name, text in vocabulary.items():
            (partial / name).write_text(text, encoding="utf-8", newline="\n")
        (partial / CARD).write_text(card, encoding="utf-8")
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:  # the latter's is what a full disk gives
        shutil.rmtree(partial, ignore_errors=True)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{out} cannot be written: {reason}", "name a folder that can be, with space for it") from error


def load(path: str) -> "nn.Module":
    """The network of an export, or of a checkpoint of a run, with its weights, in evaluation.

    Args:
        path: the folder, its model.safetensors, or a ``.ckpt`` file.

    Raises:
        UserError: it is none, or broken.
    """
    from torch import nn

    from lightning_vl.nn.embeddings import Stem
    from lightning_vl.nn.positions import Positions
    from lightning_vl.weights import build_network, load_checked, read_file, state_dict

    content = read_file(path)
    weights = state_dict(content, path)
    net = build_network(content.get("network"), (nn.Module, Positions, Stem), path)
    if not isinstance(net, nn.Module):
        raise UserError(
            f"{path} does not say how its network is built", "name the folder of an export, or a run's checkpoint"
        )
    load_checked(net, weights, path)
    return net.eval()


def _configuration(run: Path) -> dict[str, Any]:
    """The run's resolved configuration."""
    if not run.is_dir():
        raise UserError(f"there is no run {run}", "name the folder of one: runs/<experiment>/<id>")
    try:
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{run} has no {CONFIG} that can be read", "name the folder of a run: runs/<experiment>/<id>"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{run / CONFIG} is no YAML", "write it anew: run the experiment with this --run.id") from error
    if not isinstance(config, dict) or not {"trainer", "model", "data", "run"} <= config.keys():
        raise UserError(f"{run / CONFIG} is not that of a run", "name the folder of a run: runs/<experiment>/<id>")
    return config


def _checkpoint(run: Path, name: str) -> Path:
    """The path of a checkpoint that is there."""
    folder = run / "checkpoints"
    path = folder / CHECKPOINTS[name] if name in CHECKPOINTS else Path(name)
    if not path.exists():
        there = sorted(one.name for one in folder.glob("*.ckpt"))
        found = f"the run has {', '.join(there)}" if there else "the run has none: train it first"
        raise UserError(f"there is no checkpoint {path}", f"name another with --checkpoint; {found}")
    return path


def _description(content: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What config.json says, and the vocabulary's file by its name."""
    from lightning_vl.data.tokenizer import kept_vocabulary
    from lightning_vl.weights import LIBRARY, MERGES, WORD_PIECES

    if not isinstance(content.get("network"), dict):
        raise UserError(
            f"{path} does not say how its network is built", "name a checkpoint that a run of this version wrote"
        )
    data = next((key for key, state in content.items() if isinstance(state, dict) and "preprocessing" in state), None)
    if data is None:
        raise UserError(f"{path} does not say how its inputs are made", "name a checkpoint that a run of ours wrote")
    description: dict[str, Any] = {
        "library_name": LIBRARY,
        "schema": SCHEMA,
        "version": lightning_vl.__version__,
        "network": content["network"],
        "data": data,
        "preprocessing": content[data]["preprocessing"],
        "vocabulary": None,
    }
    kept = kept_vocabulary(content)
    if kept is None:
        return description, {}
    if "pieces" in kept:
        description["vocabulary"] = {"file": WORD_PIECES, "lowercase": kept["lowercase"]}
        return description, {WORD_PIECES: "".join(f"{piece}\n" for piece in kept["pieces"])}
    description["vocabulary"] = {"file": MERGES, "unused": kept["unused"]}
    return description, {MERGES: kept["merges"] + "\n"}


# --- the model card -------------------------------------------------------------------------------------------------


def model_card(
    run: Path,
    checkpoint: Path,
    name: str,
    config: Mapping[str, Any],
    content: Mapping[str, Any],
    description: Mapping[str, Any],
) -> str:
    """The card, Markdown with the front matter that model hubs read.

    Args:
        run: the run's folder.
        checkpoint: that is exported.
        name: of the folder that is written.
        config: the run's.
        content: of the checkpoint.
        description: what config.json says.
    """
    results = read_results(run) or {}
    experiment = str(config["run"].get("experiment") or run.parent.name)
    network = description["network"]["class_path"]
    kind = network.rpartition(".")[2]
    paper = next((paper for prefix, paper in PAPERS.items() if network.startswith(prefix)), None)
    tags = [*([paper.name.lower(), f"arxiv:{paper.arxiv}"] if paper else []), experiment]
    front = {"license": "unknown", "library_name": description["library_name"], "tags": tags}
    of_paper = f" {paper.name} ([arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})):" if paper else ""
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {experiment}\n",
        f"{of_paper} a `{kind}`, trained by the experiment `{experiment}` of lightning_vl, run `{run.name}`.\n".lstrip(),
        "## Protocol\n",
        *_protocol(config, results, content, checkpoint),
        "\n## Data\n",
        *_data(config, results),
        "\n## Metrics\n",
        *_metrics(results, checkpoint),
        "\n## Use\n",
        *_use(name, paper, description),
        "\n## Intended use and limits\n",
        "For study and comparison under the protocol above. Nothing beyond the metrics above was measured: no robustness, "
        "no fairness,\nno safety, no other data. A result on embedded or small data is not the paper's.\n",
        "The licence of the weights is not stated: whoever publishes them decides it, under the terms of the data and of "
        "any weights that\ntraining started from. The code is under Apache-2.0.",
    ]
    return "\n".join(parts) + "\n"


def _protocol(
    config: Mapping[str, Any], results: Mapping[str, Any], content: Mapping[str, Any], checkpoint: Path
) -> list[str]:
    task, trainer = config["model"]["init_args"], config["trainer"]
    git = results.get("git") or {}
    dirty = "with changes that were not committed" if git.get("dirty") else "without changes"
    averaged = "trained_state_dict" in content  # the weights are then the average, see MovingAverage
    parameters = (results.get("model") or {}).get("parameters")
    rows = {
        "experiment": f"`{config['run'].get('experiment')}`",
        "checkpoint": f"`{checkpoint.name}`, after {content.get('global_step', '?')} of {trainer['max_steps']} steps",
        "weights": "the moving average over training" if averaged else "as trained",
        "parameters": f"{parameters:,}" if parameters else None,
        "batch": config["data"]["init_args"].get("batch_size"),
        "seed": config["seed_everything"],
        "optimiser": _called(task.get("optimizer")),
        "schedule": _called(task.get("schedule")),
        "started from": _called(task.get("init_from")) or "nothing",
        "precision": results.get("precision") or trainer.get("precision"),
        "device": f"{results['devices']} x {results['device']}" if "device" in results else None,
        "finished": results.get("finished") or "no: there is no results.json",
        "commit": f"`{git['commit']}` {dirty}" if git.get("commit") else "not known",
        "versions": ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items()),
    }
    return _table(("", ""), [(name, value) for name, value in rows.items() if value not in (None, "")])


def _called(spec: Any) -> str | None:
    """An object of the configuration as a call; files by their names alone, since folders are nobody's business."""
    if not isinstance(spec, dict) or "class_path" not in spec:
        return None
    given = []
    for key, value in (spec.get("init_args") or {}).items():
        if isinstance(value, dict):
            value = _called(value) or value
        if value is None or value is False:
            continue
        given.append(f"{key}={Path(value).name if key == 'path' else value}")
    return f"`{spec['class_path'].rpartition('.')[2]}({', '.join(given)})`".replace("``", "`")


def _data(config: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    rows = [
        (f"`{path.rpartition('.')[2]}`", _licence(path))
        for path in dict.fromkeys(_classes(config["data"]["init_args"]))
    ]
    sizes = {split: count for split, count in (results.get("data") or {}).items() if split not in ("name", "skipped")}
    lines = [*_table(("source", "licence"), rows), ""]
    if sizes:
        lines.append(f"Samples: {', '.join(f'{count:,} {split}' for split, count in sizes.items())}.\n")
    return [*lines, "How the network's inputs are made is under `preprocessing` in `config.json`."]


def _classes(arguments: Mapping[str, Any]) -> Iterator[str]:
    """The classes that the data comes from: the source's, and those that it is made of."""
    specs = [arguments.get("source")]
    while specs:
        spec = specs.pop(0)
        if isinstance(spec, list):
            specs += spec
        elif isinstance(spec, dict):
            if "class_path" in spec:
                yield spec["class_path"]
            specs += list((spec.get("init_args") or {}).values())


def _licence(class_path: str) -> str:
    """What the class says of its data's licence."""
    module, _, name = class_path.rpartition(".")
    if not module.startswith("lightning_vl."):
        return NOT_STATED
    try:
        return str(getattr(getattr(import_module(module), name), "licence", NOT_STATED))
    except (ImportError, AttributeError):  # of another version
        return NOT_STATED


def _metrics(results: Mapping[str, Any], checkpoint: Path) -> list[str]:
    tested = Path(str(results.get("checkpoint", ""))).name
    if not results.get("metrics"):
        return ["None were measured: the run is not finished."]
    lines = []
    if tested != checkpoint.name:
        lines = [f"**Measured with `{tested}`, not with these weights.**\n"]
    expected = {entry["metric"]: entry for entry in results.get("expected") or []}
    rows = []
    for name, value in results["metrics"].items():
        entry = expected.get(name)
        wanted = f"{entry['value']:.4g} ± {entry['tolerance']:.2g} ({entry['kind']})" if entry else ""
        shown = "-" if value is None else f"{value:.4f}"
        if not name.startswith(("baseline/", "val/")):  # val/ is of the last validation, not of these weights
            rows.append((f"`{name}`", shown, wanted))
    lines += _table(("metric", "measured", "expected"), rows)
    trivial = [
        (f"`{n.removeprefix('baseline/')}`", f"{v:.4f}") for n, v in results["metrics"].items() if "baseline/" in n
    ]
    if trivial:
        lines += [
            "\nWhat is reached without a network, on the same test split:\n",
            *_table(("baseline", "value"), trivial),
        ]
    return lines


def _use(name: str, paper: Paper | None, description: Mapping[str, Any]) -> list[str]:
    lines = [
        "```python",
        "from lightning_vl.export import load",
        "",
        f'net = load("{name}")  # in evaluation; net.example_inputs(1) shows what it takes',
        "```",
        "",
    ]
    if paper is None:
        return lines
    lines += [
        "Training starts from these weights with, in an experiment's file:",
        "",
        "```yaml",
        "model:",
        "  init_args:",
        f"    init_from: {{class_path: {paper.start}, init_args: {{path: {name}}}}}",
    ]
    if description["vocabulary"] is not None:
        lines += [
            "data:",
            "  init_args:",
            f"    vocabulary: {{class_path: CheckpointVocabulary, init_args: {{path: {name}}}}}",
        ]
    return [*lines, "```"]


def _table(head: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
