"""`fit`, `validate`, `test` and `predict`: LightningCLI with run folders, exact resume and errors in two lines."""

import errno
import itertools
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
import torch
import yaml
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

# experiment files call these classes by their short names, which are known once they are imported
import lightning_vl.data.byte_pair
import lightning_vl.data.datasets.brown
import lightning_vl.data.datasets.caption_shards
import lightning_vl.data.datasets.caption_tables
import lightning_vl.data.datasets.clip_benchmark
import lightning_vl.data.datasets.coco_captions
import lightning_vl.data.datasets.cola
import lightning_vl.data.datasets.emoji
import lightning_vl.data.datasets.epic_kitchens
import lightning_vl.data.datasets.evaluation_folder
import lightning_vl.data.datasets.flickr_captions
import lightning_vl.data.datasets.hub_captions
import lightning_vl.data.datasets.hub_images
import lightning_vl.data.datasets.hub_text
import lightning_vl.data.datasets.idx_images
import lightning_vl.data.datasets.image_folder
import lightning_vl.data.datasets.image_shards
import lightning_vl.data.datasets.joined_captions
import lightning_vl.data.datasets.joined_documents
import lightning_vl.data.datasets.json_lines
import lightning_vl.data.datasets.kinetics
import lightning_vl.data.datasets.labelled_table
import lightning_vl.data.datasets.labelled_videos
import lightning_vl.data.datasets.manual_sentences
import lightning_vl.data.datasets.medmnist
import lightning_vl.data.datasets.python_manual
import lightning_vl.data.datasets.something_something
import lightning_vl.data.datasets.sst2
import lightning_vl.data.datasets.streamed_images
import lightning_vl.data.datasets.text_files
import lightning_vl.data.datasets.tuxpaint
import lightning_vl.data.datasets.video_folder
import lightning_vl.data.datasets.wikitext
import lightning_vl.data.synthetic.drawn_scenes
import lightning_vl.data.synthetic.moving_digits
import lightning_vl.data.synthetic.scattered
import lightning_vl.papers.bert.fine_tuning
import lightning_vl.papers.bert.task
import lightning_vl.papers.clip.convert
import lightning_vl.papers.vit.bit
import lightning_vl.papers.vit.task
import lightning_vl.papers.vivit.task  # noqa: F401
from lightning_vl.callbacks import LastCheckpoint, StopOnSignal
from lightning_vl.checkpoints import WholeCheckpoints, last_complete
from lightning_vl.data.datasets.in_memory import InMemory
from lightning_vl.data.module import DataModule
from lightning_vl.errors import UserError
from lightning_vl.evaluation.examples import Examples
from lightning_vl.evaluation.paper_datasets import PaperDataset
from lightning_vl.evaluation.transfer import TransferTask, check_tasks, run_all
from lightning_vl.evaluation.zero_shot import ZeroShot, check_all
from lightning_vl.evaluation.zero_shot import run_all as run_zero_shot
from lightning_vl.execution import Execution
from lightning_vl.loggers import METRICS, MetricsFile, WandbRun, choose_wandb_mode, last_validation
from lightning_vl.papers.clip.data import CaptionData
from lightning_vl.papers.clip.task import ClipTask
from lightning_vl.parser import ALLOWED, Parser, check_yaml
from lightning_vl.progress import Progress
from lightning_vl.report.family import HOW, differences_outside
from lightning_vl.run import (
    CONFIG,
    RESULTS,
    RUN_ID,
    Expected,
    RunOptions,
    device_name,
    now,
    provenance,
    read_results,
    run_id,
    write_results,
)
from lightning_vl.task import Task
from lightning_vl.terminal import say
from lightning_vl.throughput import Throughput
from lightning_vl.weights import newest

DEFAULTS = Path(__file__).with_name("defaults.yaml")
DESCRIPTIONS = {
    "fit": "Train an experiment, then test its best checkpoint. Example: python -m lightning_vl fit -c "
    "experiments/vivit_fact_encoder.yaml --seed_everything 1. The same --run.id again goes on where the run was stopped.",
    "validate": "One pass over the validation split. Example: python -m lightning_vl validate -c RUN/config.yaml "
    "--ckpt_path RUN/checkpoints/best.ckpt, where RUN is runs/<experiment>/<id>.",
    "test": "One pass over the test split. Example: python -m lightning_vl test -c RUN/config.yaml "
    "--ckpt_path RUN/checkpoints/best.ckpt, where RUN is runs/<experiment>/<id>.",
    "predict": "Print what a checkpoint says of every test sample, one JSON object a line. Example: python -m lightning_vl "
    "predict -c RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt > predictions.jsonl",
}


