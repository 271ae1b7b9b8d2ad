"""Which words are asked for: how many, which, and what is read in their place."""

import numpy as np
import pytest
from scipy import stats

from lightning_vl.data.masking import MaskedWords, NextWords, WordObjective, predictions
from lightning_vl.data.tokenizer import WordPiece

WORDS = [f"w{number}" for number in range(60)]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(f"##{word}" for word in WORDS)]
CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def tokenizer() -> WordPiece:
    """A vocabulary of sixty words that go on in sixty ways."""
    return WordPiece(PIECES)


def sequence(length: int, seed: int = 0) -> np.ndarray:
    """[CLS] A [SEP] B [SEP] with segments of about the same length."""
    tokens = np.random.default_rng(seed).integers(5, len(PIECES), length)
    tokens[[0, length // 2, -1]] = CLS, SEP, SEP
    return tokens


@pytest.mark.parametrize(
    ("length", "most", "number"),
    [(128, 20, 19), (512, 77, 77), (512, 80, 77), (512, 20, 20), (3, 20, 1), (10, 20, 2), (30, 20, 4), (50, 20, 8)],
)
def test_how_many_words_are_asked_for(length: int, most: int, number: int, tokenizer: WordPiece) -> None:
    """Breaks if [CLS] and [SEP] do not count, the cap is lost, or halves round otherwise than in the released code."""
    assert predictions(length, 0.15, most) == number
    for objective in (MaskedWords(most), NextWords(most)):
        asked = objective.prepare(sequence(max(length, 4)), tokenizer, np.random.default_rng(0), training=False)
        assert len(asked.words) == predictions(max(length, 4), 0.15, most)


def test_shares_of_what_is_read(tokenizer: WordPiece) -> None:
    """80 % [MASK], 10 % the word, 10 % any piece, evenly over the whole vocabulary; places even over the sequence."""
    objective, rng = MaskedWords(20), np.random.default_rng(0)
    tokens = sequence(128)
    places, read = [], []
    for _ in range(4000):
        prepared = objective.prepare(tokens, tokenizer, rng, training=True)
        places.append(prepared.places)
        read.append(prepared.token_ids[prepared.places])
    where, what = np.concatenate(places), np.concatenate(read)
    n, v = len(where), len(tokenizer)
    assert n == 4000 * 19
    masked, kept = (what == MASK).sum(), (what == tokens[where]).sum()
    assert stats.binomtest(masked, n, 0.8 + 0.1 / v).pvalue > 1e-4
    assert stats.binomtest(kept, n, 0.1 + 0.1 / v).pvalue > 1e-4
    others = what[(what != MASK) & (what != tokens[where])]
    # a piece is seen as another one wherever it is not [MASK] or the word itself, so words of the sequence a little less
    possible = np.array([np.sum(tokens[where] != piece) for piece in range(v)])
    possible[MASK] = 0
    seen = np.bincount(others, minlength=v)
    expected = possible / possible.sum() * len(others)
    allowed = possible > 0
    assert stats.chisquare(seen[allowed], expected[allowed]).pvalue > 1e-4
    assert {0, 1, CLS, SEP} <= set(others.tolist())
    at = np.bincount(where, minlength=128)
    inside = (tokens != CLS) & (tokens != SEP)
    assert at[~inside].sum() == 0
    assert at[inside].std() < 4 * np.sqrt(n / 125)


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("length", [4, 9, 64, 128])
def test_what_is_not_asked_for_is_read_as_it_is(length: int, whole_words: bool, tokenizer: WordPiece) -> None:
    """Breaks if a special token is hidden, a place asked for twice, the wrong word held right, or the input changed."""
    objective = MaskedWords(20, whole_words=whole_words)
    for seed in range(50):
        tokens = sequence(length, seed)
        before = tokens.copy()
        read, places, words = objective.prepare(tokens, tokenizer, np.random.default_rng(seed), training=True)
        assert np.array_equal(tokens, before)
        assert np.all(np.diff(places) > 0)
        assert np.array_equal(words, tokens[places])
        assert not set(words.tolist()) & {CLS, SEP}
        untouched = np.setdiff1d(np.arange(length), places)
        assert np.array_equal(read[untouched], tokens[untouched])
        assert len(words) <= predictions(length, 0.15, 20)


def words_of(tokens: np.ndarray, tokenizer: WordPiece) -> list[set[int]]:
    """The places of each word, slowly."""
    words: list[set[int]] = []
    for place, token in enumerate(tokens.tolist()):
        if token in (CLS, SEP):
            continue
        if tokenizer.pieces[token].startswith("##") and words:
            words[-1].add(place)
        else:
            words.append({place})
    return words


def test_whole_words(tokenizer: WordPiece) -> None:
    """All pieces of a word or none; as many words as fit, so what is left over is too small for any other word."""
    full = []
    for seed in range(200):
        tokens = sequence(128, seed)
        places = set(
            MaskedWords(20, whole_words=True).prepare(tokens, tokenizer, np.random.default_rng(seed), True).places
        )
        words = words_of(tokens, tokenizer)
        assert all(word <= places or not word & places for word in words)
        left = 19 - len(places)
        assert left >= 0
        assert all(len(word) > left for word in words if not word & places)
        full.append(left == 0)
    assert any(full)


def test_a_word_that_is_too_long_gives_way_to_the_next(tokenizer: WordPiece) -> None:
    """Breaks if it ends the choice, or is cut: eight pieces in one word, and one other word, of which one piece is asked."""
    tokens = np.array([CLS, 5, *[70] * 7, 6, SEP, SEP])  # 12 tokens: two words asked for
    for seed in range(20):
        prepared = MaskedWords(20, whole_words=True).prepare(tokens, tokenizer, np.random.default_rng(seed), True)
        assert prepared.places.tolist() == [9]
    nothing = np.array([CLS, 5, 70, 70, SEP])
    assert not len(MaskedWords(20, whole_words=True).prepare(nothing, tokenizer, np.random.default_rng(0), True).places)


def test_left_to_right(tokenizer: WordPiece) -> None:
    """Breaks if a place is asked for a word it can see, or the words of evaluation are not those of masked words."""
    objective = NextWords(20)
    for seed in range(20):
        tokens = sequence(64, seed)
        read, places, words = objective.prepare(tokens, tokenizer, np.random.default_rng(seed), training=True)
        assert np.array_equal(read, tokens)
        assert places.tolist() == list(range(63))
        assert np.array_equal(words, tokens[1:])
        read, places, words = objective.prepare(tokens, tokenizer, np.random.default_rng(seed), training=False)
        masked = MaskedWords(20).prepare(tokens, tokenizer, np.random.default_rng(seed), training=False)
        assert np.array_equal(read, tokens)
        assert np.array_equal(places + 1, masked.places)
        assert np.array_equal(words, masked.words)
        assert np.array_equal(objective.said_at(masked.places), places)
        assert np.array_equal(MaskedWords(20).said_at(masked.places), masked.places)


@pytest.mark.parametrize("objective", [MaskedWords(20), MaskedWords(20, whole_words=True), NextWords(20)])
def test_the_generator_decides_alone(objective: WordObjective, tokenizer: WordPiece) -> None:
    """Breaks if randomness comes from elsewhere, or there is none."""
    tokens = sequence(128)
    one, same, other = (
        objective.prepare(tokens, tokenizer, np.random.default_rng(seed), training=False) for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one.places, other.places)


def test_the_paper_s_other_mixes(tokenizer: WordPiece) -> None:
    """Its table of masking mixes (App. C.2) is reached by the three shares; others are refused."""
    tokens = sequence(128)
    for mask, same, random in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        objective = MaskedWords(20, mask=mask, same=same, random=random)
        read, places, words = objective.prepare(tokens, tokenizer, np.random.default_rng(0), training=True)
        assert (read[places] == MASK).all() == (mask == 1)
        assert (read[places] == words).all() == (same == 1)
    with pytest.raises(ValueError, match="not shares of one whole"):
        MaskedWords(20, mask=0.8, same=0.2, random=0.1)
