"""What must not leave this machine in a report, an export or a pasted error message.

Secrets: passwords and tokens in URLs, tokens of the Hugging Face hub, and the values of environment variables
that are named like secrets. Personal: the home directory, the user's name in a path, and, in what a failure
said, the host's name and where on the disk the code lies.
"""

import getpass
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

HIDDEN = "***"
#: Shorter values are words such as `true`, and hiding those would hide half a report.
MIN_SECRET_LENGTH = 8

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|PRIVATE_KEY", re.IGNORECASE)
_SECRETS = (
    # user:password@ of a URL, and not host:port/path@
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
#: What stands in a file's path before the part that says which code it is.
_CODE_ROOTS = re.compile(r".*/(?:site-packages|dist-packages|lib/python3\.\d+|src)/")


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What is private on one machine. Names that are None, or too common to be anybody's, are not looked for."""

    home: str | None = None
    user: str | None = None
    host: str | None = None
    secrets: tuple[str, ...] = ()

    @classmethod
    def of_this_machine(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """As this process finds it."""
        values = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
        return cls(
            home=_home(),
            user=_user(),
            host=socket.gethostname(),
            secrets=tuple(sorted(value for value in values if len(value) >= MIN_SECRET_LENGTH)),
        )

    def hidden(self, text: str) -> str:
        """The text without secrets, home directory and user's name."""
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
        """What a failure said, without the host's name either, and with the paths of code cut to what they are."""
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
    """`torch/nn/modules/module.py` of an installed file; of any other, its folder and name."""
    short = _CODE_ROOTS.sub("", path)
    return short if short != path else "/".join(Path(path).parts[-2:])