class Bench(LightningCLI):
    """The command over one experiment."""

    def __init__(self, arguments: list[str] | None, run: bool = True) -> None:
        jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=ALLOWED)
        defaults = {"default_config_files": [str(DEFAULTS)]}
        described = {verb: {**defaults, "description": text} for verb, text in DESCRIPTIONS.items()}
        super().__init__(
            Task,
            DataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=Parser,
            parser_kwargs={"prog": "python -m lightning_vl", **(described if run else defaults)},
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=arguments,
            run=run,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's four verbs, without the arguments that this command decides itself."""
        decided = {"weights_only", "verbose", "return_predictions"}
        return {verb: skipped | decided for verb, skipped in LightningCLI.subcommands().items()}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        assert isinstance(parser, Parser)
        parser.known_subparsers = self._subcommand_parsers

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What an experiment's file says beside model, data and trainer."""
        parser.add_class_arguments(RunOptions, "run")
        parser.add_class_arguments(Execution, "execution")
        parser.add_argument("--expected", type=list[Expected], default=[], help="What the metrics should come out at.")
        parser.add_argument(
            "--transfer",
            type=list[TransferTask],
            default=[],
            help="Tasks to transfer an image classifier to, after its test.",
        )
        parser.add_argument(
            "--zero_shot",
            type=list[ZeroShot | PaperDataset],
            default=[],
            help="Data sets that CLIP classifies by the names of their classes, after its test.",
        )
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint_last")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint_best")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint gives weights and state; what is configured, the file and the command line say alone."""

    # -- the run ----------------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Any:
        """The parsed configuration of the verb."""
        return self.config[self.subcommand] if self.subcommand else self.config

    def before_instantiate_classes(self) -> None:
        """Decides the run's folder before anything is built."""
        options = self.settings.run
        if options.experiment is None:
            files = self.settings.config or []
            if not files:
                raise UserError("no experiment is given", "name its file: -c experiments/vivit_fact_encoder.yaml")
            options.experiment = Path(str(files[0])).stem
        identity = options.id or run_id()
        self.folder = (
            Path(options.root)
            / options.experiment
            / (identity if self.subcommand in ("fit", None) else f"{identity}-{self.subcommand}")
        )

    def instantiate_classes(self) -> None:
        """Builds task and data, and tells both the run's seed."""
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:  # a class or the trainer refuses its arguments
            raise UserError(
                " ".join(str(error).split())[:300], "change these values in the experiment's file"
            ) from error
        except ModuleNotFoundError as error:
            if "torch_xla" not in str(error):
                raise
            raise UserError(
                "a TPU needs torch_xla, which is not installed",
                "make an environment of its own on the TPU's machine: pip install --require-hashes -r requirements-tpu.txt",
            ) from error
        self.model.seed = self.datamodule.seed = self.settings.seed_everything
        self.model.execution = self._get(self.config_init, "execution")
        self.model.network = yaml.safe_load(self._configuration)["model"]["init_args"]["net"]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the run's folder, loggers, checkpoints and callbacks."""
        get = self._get
        if self.subcommand is None:
            return super().instantiate_trainer(logger=False)
        self.throughput = Throughput()
        last: LastCheckpoint = get(self.config_init, "checkpoint_last")
        best: ModelCheckpoint = get(self.config_init, "checkpoint_best")
        self.last, self.best = last, best
        last.path = self.folder / "checkpoints" / "last.ckpt"
        best.dirpath = str(self.folder / "checkpoints")
        configured = get(self.config_init, "trainer")
        callbacks: list[Callback] = [self.throughput, *(configured.get("callbacks") or [])]
        callbacks += [Examples(self.folder), Progress(self.throughput, self.model.unit)]
        wanted = configured.get("logger")
        if wanted not in (None, True, False):
            raise UserError(
                "trainer.logger is not one of its own", "leave it out, or set it to false to go without W&B"
            )
        loggers: list[Any] = [MetricsFile(self.folder), *(self._wandb() if wanted is not False else [])]
        interval = configured.get("val_check_interval")
        if not isinstance(interval, int):
            raise UserError(
                f"trainer.val_check_interval is {interval}", "give the optimiser steps from one validation to the next"
            )
        trainer = {
            **configured,
            **kwargs,
            "callbacks": callbacks,
            "logger": loggers,
            # Lightning counts micro-batches here; counted in steps, accumulation leaves the science alone
            "val_check_interval": interval * configured["accumulate_grad_batches"],
            "default_root_dir": str(self.folder),
            "plugins": [*(configured.get("plugins") or []), WholeCheckpoints()],
        }
        built = self._instantiate_trainer(trainer, [best, last, StopOnSignal(last)] if self.subcommand == "fit" else [])
        cluster = built._accelerator_connector.cluster_environment
        if isinstance(cluster, SLURMEnvironment):
            cluster.auto_requeue = False  # else Lightning saves and requeues beside StopOnSignal and the batch script
        return built

    def _wandb(self) -> list[WandbRun]:
        if choose_wandb_mode() == "disabled":
            return []
        options = self.settings.run
        return [
            WandbRun(
                folder=self.folder,
                id=f"{options.experiment}-{self.folder.name}",
                name=f"{options.experiment}/{self.folder.name}",
                project=options.project,
                entity=options.entity,
                group=options.experiment,
                tags=options.tags,
            )
        ]

    def fit(self, model: Task, datamodule: DataModule, ckpt_path: str | None = None) -> None:
        """Trains, going on where an earlier start of the same run was stopped; then tests the best checkpoint."""
        finished = read_results(self.folder)
        if finished is not None:
            say(f"{self.folder} is finished: {self.folder / RESULTS}; a new run needs another --run.id")
            return
        datamodule.setup("fit")  # what is wrong with the data is said before a folder is made
        check_tasks(model.net, self._get(self.config_init, "transfer"))
        self._check_zero_shot(needed=False)
        self._keep_config()
        self._log_configuration()
        if ckpt_path is None and (ckpt_path := self._resume_from()):
            say(f"going on from {ckpt_path}")
        model.from_weights = ckpt_path is None
        started = now()
        say(self._summary())
        self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        best = self.best.best_model_path or self.last.path
        # from the file, since a run that went on after its last validation has none in memory
        validation = last_validation(self.folder / METRICS)
        totals = self.throughput.summary(self.trainer.strategy.root_device)
        self.trainer.test(model, datamodule=datamodule, ckpt_path=str(best), verbose=False)
        self._record({"steps": self.trainer.global_step, **totals, "started": started}, validation, Path(best))

    def validate(self, model: Task, datamodule: DataModule, ckpt_path: str | None = None) -> None:
        """One pass over the validation split with a checkpoint."""
        weights = self._weights(ckpt_path)
        self._log_configuration()
        self.trainer.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)
        self._record({"started": now()}, {}, weights)

    def test(self, model: Task, datamodule: DataModule, ckpt_path: str | None = None) -> None:
        """One pass over the test split with a checkpoint."""
        weights = self._weights(ckpt_path)
        self._check_zero_shot(needed=True)
        self._log_configuration()
        self.trainer.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)
        self._record({"started": now()}, {}, weights)

    def predict(self, model: Task, datamodule: DataModule, ckpt_path: str | None = None) -> None:
        """Prints what a checkpoint says of every test sample: one JSON object a line."""
        self._weights(ckpt_path)
        batches = self.trainer.predict(model, datamodule=datamodule, ckpt_path=ckpt_path) or []
        for batch in [*batches, model.conclusions(self.folder)]:
            for row in batch:
                print(json.dumps(row))

    def _weights(self, checkpoint: str | None) -> Path:
        """The file of the network's weights: a checkpoint of ours, or else the one that it starts from."""
        self.model.from_weights = checkpoint is None
        path = checkpoint or getattr(self.model.init_from, "path", None)
        if path is None:
            raise UserError(
                "no checkpoint is given", "name it: --ckpt_path runs/<experiment>/<id>/checkpoints/best.ckpt"
            )
        return Path(newest(str(path)))

    def _summary(self) -> str:
        network = self.model.net
        parameters = sum(parameter.numel() for parameter in network.parameters())
        device = device_name(self.trainer.strategy.root_device.type)
        processes = f" x {self.trainer.world_size}" if self.trainer.world_size > 1 else ""
        return (
            f"{self.settings.run.experiment}: {type(network).__name__}, {parameters:,} parameters; "
            f"{self.trainer.max_steps} steps of {self.datamodule.batch_size} {self.model.unit}; "
            f"{device}{processes}, {self.trainer.precision}\nrun folder {self.folder}"
        )

    def _resume_from(self) -> str | None:
        path, passed = last_complete(self.folder / "checkpoints")
        for line in passed:
            say(f"skipped {line}")
        return str(path) if path else None

    @property
    def _configuration(self) -> str:
        """The resolved configuration as YAML, without what belongs to this start alone."""
        settings = self.settings.clone()
        for key in ("config", "ckpt_path"):
            settings.pop(key, None)
        settings.run.id = None
        parser = self._parser(self.subcommand) if self.subcommand else self.parser
        return parser.dump(settings, skip_none=False)

    def _log_configuration(self) -> None:
        configuration = yaml.safe_load(self._configuration)
        for logger in self.trainer.loggers:
            logger.log_hyperparams(configuration)

    @rank_zero_only
    def _keep_config(self) -> None:
        """Writes config.yaml, which runs again as it is; refuses to mix two experiments in one folder."""
        text = self._configuration
        path = self.folder / CONFIG
        if path.exists():
            differing = differences_outside(HOW, yaml.safe_load(path.read_text()), yaml.safe_load(text))
            if differing:
                raise UserError(
                    f"{self.folder} holds a run with another {', '.join(differing[:5])}",
                    "give this one a new --run.id, or the values that it was started with",
                )
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _record(self, totals: dict[str, Any], validation: dict[str, float], checkpoint: Path) -> None:
        """Writes results.json and prints what came out next to what the file expects."""
        from lightning_vl.report.cost import static_cost

        self.model.gather()
        if not self.trainer.is_global_zero:
            return
        metrics = {**validation, **{name: float(value) for name, value in self.trainer.callback_metrics.items()}}
        metrics |= {**self._transfer(), **self._zero_shot()}
        metrics = {name: value for name, value in metrics.items() if name != "step" and not name.startswith("train/")}
        expected = [entry.judge(metrics) for entry in self._get(self.config_init, "expected")]
        cost = static_cost(self.model.net)
        source = self.datamodule.source
        source = source.source if isinstance(source, InMemory) else source
        device = self.trainer.strategy.root_device
        results = {
            "schema": 1,
            "experiment": self.settings.run.experiment,
            "run": self.folder.name,
            "verb": self.subcommand,
            "status": "finished",
            "seed": self.settings.seed_everything,
            "metrics": metrics,
            "expected": expected,
            "model": {"parameters": cost.parameters, "gmacs": cost.gmacs, "gflops": cost.gflops},
            "data": {
                "name": type(source).__name__,
                **{split: len(dataset) for split, dataset in self.datamodule.datasets.items()},
                "skipped": [report for reports in self.datamodule.skipped.values() for report in reports],
            },
            **totals,
            "checkpoint": str(checkpoint),
            "device": device_name(device.type),
            "devices": self.trainer.world_size,
            "precision": str(self.trainer.precision),
            **provenance(),
            "finished": now(),
        }
        write_results(self.folder, results)
        for logger in self.trainer.loggers:  # what the network costs: dashboards draw metrics over it
            logger.log_hyperparams({"cost": results["model"]})
        show(results)
        say(f"run folder {self.folder}")

    def _transfer(self) -> dict[str, float]:
        """What the network, with the weights that were tested, does on the tasks of `transfer`."""
        tasks = self._get(self.config_init, "transfer")
        if not tasks or self.subcommand == "validate":
            return {}
        device = self.trainer.strategy.root_device
        metrics = run_all(self.model.net, tasks, self.settings.seed_everything, device)
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, self.trainer.global_step)
        return metrics

    def _check_zero_shot(self, needed: bool) -> None:
        """Finds before anything is computed what can be wrong with the data sets of `zero_shot`; some must be there if needed."""
        tasks = self._get(self.config_init, "zero_shot")
        if tasks and not (isinstance(self.model, ClipTask) and isinstance(self.datamodule, CaptionData)):
            raise UserError(
                f"zero_shot is of networks that read class names, and this is a {type(self.model).__name__}",
                "leave zero_shot out, or give an experiment of CLIP",
            )
        check_all(tasks, needed)

    def _zero_shot(self) -> dict[str, float]:
        """What the network, with the weights that were tested, says of the data sets of `zero_shot`."""
        tasks = self._get(self.config_init, "zero_shot")
        if not tasks or self.subcommand == "validate":
            return {}
        encoder = self.model.to(self.trainer.strategy.root_device).encoder()
        metrics = run_zero_shot(encoder, tasks, self.folder, self.settings.seed_everything)
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, self.trainer.global_step)
        return metrics


