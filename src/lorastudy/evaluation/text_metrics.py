"""Metrics of a generated answer against its reference, as text: a number from 0 to 1 for each row, more is better.

`pattern` is the suite's `exact_match_pattern`. With one, `token_f1` and `rouge_l` compare the first group of its last
match in both texts, and an answer without a match gets 0. `contains` looks for that part of the reference anywhere in
the answer, as whole words.

A word is a run of letters, digits and underscores, in lower case. Punctuation is no word.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from lorastudy.data.answers import what_counts

TextMetric = Callable[..., float]

_WORD = re.compile(r"\w+")

#: A character of a word, in the scripts that put white space between words (not Thai, Lao, Burmese, Khmer, Chinese, Japanese).
_OF_SPACED_WORD = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"


def token_f1(answer: str, reference: str, *, pattern: str | None = None) -> float:
    """The harmonic mean of precision and recall over words, each counted as often as it occurs.

        common = sum over words of min(times in the answer, times in the reference)
        F1 = 2 common / (words of the answer + words of the reference)

    It is SQuAD's F1 (Rajpurkar et al. 2016) without its removal of articles, which is for English alone. Two texts
    without words are equal, which is 1; one of them alone gives 0.
    """
    words, wanted = _words(answer, pattern), _words(reference, pattern)
    if words is None or wanted is None:
        return 0.0
    num_common = (Counter(words) & Counter(wanted)).total()
    return _harmonic(num_common, num_words=len(words) + len(wanted))


def rouge_l(answer: str, reference: str, *, pattern: str | None = None) -> float:
    """ROUGE-L: the harmonic mean of precision and recall of the longest common subsequence of words (Lin 2004, beta 1).

        F = 2 LCS / (words of the answer + words of the reference)

    Equal to `rougeL` of the package rouge-score without stemming where a text has only the letters a to z and digits;
    that package drops all other letters.
    """
    words, wanted = _words(answer, pattern), _words(reference, pattern)
    if words is None or wanted is None:
        return 0.0
    return _harmonic(_longest_common_subsequence(words, wanted), num_words=len(words) + len(wanted))


def contains(answer: str, reference: str, *, pattern: str | None = None) -> float:
    """1 if the reference occurs in the answer as whole words and numbers, else 0.

    Directly before a reference that begins with a letter, digit or underscore there is none in the answer, and the same holds
    after its end. A number does not go on over a point or a comma either: `4` occurs neither in `14` nor in `4.5`. Scripts
    without white space between words have no such limits. Case and the width of white space do not count. An empty reference
    occurs nowhere.
    """
    wanted = (what_counts(reference, pattern=pattern) or "").casefold()
    if not wanted:
        return 0.0
    before = f"(?<!{_OF_SPACED_WORD})" if re.match(_OF_SPACED_WORD, wanted[0]) else ""
    after = f"(?!{_OF_SPACED_WORD})" if re.match(_OF_SPACED_WORD, wanted[-1]) else ""
    before += r"(?<!\d[.,])" if wanted[0].isdecimal() else ""
    after += r"(?![.,]\d)" if wanted[-1].isdecimal() else ""
    whole = before + re.escape(wanted) + after
    return float(re.search(whole, (what_counts(answer) or "").casefold()) is not None)


#: The metrics of this module by their names in a suite.
TEXT_METRICS: Mapping[str, TextMetric] = {"token_f1": token_f1, "rouge_l": rouge_l, "contains": contains}


def _words(text: str, pattern: str | None) -> list[str] | None:
    """The words of the part that counts; None if the pattern matches nothing."""
    part = what_counts(text, pattern=pattern)
    return None if part is None else _WORD.findall(part.lower())


def _harmonic(num_common: int, *, num_words: int) -> float:
    """The harmonic mean of precision and recall. `num_words` is that of both texts together."""
    return 2 * num_common / num_words if num_words else 1.0


def _longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest sequence of words that both texts have in this order."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, wanted in enumerate(other, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == wanted else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]
