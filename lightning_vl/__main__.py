"""The command. Whatever needs no torch answers at once: nothing heavy is imported here."""

import difflib
import os
import sys
from collections.abc import Sequence

VERBS = {
    "fit": "train an experiment, then test its best checkpoint",
    "validate": "one pass over the validation split with a checkpoint",
    "test": "one pass over the test split with a checkpoint",
    "predict": "what a checkpoint says of every test sample, as JSON lines",
    "profile": "parameters, multiply-adds, latency and memory of experiments",
    "compare": "runs side by side: table, curves, figure, page",
    "figure": "what a network has learned, as a picture and a table",
    "sweep": "run a family of experiments over seeds and draw its table",
    "export": "one safetensors file of a checkpoint, with a model card",
    "wandb": "a family's workspace and report at W&B; offline runs listed and synced",
    "doctor": "what this machine has, and what each experiment needs",
}
USAGE = """\
usage: python -m lightning_vl VERB ...

{verbs}

examples:
  python -m lightning_vl fit -c experiments/vivit_fact_encoder.yaml
  python -m lightning_vl fit -c experiments/vivit_fact_encoder.yaml --seed_everything 1 --trainer.max_steps 100
  python -m lightning_vl profile experiments/vivit_fact_encoder.yaml
  python -m lightning_vl compare runs/vivit_fact_encoder

python -m lightning_vl VERB --help lists the options of a verb."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        Exit code: 0 done, 1 failed, 2 a mistake in the command or the data, 130 Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(verbs="\n".join(f"  {verb:10s}{text}" for verb, text in VERBS.items())))
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        print(f"error: there is no verb '{verb}'", file=sys.stderr)
        hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(VERBS)}"
        print(f"  {hint}", file=sys.stderr)
        return 2
    from lightning_vl.errors import UserError

    try:
        match verb:
            case "compare":
                from lightning_vl.report.compare import main as compare

                return compare(rest)
            case "sweep":
                from lightning_vl.report.sweep import main as sweep

                return sweep(rest)
            case "figure":
                from lightning_vl.report.drawing import main as figure

                return figure(rest)
            case "export":
                from lightning_vl.export import main as export

                return export(rest)
            case "wandb":
                from lightning_vl.report.dashboards import main as wandb

                return wandb(rest)
            case "doctor":
                from lightning_vl.doctor import main as doctor

                return doctor(rest)
            case "profile":
                from lightning_vl.report.profile import main as profile

                return profile(rest)
            case _:
                # threads that spin while they wait steal the cores from the processes that read ahead: on two cores a step
                # takes several times as long; read by OpenMP when torch is imported
                os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
                from lightning_vl.cli import main as cli

                return cli(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