def show(results: dict[str, Any]) -> None:
    """The metrics next to what the experiment's file expects of them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{results['experiment']}, seed {results['seed']}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("metric", no_wrap=True)
    table.add_column("measured", justify="right")
    table.add_column("expected", justify="right")
    table.add_column("")
    expected = {entry["metric"]: entry for entry in results["expected"]}
    for name, value in results["metrics"].items():
        entry = expected.get(name)
        verdict = "" if entry is None else "[green]as expected[/green]" if entry["met"] else "[yellow]differs[/yellow]"
        table.add_row(name, f"{value:.4f}", _wanted(entry), verdict)
    for name, entry in expected.items():
        if entry["measured"] is None:
            table.add_row(name, "-", _wanted(entry), "not measured")
    console = Console()
    console.print(table)
    for entry in expected.values():
        console.print(f"{entry['metric']} expected ({entry['kind']}): {entry['source']}", highlight=False, style="dim")


def _wanted(entry: dict[str, Any] | None) -> str:
    return "" if entry is None else f"{entry['value']:.4f} ± {entry['tolerance']:.4f}"


class Experiment(NamedTuple):
    """An experiment's file, built."""

    name: str
    task: Task
    data: DataModule
    config: dict[str, Any]


def build(files: Sequence[str], overrides: Sequence[str] = ()) -> Experiment:
    """Builds task and data of an experiment without running anything.

    Under `torch.device("meta")` full-size networks take no memory.

    Args:
        files: YAML files, merged from left to right.
        overrides: further options as on the command line, `--seed_everything=1`.

    Raises:
        UserError: a file, key or value is wrong.
    """
    quiet()
    for file in files:
        check_yaml(Path(file))
    arguments = [word for file in files for word in ("-c", str(file))] + list(overrides)
    bench = Bench(arguments, run=False)
    name = bench.settings.run.experiment
    config = yaml.safe_load(bench.parser.dump(bench.config, skip_none=False))
    return Experiment(name, bench.model, bench.datamodule, config)


