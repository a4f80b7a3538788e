"""Nothing private is left, and nothing else is touched."""

import pytest

from lorastudy.suite.safe_text import Privacy

ALICE = Privacy(home="/home/alice", user="alice", host="gpu-7", secrets=("s3cr3t-value",))


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://bob:pa55@db/studies", "postgresql://bob:***@db/studies"),
        (
            "postgresql+psycopg://bob:p@ss/w:rd@db:5432/studies",
            "postgresql+psycopg://bob:***@db:5432/studies",
        ),
        ("postgresql://db/s?user=bob&password=pa55&x=1", "postgresql://db/s?user=bob&password=***&x=1"),
        ("https://hf.co:443/a@main", "https://hf.co:443/a@main"),
        ("token hf_abcdefghij1234 refused", "token *** refused"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("it was s3cr3t-value", "it was ***"),
        ("/home/alice/models/phi", "~/models/phi"),
        ("/home/alice", "~"),
        ("/home/alice2/models /home/alice.old", "/home/alice2/models /home/alice.old"),
        ("/mnt/home/alice/x", "/mnt/home/<user>/x"),
        ("/scratch/alice/x.yaml:3:1: a", "/scratch/<user>/x.yaml:3:1: a"),
        ("alice@gpu-7", "<user>@gpu-7"),
        ("alice in wonderland, gpu-7", "alice in wonderland, gpu-7"),
        ("lr=2e-4 r=16 microsoft/phi-2", "lr=2e-4 r=16 microsoft/phi-2"),
    ],
)
def test_secrets_and_personal_paths_are_hidden(text: str, hidden: str) -> None:
    assert ALICE.hidden(text) == hidden


def test_of_a_failure_the_host_and_where_the_code_lies_are_hidden_too() -> None:
    text = (
        'Traceback\n  File "/home/alice/p/.venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 7, in f\n'
        '  File "/usr/lib/python3.11/json/decoder.py", line 3, in g\n  File "/opt/lorastudy/src/lorastudy/train/worker.py", line 1\n'
        '  File "/data/of/somebody/mine.py", line 2\nConnectionError: gpu-7 refused, gpu-70 did not'
    )
    assert ALICE.hidden_failure(text) == (
        'Traceback\n  File "torch/nn/modules/module.py", line 7, in f\n'
        '  File "json/decoder.py", line 3, in g\n  File "lorastudy/train/worker.py", line 1\n'
        '  File "somebody/mine.py", line 2\nConnectionError: <host> refused, gpu-70 did not'
    )


def test_secrets_are_taken_from_variables_that_are_named_like_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/carol")
    found = Privacy.of_this_machine(
        {"HF_TOKEN": "hf_x_and_more", "PGPASSWORD": "12345678", "WANDB_API_KEY": "k" * 40, "TOKENIZERS_PARALLELISM": "false", "PATH": "/usr/bin:/bin"}
    )  # fmt: skip
    assert found.secrets == ("12345678", "hf_x_and_more", "k" * 40)
    assert found.home == "/home/carol"
