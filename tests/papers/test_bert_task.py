"""BERT's pre-training as a run: its losses, its metrics, and that it goes on exactly."""

import json
import math
from pathlib import Path

import pytest
import torch
from support import ROOT, TINY_TEXT, Command, assert_same_run, kill_after_step, verb

from lightning_vl.cli import build
from lightning_vl.errors import UserError
from lightning_vl.papers.bert.model import Bert, PreTrainingOutput
from lightning_vl.papers.bert.task import PreTrainingMetrics, check_fit

EXPERIMENT = "experiments/bert_tiny.yaml"
SHORT = (
    "-c",
    EXPERIMENT,
    *TINY_TEXT,
    "--trainer.max_steps=12",
    "--trainer.val_check_interval=5",
    "--trainer.log_every_n_steps=1",
    "--checkpoint_last.every_n_train_steps=2",
)


def outputs(words: int, sentences: int) -> tuple[PreTrainingOutput, dict[str, torch.Tensor]]:
    """Random logits and answers."""
    logits, pairs = torch.randn(words, 7), torch.randn(sentences, 2)
    made = PreTrainingOutput(logits, pairs, torch.zeros(1), torch.zeros(1))
    return made, {"words": torch.randint(7, (words,)), "next_sentence": torch.randint(2, (sentences,))}