def quiet() -> None:
    """Leaves out what libraries say to every user of every run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for pattern in (
        r".*does not have many workers.*",
        r".*You are using a custom batch sampler `EvaluationKeys` for prediction.*",  # it gives every sample once
        r".*`srun` command is available.*",
        r".*smaller than the logging interval.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Trying to infer the `batch_size`.*",
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*when using `ckpt_path`, callbacks used to create.*",
        r"(?s).*JsonargparseDeprecationWarning.*",
        r"(?s).*was deprecated in v4.*",
        r"(?s).*skip_none parameter was deprecated.*",
        r".*It is recommended to use `self.log.*sync_dist=True.*",  # the metrics have summed over ranks already
        r".*Total length of `DataLoader` across ranks is zero.*",  # a search by an index embeds no picture
        r".*FSDP2-wrapped module .* returned a view tensor.*",  # nobody writes into a network's outputs
        r".*args parameter is intended to run from within Python.*",
    ):
        warnings.filterwarnings("ignore", pattern)


def main(arguments: list[str]) -> int:
    """Runs `fit`, `validate`, `test` or `predict`.

    Returns:
        Exit code: 0 done, 2 a mistake of the user, 130 Ctrl-C, 143 SIGTERM, 85 to be requeued.
    """
    quiet()
    torch.set_float32_matmul_precision("high")
    if not any(
        word.startswith(("-c", "--config", "--help", "-h", "--print_config")) or ".help" in word for word in arguments
    ):
        raise UserError("no experiment is given", "name its file: -c experiments/vivit_fact_encoder.yaml")
    for flag, value in itertools.pairwise([*arguments, ""]):
        if flag in ("-c", "--config"):
            check_yaml(Path(value))
        elif flag.startswith("--config="):
            check_yaml(Path(flag.removeprefix("--config=")))
    sys.argv = [sys.argv[0], *arguments]
    inherited = RUN_ID in os.environ
    try:
        Bench(None)
    except MisconfigurationException as error:
        raise UserError(
            " ".join(str(error).split())[:400], "see the key named above in the experiment's file"
        ) from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        first = " ".join(str(error).splitlines()[1].split())
        raise UserError(
            f"the checkpoint does not fit the network: {first}",
            "use the experiment that it was made by, or start from its weights with model.init_args.init_from",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"cannot write {error.filename or 'a file'}: {error.strerror}",
            "free some disk space and run the same command with the same --run.id: it goes on from the last checkpoint",
        ) from error
    except SIGTERMException:  # outside of training, where there is nothing to save
        return 128 + signal.SIGTERM
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            return 130
        return error.code if isinstance(error.code, int) else 0
    finally:
        if not inherited:
            os.environ.pop(RUN_ID, None)  # the next run of this process is another one
    return 0
