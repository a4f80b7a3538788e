"""Text that is safe to show: without control characters for a terminal, and without secrets of this machine."""

import getpass
import os
import re
import socket
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: Joiners that Persian, Indic scripts and emoji need; on their own they are harmless.
_JOINERS = "\u200c\u200d"

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: str) -> str:
    """The text on one line; every character except visible ones and spaces is escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable_lines(text: str) -> str:
    """The text with its line breaks, for prose: tabs, special spaces and joiners stay as well."""
    return "".join(c if _is_harmless(c) else _escaped(c) for c in text.replace("\r\n", "\n"))


def odd_letter(word: str) -> str:
    """`; '...' in it is CYRILLIC SMALL LETTER O (U+043E)` for the first letter outside ASCII; empty if none is."""
    odd = next((c for c in word if not c.isascii()), None)
    if odd is None:
        return ""
    name = unicodedata.name(odd, "not a letter of a key")
    return f"; '{printable(odd)}' in it is {name} (U+{ord(odd):04X})"


def _is_harmless(character: str) -> bool:
    return character in "\n\t" or character in _JOINERS or unicodedata.category(character) not in _UNSEEN


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


HIDDEN = "***"

#: Shorter values are words such as `true`; to hide them would hide half a report.
MIN_SECRET_LENGTH = 8

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|PRIVATE_KEY", re.IGNORECASE)

_SECRETS = (
    # user:password@ of a URL, but not host:port/path@
    (re.compile(r"(://[^\s/:@]*):(?!\d+(?:[/\s]|$))\S*@"), rf"\1:{HIDDEN}@"),
    (
        re.compile(
            r"\b((?:password|passwd|pwd|token|secret|api_?key|access_?key)=)[^\s&\"']+", re.IGNORECASE
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(bearer )\S+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\bhf_\w{8,}"), HIDDEN),
)

_END_OF_NAME = r"(?![\w.-])"

_FRAME = re.compile(r'(?P<before>\bFile ")(?P<path>[^"\n]+)(?P<after>")')

#: The start of a code file's path, up to the part that names the module.
_CODE_ROOTS = re.compile(r".*/(?:site-packages|dist-packages|lib/python3\.\d+|src)/")


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """The private names and secrets of one machine. A name of None is not searched for."""

    home: str | None = None
    user: str | None = None
    host: str | None = None
    secrets: tuple[str, ...] = ()

    @classmethod
    def of_this_machine(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The names and secrets that this process finds. Names that many share, such as `root`, are None."""
        values = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
        return cls(
            home=_home(),
            user=_user(),
            host=socket.gethostname(),
            secrets=tuple(sorted(value for value in values if len(value) >= MIN_SECRET_LENGTH)),
        )

    def hidden(self, text: str) -> str:
        """The text without secrets, home directory and user name."""
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
        if self.home is not None:
            text = re.sub(rf"(?<![\w.-]){re.escape(self.home)}{_END_OF_NAME}", "~", text)
        if self.user is not None:
            user = re.escape(self.user)
            text = re.sub(rf"(?<=/){user}{_END_OF_NAME}|(?<![\w.-]){user}(?=@)", "<user>", text)
        return text

    def hidden_failure(self, text: str) -> str:
        """A failure's text: `hidden`, also without the host's name, and with the paths of code shortened."""
        text = _FRAME.sub(lambda match: f"{match['before']}{_code(match['path'])}{match['after']}", text)
        if self.host is not None and self.host != "localhost":
            text = re.sub(rf"(?<![\w.-]){re.escape(self.host)}{_END_OF_NAME}", "<host>", text)
        return self.hidden(text)


def _home() -> str | None:
    try:
        home = str(Path.home())
    except RuntimeError:
        return None
    return home if home.strip("/") else None


def _user() -> str | None:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without an entry in the password database
        return None
    return None if user == "root" else user


def _code(path: str) -> str:
    """A shortened path: `torch/nn/modules/module.py` for an installed file, else the file's folder and name."""
    short = _CODE_ROOTS.sub("", path)
    return short if short != path else "/".join(Path(path).parts[-2:])
