"""A setting declared once is a flag, a variable and a word in the log; strays are refused."""

from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from serving.flags import (
    Choice,
    ConfigurationError,
    ConfiguredCommand,
    Numbers,
    command_line,
    flag,
    flags_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kitchen:
    ovens: tuple[Path, ...] = flag(
        (Path("a"),), "Which.", kind=click.Path(path_type=Path), name="oven", multiple=True
    )
    heat: str = flag("low", "How hot.", kind=Choice(["low", "high"]))
    bake_seconds: float = flag(1.5, "How long.", kind=Numbers(0, 10))
    lid: bool = flag(False, "Whether it is closed.")
    cook: str | None = flag(None, "Who.")

    def __post_init__(self) -> None:
        if self.lid and self.heat == "high":
            raise ConfigurationError("--lid and --heat high together melt it")


def start(*arguments: str, **variables: str) -> tuple[int, str, list[Kitchen]]:
    """(exit code, what was printed, the configuration if the command got that far)."""
    got: list[Kitchen] = []

    def take(config: Kitchen) -> None:
        got.append(config)

    command = ConfiguredCommand("kitchen", configuration=Kitchen, callback=take)
    environment = {f"SIMPLE_DIFFUSION_{name}": value for name, value in variables.items()}
    ended = CliRunner(env=environment).invoke(command, arguments)
    return ended.exit_code, ended.output, got


def refusal(*arguments: str, **variables: str) -> str:
    code, output, got = start(*arguments, **variables)
    assert (code, got) == (2, [])
    [line] = [line for line in output.splitlines() if line.startswith("Error: ")]
    return line.removeprefix("Error: ")


def test_nothing_said_gives_the_defaults() -> None:
    assert start() == (0, "", [Kitchen()])


def test_each_setting_is_a_flag_and_a_variable_and_the_flag_wins() -> None:
    by_flags = start(
        "--oven", "x", "--oven", "y", "--heat", "high", "--bake-seconds", "2", "--cook", "me"
    )
    variables = {"OVEN": "x:y", "HEAT": "high", "BAKE_SECONDS": "2", "COOK": "me"}
    assert start(**variables) == by_flags
    assert by_flags[2] == [
        Kitchen(ovens=(Path("x"), Path("y")), heat="high", bake_seconds=2.0, cook="me")
    ]
    assert start("--lid", "--heat", "low", **variables)[2][0].heat == "low"
    assert start(LID="true")[2] == start("--lid")[2] == [Kitchen(lid=True)]


def test_the_log_shows_the_command_that_gives_the_same_configuration() -> None:
    config = Kitchen(ovens=(Path("a b"), Path("c")), lid=True, bake_seconds=0.25)
    line = command_line(config)
    assert line == "--oven 'a b' --oven c --heat low --bake-seconds 0.25 --lid"
    assert start("--oven", "a b", *line.split()[3:])[2] == [config]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bake-second", "1"], "No such option '--bake-second'. Did you mean '--bake-seconds'?"),
        (["--heat", "hihg"], "'hihg' is not one of 'low', 'high'. Did you mean 'high'?"),
        (["--heat", "42"], "Invalid value for '--heat': '42' is not one of 'low', 'high'."),
        (["--bake-seconds", "11"], "11.0 is not in the range 0<=x<=10."),
        (["--bake-seconds", "nan"], "Invalid value for '--bake-seconds': 'nan' is not a number."),
        (["--lid", "--heat", "high"], "--lid and --heat high together melt it"),
    ],
)
def test_a_flag_or_value_that_means_nothing_is_refused_with_a_hint(
    arguments: list[str], message: str
) -> None:
    assert refusal(*arguments).endswith(message)


def test_a_bad_value_from_the_environment_names_the_variable() -> None:
    line = refusal(BAKE_SECONDS="long")
    assert "'--bake-seconds' (environment variable SIMPLE_DIFFUSION_BAKE_SECONDS)" in line


def test_a_variable_that_means_nothing_is_refused_and_its_value_is_not_shown() -> None:
    line = refusal(HEET="hunter2")
    assert line == (
        "no such setting: environment variable SIMPLE_DIFFUSION_HEET."
        " Did you mean SIMPLE_DIFFUSION_HEAT?"
    )
    assert "SIMPLE_DIFFUSION_XYZZY" in refusal(XYZZY="hunter2")
    assert "hunter2" not in refusal(XYZZY="hunter2")


def test_variables_of_the_client_are_left_alone() -> None:
    assert start(TARGET="localhost:1", CLIENT_ANYTHING="1")[0] == 0


def test_variables_that_kubernetes_makes_of_a_service_are_recognised() -> None:
    line = refusal(SERVICE_HOST="10.0.0.7", PORT="tcp://10.0.0.7:50051")
    assert "enableServiceLinks: false" in line


def test_help_is_given_whatever_the_environment_holds() -> None:
    code, output, _ = start("--help", HEET="1")
    assert code == 0
    assert all(each.name in output and each.text in output for each in flags_of(Kitchen))
