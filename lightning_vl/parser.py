"""What is typed and written is read here: mistakes are answered in two lines, with the nearest valid name."""

import difflib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lightning_vl.errors import UserError

ALLOWED = ["lightning_vl", "lightning", "torch", "timm", "torchmetrics"]


class Parser(LightningArgumentParser):
    """Errors in two lines, with the nearest valid name; no abbreviated options."""

    known_subparsers: dict[str, LightningArgumentParser] = {}  # noqa: RUF012 (set once, on the main parser)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # without it --trainer.max_epoch=3 is silently taken for max_epochs
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Says what is wrong and how to mend it."""
        if not self.exit_on_error:  # a parser within the parser: the outer one reports
            super().error(message, ex)
        raise UserError(*explain(message, self)) from None


def explain(message: str, parser: Parser) -> tuple[str, str]:
    """What of a parser's message helps, and the nearest valid name.

    A value that fits none of several types gets a nest of reasons, and the whole value again: what helps stands within.
    """
    text = " ".join(message.split())
    path = ".init_args.".join(dict.fromkeys(re.findall(r"[Pp]arser key \"([\w.]+)\"", text)))
    if match := re.search(r"Importing '([\w.]+)' is not allowed", text):
        return f"class_path '{match[1]}' is outside the allowed packages", f"use a class of {', '.join(ALLOWED)}"
    if match := re.search(r"Expected a dot import path string: (\w+)", text):
        close = difflib.get_close_matches(match[1], _known_classes(), n=1, cutoff=0.5)
        return f"there is no class '{match[1]}'", f"did you mean '{close[0]}'?" if close else "give its full class_path"
    if match := re.search(r"following arguments are required: ([\w.]+)", text):
        key = f"{path}.init_args.{match[1]}" if path else match[1]
        return f"{key} is not given", f"give it: --{key} VALUE, or in the experiment's file"
    if match := re.search(r"Key \"([\w.]+)\" is required", text):
        return f"{match[1]} is not given", f"give it: --{match[1]} VALUE, or in the experiment's file"
    if match := re.search(
        r"[Oo]ption '([\w.]+)' is not accepted|does not accept option '([\w.]+)'|[Uu]nrecognized arguments: --([\w.]+)|[Kk]ey '([\w.]+)' is not expected",
        text,
    ):
        key = next(group for group in match.groups() if group)
        close = difflib.get_close_matches(key, _known_names(parser, text), n=1, cutoff=0.6)
        return f"there is no key '{key}'", f"did you mean '{close[0]}'?" if close else f"see {parser.prog} --help"
    if match := re.search(r"(Expected [^{]*?Got value: \S+)", text):
        return f"{path}: {match[1]}", "JSONARGPARSE_DEBUG=1 shows every step, --print_config what is set"
    return text[:300], f"see {parser.prog} --help; JSONARGPARSE_DEBUG=1 shows every step"


def _known_names(parser: Parser, message: str) -> list[str]:
    """Keys of the command, and of the classes that the message speaks of."""
    names = {action.dest for action in parser._actions}
    for subparser in parser.known_subparsers.values():
        names |= {action.dest for action in subparser._actions}
    for owner in _all_classes():
        if f"{owner.__module__}.{owner.__name__}" in message or f"'{owner.__name__}'" in message:
            names |= set(inspect.signature(owner).parameters)
    return sorted(names)


def _known_classes() -> list[str]:
    return sorted({owner.__name__ for owner in _all_classes()})


def _all_classes() -> list[type]:
    """Every class of this package that is imported."""
    modules = [module for name, module in sys.modules.items() if name.startswith("lightning_vl")]
    return [value for module in modules for value in vars(module).values() if inspect.isclass(value)]


class _OneKeyOnce(yaml.SafeLoader):
    """Refuses a key given twice, of which plain YAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(
                    f"{key_node.start_mark.name}: line {key_node.start_mark.line + 1} gives '{key}' a second time",
                    "keep one of the two",
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def check_yaml(path: Path) -> None:
    """Finds what the parser would report badly or not at all: missing files, tags, doubled keys, no mapping."""
    try:
        with path.open() as file:
            content = yaml.load(file, _OneKeyOnce)
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        how = f"did you mean {path.parent / near[0]}?" if near else "ls experiments shows what there is"
        raise UserError(f"{path}: no such file", how) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})", "give a YAML file") from error
    except yaml.YAMLError as error:
        first = " ".join(str(error).split())
        raise UserError(
            f"{path}: not plain YAML: {first[:300]}", "mend the line; object tags (!!python/...) are refused"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds no keys", "give an experiment's file, such as experiments/vivit_fact_encoder.yaml"
        )
