"""The layers of settings: flag over environment over file over default, and the way back from what is printed."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lazyfs.cli.main import cli
from lazyfs.cli.settings import Setting, as_arguments

CANARY = "canary-secret-7d1f"


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    """`lazyfs mount --print-config` with these arguments."""
    words = ["mount", "--print-config", *arguments, "s3://bucket/x/", "/nowhere"]
    return CliRunner().invoke(cli, words, env=env)


def line(result: Result, name: str) -> str:
    """The line of one setting."""
    assert result.exit_code == 0, result.output
    return next(one for one in result.output.splitlines() if one.removeprefix("# ").startswith(name + " "))


def test_the_layers(tmp_path: Path) -> None:
    """Each layer wins over the one below, and the output says which it was."""
    file = tmp_path / "lazyfs.toml"
    file.write_text('max-cache-size = "3GiB"\nmetadata_ttl = 7\nallow-other = true\n')
    env = {"LAZYFS_MAX_CACHE_SIZE": "2GiB"}
    assert line(run(), "max-cache-size") == "# max-cache-size is not set"
    assert line(run("--config", str(file)), "max-cache-size") == 'max-cache-size = "3GiB"  # file'
    assert line(run("--config", str(file)), "metadata-ttl") == 'metadata-ttl = "7"  # file'
    assert line(run("--config", str(file)), "allow-other") == "allow-other = true  # file"
    assert line(run("--config", str(file), env=env), "max-cache-size") == 'max-cache-size = "2GiB"  # environment'
    flagged = run("--config", str(file), "--max-cache-size=1GiB", env=env)
    assert line(flagged, "max-cache-size") == 'max-cache-size = "1GiB"  # flag'
    assert line(run(), "metadata-ttl") == 'metadata-ttl = "60s"  # default'


def test_what_is_printed_can_be_read(tmp_path: Path) -> None:
    """--print-config is a file for --config with the same values."""
    first = run("--max-cache-size=1GiB", "--allow-other", "--file-mode=0440", '--region=a"b\\c')
    assert first.exit_code == 0
    file = tmp_path / "printed.toml"
    file.write_text(first.output)
    second = run("--config", str(file))
    values = [one.split("  # ")[0] for one in first.output.splitlines()]
    assert [one.split("  # ")[0] for one in second.output.splitlines()] == values


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-cache-size=lots"], "--max-cache-size: 'lots' is not a size"),
        (["--file-mode=rw"], "--file-mode: 'rw' is not a file mode"),
        (["--log-level=loud"], "--log-level: 'loud' is not one of"),
        (["--memory-budget=1MiB"], "--memory-budget must be at least"),
        (["--config=/does/not/exist"], "cannot read the configuration /does/not/exist"),
    ],
)
def test_a_wrong_value_is_one_sentence(arguments: list[str], said: str) -> None:
    """Exit status 2, one line, no traceback."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert result.output.count("\n") == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max-cash-size = 1", "unknown settings: max_cash_size"),
        ("= 1", "is not TOML"),
        ("region = [1]", "single value"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    """What is wrong in it is named."""
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    result = run("--config", str(file))
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert said in result.output


def test_no_secret_is_printed() -> None:
    """Credentials of the environment are not settings (P15)."""
    env = {"AWS_SECRET_ACCESS_KEY": CANARY, "AWS_ACCESS_KEY_ID": CANARY, "AWS_SESSION_TOKEN": CANARY}
    result = run(env=env)
    assert result.exit_code == 0
    assert CANARY not in result.output


def test_flags_say_the_same_again() -> None:
    """What a background daemon is started with gives its configuration, whatever its environment says."""
    settings = [
        Setting("max_cache_size", "2GiB", "environment"),
        Setting("allow_other", "true", "file"),
        Setting("no_sign_request", "false", "flag"),
        Setting("metadata_ttl", "60s", "default"),
        Setting("region", None, "default"),
    ]
    arguments = as_arguments(settings)
    assert arguments == ["--max-cache-size=2GiB", "--allow-other", "--no-no-sign-request"]
    again = run(*arguments, env={"LAZYFS_MAX_CACHE_SIZE": "9GiB", "LAZYFS_ALLOW_OTHER": "false"})
    assert line(again, "max-cache-size") == 'max-cache-size = "2GiB"  # flag'
    assert line(again, "allow-other") == "allow-other = true  # flag"
