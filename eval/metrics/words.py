"""Word overlap of generated and reference texts: BLEU-1..4, METEOR, ROUGE-L, by the libraries that the field keeps.

- BLEU: sacrebleu, corpus level, 13a tokens, lower case, no smoothing: a corpus without a match of n words has
  BLEU-n 0. Counts per case are kept, so a bootstrap only adds them up.
- ROUGE-L: rouge-score, F of the longest common subsequence, no stemming, mean over cases.
- METEOR: NLTK's, alpha 0.9, beta 3, gamma 0.5, with exact and stem matches only. Synonyms need WordNet, which is a
  download; so the name is meteor_exact_stem, and it must not be set beside a METEOR with synonyms.

These libraries (extra `[text]`) are imported on first use; without them the metrics are absent, with a note.
"""

from functools import lru_cache
from importlib.util import find_spec

import numpy as np

ORDERS = 4


class _NoSynonyms:
    """Stands where NLTK asks WordNet: no word has a synonym."""

    def synsets(self, word):
        return []


def available():
    """The reason why word overlap cannot be computed, or None."""
    missing = [name for name in ("nltk", "rouge_score", "sacrebleu") if find_spec(name) is None]
    if missing:
        what = ", ".join(missing)
        return f'no BLEU, METEOR and ROUGE-L: pip install -e ".[text]" (not there: {what})'
    return None


@lru_cache(maxsize=1)
def _bleu():
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=True, max_ngram_order=ORDERS, smooth_method="none")


@lru_cache(maxsize=1)
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


def bleu_counts(made, reference):
    """float [10]: matches and totals of 1..4 words, length of the text and of its reference."""
    score = _bleu().corpus_score([made], [[reference]])
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len], np.float64)


def bleu(sums, order):
    """Corpus BLEU of `order` from summed counts float [..., 10] -> float [...] in [0, 1]; NaN without any words."""
    sums = np.asarray(sums, np.float64)
    matches, totals = sums[..., :order], sums[..., ORDERS : ORDERS + order]
    length, reference = sums[..., 8], sums[..., 9]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(matches > 0, np.log(matches / totals), -np.inf).mean(-1)
        brevity = np.where(length < reference, 1 - reference / length, 0.0)
        value = np.exp(np.where(length > 0, logs + brevity, -np.inf))
    return np.where(reference > 0, value, np.nan)


def rouge_l(made, reference):
    """ROUGE-L F of two texts, in [0, 1]."""
    return float(_rouge().score(reference, made)["rougeL"].fmeasure)


def meteor_exact_stem(made, reference):
    """METEOR of two texts with exact and stem matches, in [0, 1]."""
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(words(reference), words(made), wordnet=_NoSynonyms()))


def words(text):
    """Tokens of a text for METEOR: sacrebleu's 13a tokens, lower case."""
    return _tokenizer()(text.lower()).split()


@lru_cache(maxsize=1)
def _tokenizer():
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def overlap(made, reference):
    """(bleu counts float [N, 10], ROUGE-L float [N], METEOR float [N]) of N texts and their references.

    Equal pairs are scored once: systems repeat themselves.
    """
    seen, rows = {}, []
    for pair in zip(made, reference, strict=True):
        if pair not in seen:
            seen[pair] = (bleu_counts(*pair), rouge_l(*pair), meteor_exact_stem(*pair))
        rows.append(seen[pair])
    counts, rouge, meteor = zip(*rows, strict=True)
    return np.stack(counts), np.array(rouge), np.array(meteor)
