r"""Text from files that a terminal and a page show as it stands: nothing in it moves, hides or reorders.

An escape sequence in an answer could clear the screen or write to the clipboard; a bidirectional override
turns the text around it; half of a surrogate pair cannot be written at all. All of them become visible
escapes such as `\x1b`.
"""

import unicodedata

#: Joiners that Persian, Indic scripts and emoji need; alone they do nothing.
_JOINERS = "\u200c\u200d"
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str) -> str:
    """The text on one line; whatever is no visible character or space is escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable_lines(text: str) -> str:
    """The text on its own lines, for what is prose: tabs, special spaces and joiners stay as well."""
    return "".join(c if _is_harmless(c) else _escaped(c) for c in text.replace("\r\n", "\n"))


def odd_letter(word: str) -> str:
    """`; '...' in it is CYRILLIC SMALL LETTER O (U+043E)` for the first letter that may only look like ours."""
    odd = next((c for c in word if not c.isascii()), None)
    if odd is None:
        return ""
    name = unicodedata.name(odd, "not a letter of a key")
    return f"; '{printable(odd)}' in it is {name} (U+{ord(odd):04X})"


def _is_harmless(character: str) -> bool:
    return character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _UNSEEN


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
