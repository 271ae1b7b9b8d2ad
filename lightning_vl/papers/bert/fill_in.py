"""Sentences with words left out: what a pre-trained network fills in, and which of given options it prefers."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_vl.data.masking import NextWords, WordObjective
from lightning_vl.data.stream import Batch, Sample
from lightning_vl.data.tokenizer import WordPiece
from lightning_vl.errors import UserError
from lightning_vl.nn.packing import pack

HOW = 'give a text with [MASK] on each line, or {"text": "... [MASK] ...", "options": ["one", "other"]}'


class Sentence(NamedTuple):
    """A line of the file.

    Attributes:
        id: file:line.
        text: with [MASK] as it is written there.
        options: what may stand at the [MASK]; none where the network says it freely.
        pieces: of each option its pieces.
        token_ids: by number of pieces that stand at a [MASK] the tokens with so many masks, [CLS] and [SEP] around; one
            always, and as many as any option has.
    """

    id: str
    text: str
    options: list[str]
    pieces: list[list[int]]
    token_ids: dict[int, np.ndarray]


class Sentences:
    """The lines of a file, each a text with [MASK] in it, or a JSON object with `text` and `options` for its one [MASK].

    An option of several pieces is read as so many masks; blank lines are passed over.

    Args:
        path: the file, UTF-8.
        tokenizer: the network's.
        objective: says where the network tells a word.
        length: the most tokens of a sequence.

    Raises:
        UserError: the file cannot be read, or a line is not as it should be; it is named.
    """

    def __init__(self, path: str, tokenizer: WordPiece, objective: WordObjective, length: int) -> None:
        self.tokenizer = tokenizer
        self.objective = objective
        self.length = length
        try:
            lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        except OSError as error:
            raise UserError(f"the sentences {path} cannot be read: {error.strerror}", HOW) from error
        numbered = ((f"{path}:{number}", line) for number, line in enumerate(lines, start=1))
        self.sentences = [self._sentence(id, line) for id, line in numbered if line.strip()]
        if not self.sentences:
            raise UserError(f"the file {path} has no sentence", HOW)

    def __len__(self) -> int:
        return len(self.sentences)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """`id`, `sentence`, and `places` by number of masks; nothing is drawn from `rng`."""
        sentence = self.sentences[index]
        places = {
            count: self.objective.said_at(np.flatnonzero(token_ids == self.tokenizer.mask))
            for count, token_ids in sentence.token_ids.items()
        }
        return {"id": sentence.id, "sentence": sentence, "places": places}

    def _sentence(self, id: str, line: bytes) -> Sentence:
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{id} is no UTF-8: {error.reason} at byte {error.start}", "save the file as UTF-8"
            ) from error
        text, options = _with_options(id, text) if text.startswith("{") else (text, [])
        token_ids = self.tokenizer.encode(text, special=True)
        masks = token_ids.count(self.tokenizer.mask)
        if not masks:
            raise UserError(f"{id} has no [MASK]", HOW)
        if options and masks > 1:
            raise UserError(
                f"{id} has {masks} [MASK], and options are for one", "leave the other words in, or the options out"
            )
        pieces = [self.tokenizer.encode(option) for option in options]
        empty = [option for option, piece in zip(options, pieces, strict=True) if not piece]
        if empty:
            raise UserError(f"{id} has an empty option, {empty[0]!r}", "give every option a word")
        for option, piece in zip(options, pieces, strict=True):
            if self.tokenizer.unknown in piece or pieces.count(piece) > 1:
                raise UserError(
                    f"{id}: the vocabulary cannot tell the option {option!r} from others",
                    "give options that differ and that it has pieces for",
                )
        widened = {count: self._widened(token_ids, count) for count in sorted({1, *map(len, pieces)})}
        longest = max(map(len, widened.values()))
        if longest > self.length:
            raise UserError(
                f"{id} has {longest} tokens, the longest sequence is of {self.length}",
                "shorten it, or raise data.init_args.length as far as the network has positions",
            )
        if isinstance(self.objective, NextWords) and (masks > 1 or len(widened) > 1):
            raise UserError(
                f"{id} asks for several pieces, and a left-to-right network says the one that comes next",
                "give it one [MASK], and options of one piece",
            )
        return Sentence(id, text, options, pieces, widened)

    def _widened(self, token_ids: list[int], count: int) -> np.ndarray:
        """[CLS] text [SEP] with so many masks for each [MASK]."""
        wide = [[id] * (count if id == self.tokenizer.mask else 1) for id in token_ids]
        return np.array([self.tokenizer.cls, *chain.from_iterable(wide), self.tokenizer.sep])


def _with_options(id: str, line: str) -> tuple[str, list[str]]:
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{id} is no JSON: {error.msg} at character {error.pos}", HOW) from error
    text, options = given.get("text"), given.get("options", [])
    if not isinstance(text, str) or not given.keys() <= {"text", "options"}:
        raise UserError(f"{id} has keys {', '.join(given)}", HOW)
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options) or len(options) == 1:
        raise UserError(f"{id}: options are no list of two texts or more", HOW)
    return text, options


def collate_sentences(samples: Sequence[Sample]) -> Batch:
    """Samples of `Sentences` as one line of tokens, each with one sequence for every number of masks.

    `sentences` are theirs, and `asked` gives for each, by number of masks, its rows of the logits.
    """
    token_ids: list[np.ndarray] = []
    places: list[np.ndarray] = []
    asked: list[dict[int, list[int]]] = []
    tokens = words = 0
    for sample in samples:
        asked.append({})
        for count, ids in sample["sentence"].token_ids.items():
            here = sample["places"][count]
            token_ids.append(ids)
            places.append(here + tokens)
            asked[-1][count] = list(range(words, words + len(here)))
            tokens, words = tokens + len(ids), words + len(here)
    return {
        "token_ids": torch.from_numpy(np.concatenate(token_ids)),
        "segment_ids": torch.zeros(tokens, dtype=torch.long),
        "packing": pack(torch.tensor([len(ids) for ids in token_ids])),
        "places": torch.from_numpy(np.concatenate(places)),
        "sentences": [sample["sentence"] for sample in samples],
        "asked": asked,
        "id": [sample["id"] for sample in samples],
    }


def fill_in_rows(batch: Mapping[str, Any], logits: Tensor, tokenizer: WordPiece, k: int = 5) -> list[dict[str, Any]]:
    """What the network says at the masks.

    The score of an option is the mean log-probability of its pieces, each at its own mask, so that longer options are not
    worse for their length; probabilities of options are the softmax of their scores.

    Args:
        batch: of `collate_sentences`; or of pre-training, whose sequences then are the texts.
        logits: (m, v) at the batch's places.
        tokenizer: the network's.
        k: how many words to give for each mask.

    Returns:
        for each sentence `id`, `text`, `words`: for each mask the k likeliest with `word` and `probability`; where there
        are options also `options`, the likeliest first, with `option`, `probability` and `log_probability` (the score, in
        nats), and `answer`, the likeliest.
    """
    log_probabilities = logits.float().log_softmax(-1).cpu()
    values, pieces = log_probabilities.topk(min(k, logits.shape[-1]))
    words = [
        [{"word": tokenizer.pieces[piece], "probability": p} for piece, p in zip(ids, probabilities, strict=True)]
        for ids, probabilities in zip(pieces.tolist(), values.exp().tolist(), strict=True)
    ]
    if "sentences" not in batch:
        return _rows_of_pairs(batch, words, tokenizer)
    rows = []
    for sentence, asked in zip(batch["sentences"], batch["asked"], strict=True):
        row = {"id": sentence.id, "text": sentence.text, "words": [words[place] for place in asked[1]]}
        if sentence.options:
            scores = torch.stack([log_probabilities[asked[len(ids)], ids].mean() for ids in sentence.pieces])
            ranked = sorted(
                zip(sentence.options, scores.softmax(0).tolist(), scores.tolist(), strict=True), key=lambda o: -o[2]
            )
            row["options"] = [{"option": o, "probability": p, "log_probability": score} for o, p, score in ranked]
            row["answer"] = ranked[0][0]
        rows.append(row)
    return rows


def _rows_of_pairs(batch: Mapping[str, Any], words: list[Any], tokenizer: WordPiece) -> list[dict[str, Any]]:
    packing = batch["packing"]
    sequence = torch.bucketize(batch["places"], packing.last.contiguous()).tolist()
    bounds = zip(packing.first.tolist(), packing.last.tolist(), strict=True)
    return [
        {
            "id": id,
            "text": tokenizer.decode(
                batch["token_ids"][first + 1 : last].tolist()
            ),  # [CLS] and the last [SEP] left out
            "words": [word for number, word in zip(sequence, words, strict=True) if number == i],
        }
        for i, (id, (first, last)) in enumerate(zip(batch["id"], bounds, strict=True))
    ]