def test_metrics_are_means_over_words_and_not_over_batches() -> None:
    """Breaks if a batch with few words weighs as much as one with many, or perplexity is a mean of perplexities."""
    torch.manual_seed(0)
    metrics = PreTrainingMetrics(next_sentence=True)
    batches = [outputs(50, 4), outputs(3, 1), outputs(11, 2)]
    for output, batch in batches:
        metrics.update(output, batch)
    right, loss, count, right_pairs, loss_pairs = 0, 0.0, 0, 0, 0.0
    for output, batch in batches:
        for row, word in zip(output.words.tolist(), batch["words"].tolist(), strict=True):
            right += row.index(max(row)) == word
            loss += math.log(sum(map(math.exp, row))) - row[word]
            count += 1
        assert output.next_sentence is not None
        for row, answer in zip(output.next_sentence.tolist(), batch["next_sentence"].tolist(), strict=True):
            right_pairs += row.index(max(row)) == answer
            loss_pairs += math.log(sum(map(math.exp, row))) - row[answer]
    values = metrics.compute()
    assert values["word_accuracy"] == pytest.approx(right / count)
    assert values["word_perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-5)
    assert values["next_sentence_accuracy"] == pytest.approx(right_pairs / 7)
    assert values["loss"] == pytest.approx(loss / count + loss_pairs / 7, rel=1e-5)


def test_without_next_sentences_there_is_no_such_metric() -> None:
    """Breaks if the model without the second task is said to have an accuracy in it."""
    metrics = PreTrainingMetrics(next_sentence=False)
    output, batch = outputs(5, 2)
    metrics.update(output._replace(next_sentence=None), batch)
    assert set(metrics.compute()) == {"loss", "word_accuracy", "word_perplexity"}


def test_what_does_not_fit_the_network_is_refused() -> None:
    """Breaks if a piece without an embedding, or a place without a position, is found in the middle of a run."""
    net = Bert(vocabulary_size=50, layers=1, dim=8, heads=2, mlp_dim=16, positions=32)
    check_fit(net, 50, 32)
    with pytest.raises(UserError, match="reads 50 pieces, the vocabulary has 60"):
        check_fit(net, 60, 32)
    with pytest.raises(UserError, match="sequences of 64 tokens, the network positions for 32"):
        check_fit(net, 50, 64)


@pytest.mark.parametrize(
    ("argument", "what"),
    [
        ("--data.init_args.length=128", "sequences of 128 tokens, the network positions for"),
        ("--data.init_args.vocabulary.init_args.size=1500", "the vocabulary has 1500"),
        ("--data.init_args.length=4", "sequences of 4 tokens are too short"),
        ("--data.init_args.phases=[{length: 64, steps: 5}]", "the phases have 5 steps, trainer.max_steps is 12"),
    ],
)
def test_a_mistake_is_said_before_training(
    argument: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if one of these ends in a traceback, or after the first step."""
    monkeypatch.chdir(ROOT)
    assert verb("fit", *SHORT, argument, f"--run.root={tmp_path}") == 2
    assert what in capsys.readouterr().err


def test_the_test_prints_what_trivial_predictors_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the record of a run has no baselines beside its metrics, or a metric is missing."""
    monkeypatch.chdir(ROOT)
    assert verb("fit", *SHORT, "--trainer.max_steps=2", f"--run.root={tmp_path}", "--run.id=one") == 0
    metrics = json.loads((tmp_path / "bert_tiny" / "one" / "results.json").read_text())["metrics"]
    assert {"test/word_accuracy", "test/word_perplexity", "test/next_sentence_accuracy"} < metrics.keys()
    assert 0 < metrics["baseline/unigram_accuracy"] < 0.3
    assert 100 < metrics["baseline/unigram_perplexity"] < 2000  # of 2,000 pieces
    assert 0.5 <= metrics["baseline/next_sentence_majority"] < 1
    examples = (tmp_path / "bert_tiny" / "one" / "figures" / "examples.txt").read_text()
    assert "<<" in examples


@pytest.mark.parametrize(
    ("workers", "further"),
    [
        (0, ()),
        pytest.param(2, ("--trainer.accumulate_grad_batches=2",), marks=pytest.mark.slow),
        pytest.param(
            2,
            (
                "--data.init_args.dynamic=false",
                "--data.init_args.phases=[{length: 32, steps: 8}, {length: 64, steps: 4}]",
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["dynamic", "accumulated", "phases"],
)
def test_a_killed_run_goes_on_bit_for_bit(
    command: Command, tmp_path: Path, workers: int, further: tuple[str, ...]
) -> None:
    """Breaks if pairs, masks, dropout, the phase or the optimiser's state were not those of the run."""
    arguments = ("fit", *SHORT, *further, f"--data.init_args.workers={workers}", f"--run.root={tmp_path}")
    assert command(*arguments, "--run.id=whole").returncode == 0
    folder = tmp_path / "bert_tiny" / "cut"
    kill_after_step(7, folder, *arguments, "--run.id=cut")
    done = command(*arguments, "--run.id=cut")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "bert_tiny" / "whole", folder)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["MaskedWords", "NextWords"])
def test_two_ranks_have_the_losses_of_one(command: Command, tmp_path: Path, objective: str) -> None:
    """Breaks if each rank's mean over its own words weighs the same, however many words it has."""
    runs = []
    arguments = (*SHORT, f"--data.init_args.objective.class_path={objective}", "--trainer.max_steps=4")
    for name, devices in (("one", ()), ("two", ("-c", "experiments/overlays/cpu_ddp.yaml"))):
        # without dropout, which is drawn on each rank
        dropout = [
            f"--model.init_args.net.init_args.bert.init_args.{key}=0" for key in ("dropout", "attention_dropout")
        ]
        done = command(
            "fit", *arguments[:2], *devices, *arguments[2:], *dropout, f"--run.root={tmp_path}", f"--run.id={name}"
        )
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "bert_tiny" / name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [row["train/words"] for row in lines if "train/words" in row]
        runs.append((losses, json.loads((folder / "results.json").read_text())["metrics"]))
    assert len(runs[0][0]) == 4
    assert runs[1][0] == pytest.approx(runs[0][0], abs=1e-6)
    for name, value in runs[0][1].items():
        assert runs[1][1][name] == pytest.approx(value, abs=1e-5, rel=1e-5), name


def test_the_loss_is_the_sum_of_two_means() -> None:
    """Breaks if a term is a sum, or the terms are weighted."""
    torch.manual_seed(0)
    task = build([str(ROOT / EXPERIMENT)]).task
    output, batch = outputs(9, 3)
    losses = task.eval().losses({**batch, "id": ["a", "b", "c"]}, output)
    assert losses["words"] == pytest.approx(torch.nn.functional.cross_entropy(output.words, batch["words"]).item())
    assert output.next_sentence is not None
    expected = torch.nn.functional.cross_entropy(output.next_sentence, batch["next_sentence"]).item()
    assert losses["next_sentence"] == pytest.approx(expected)


def said(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    """The rows that `predict` has printed."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def test_words_are_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if `predict` does not answer a file of sentences with a run's checkpoint, in the file's order."""
    monkeypatch.chdir(ROOT)
    assert verb("fit", *SHORT, "--trainer.max_steps=2", f"--run.root={tmp_path}", "--run.id=one") == 0
    run = tmp_path / "bert_tiny" / "one"
    (tmp_path / "sentences.txt").write_text(
        'The [MASK] statement is a [MASK].\n{"text": "A [MASK] is raised.", "options": ["ValueError", "for"]}\n'
    )
    capsys.readouterr()
    arguments = ("predict", "-c", str(run / "config.yaml"), f"--run.root={tmp_path}")
    sentences = f"--data.init_args.sentences={tmp_path / 'sentences.txt'}"
    assert verb(*arguments, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", sentences) == 0
    free, choice = said(capsys)
    assert [len(words) for words in free["words"]] == [5, 5]
    assert {row["option"] for row in choice["options"]} == {"ValueError", "for"}
    assert choice["answer"] == choice["options"][0]["option"]
    assert sum(row["probability"] for row in choice["options"]) == pytest.approx(1)


def test_public_weights_fill_in_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if `predict` does not take transformers' weights, gives other words than transformers, or takes half of a network."""
    import transformers

    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", ".", "on", "##s", "mat"]
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    theirs = transformers.BertForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path / "public")
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    (tmp_path / "sentences.txt").write_text("the [MASK] sat on the mat .\n")
    bert = {"vocabulary_size": len(words), "dim": 64, "layers": 2, "heads": 2, "mlp_dim": 96}
    arguments = (
        "predict",
        "-c",
        EXPERIMENT,
        *(f"--model.init_args.net.init_args.bert.init_args.{key}={value}" for key, value in bert.items()),
        "--model.init_args.net.init_args.bert.init_args.gelu_approximation=none",
        "--model.init_args.init_from=BertInitialisation",
        f"--model.init_args.init_from.init_args.path={tmp_path / 'public'}",
        "--data.init_args.vocabulary=VocabularyFile",
        f"--data.init_args.vocabulary.init_args.path={tmp_path / 'vocab.txt'}",
        f"--data.init_args.sentences={tmp_path / 'sentences.txt'}",
        f"--run.root={tmp_path}",
    )
    assert verb(*arguments) == 0
    (row,) = said(capsys)
    with torch.no_grad():
        logits = theirs(torch.tensor([[2, 5, 4, 7, 9, 5, 11, 8, 3]])).prediction_logits[0, 2]
    values, ids = logits.softmax(-1).topk(5)
    assert [word["word"] for word in row["words"][0]] == [words[i] for i in ids.tolist()]
    assert [word["probability"] for word in row["words"][0]] == pytest.approx(values.tolist(), rel=1e-4)

    theirs.bert.save_pretrained(tmp_path / "public")  # now without the heads
    assert verb(*arguments) == 2
    assert "no checkpoint is given" in capsys.readouterr().err


def test_weights_that_read_other_pieces_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if pre-training, or `predict`, takes weights whose vocabulary is another one of the same size."""
    monkeypatch.chdir(ROOT)
    short = (*SHORT, "--trainer.max_steps=2", f"--run.root={tmp_path}")
    assert verb("fit", *short, "--run.id=one") == 0
    path = tmp_path / "bert_tiny" / "one" / "checkpoints" / "last.ckpt"
    start = ("--model.init_args.init_from=BertInitialisation", f"--model.init_args.init_from.init_args.path={path}")
    cased = "--data.init_args.vocabulary.init_args.lowercase=false"
    (tmp_path / "sentences.txt").write_text("The [MASK] statement.\n")
    for arguments in (
        ("fit", *short, *start, cased),
        ("predict", "-c", EXPERIMENT, *start, cased, f"--data.init_args.sentences={tmp_path / 'sentences.txt'}"),
    ):
        capsys.readouterr()
        assert verb(*arguments) == 2
        printed = capsys.readouterr()
        assert "trained with another vocabulary" in printed.err
        assert "{" not in printed.out
    path.rename(tmp_path / "moved.ckpt")  # a checkpoint of its own needs nothing of the weights it once started from
    predict = ("predict", "-c", EXPERIMENT, *start, f"--ckpt_path={tmp_path / 'moved.ckpt'}", f"--run.root={tmp_path}")
    assert verb(*predict, f"--data.init_args.sentences={tmp_path / 'sentences.txt'}") == 0
