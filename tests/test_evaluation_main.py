"""``python -m evaluation``: its options, what it refuses, and what Ctrl-C does."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from diffusion.samplers import SAMPLERS
from evaluation import __main__ as program
from evaluation.page import QUICK
from serving.bundle import load_bundle, write_manifest
from tests.tiny_evaluation import real_images, write_bundle, write_judges

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    bundle = write_bundle(tmp_path / "bundle")
    manifest = load_bundle(bundle).manifest
    write_manifest(manifest.model_copy(update={"provenance": {"dataset": "mnist"}}), bundle)
    judges = write_judges(tmp_path / "judges")
    monkeypatch.setattr(program, "load_dataset", lambda name, data_dir: real_images())
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        options = ["--model", str(bundle), "--judges", str(judges), "--provider", "cpu"]
        return CliRunner().invoke(program.main, [*options, *arguments])

    return run


def test_settings_are_measured_and_printed(run: Run) -> None:
    done = run("--setting", "ddpm:2", "--setting", "ddim:3:1.5", "--num-images", "100")
    assert done.exit_code == 0, done.output
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| gen", "| test"))]
    assert len(rows) == 3
    assert Path("runs/evaluation/tiny/rows").is_dir()
    assert not Path("runs/evaluation/tiny/report").exists()
    as_json = run("--setting", "ddpm:2", "--num-images", "100", "--json")
    result = json.loads(as_json.stdout)
    assert result["rows"][0]["setting"]["num_steps"] == 2
    assert result["floor"]["num_images"] == 100
    shown = f"{result['rows'][0]['frechet']:#.4g}"
    assert shown in rows[1]


def test_a_quick_look_writes_a_report_that_says_so(run: Run, tmp_path: Path) -> None:
    done = run(
        "--quick", "--num-images", "100", "--curve", "--curve-num-steps", "1,3,500",
        "--curve-num-images", "120", "--output", str(tmp_path / "out"), "--update-manifest",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert QUICK in (tmp_path / "out" / "tiny.md").read_text()
    quality = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert quality["quick"] is True
    steps = [row["setting"]["num_steps"] for row in quality["curve"]["rows"]]
    assert steps == [1] * len(SAMPLERS) + [3] * len(SAMPLERS)  # the bundle has 20 timesteps
    assert [row["num_images"] for row in quality["curve"]["floors"]] == [120]
    assert load_bundle(tmp_path / "bundle").manifest.quality["generated"]


def test_ctrl_c_says_in_one_line_how_to_continue(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "evaluate", interrupted)
    done = run("--quick", "--num-images", "100")
    assert done.exit_code == 130
    assert done.stderr == (
        "interrupted; the same command continues from what runs/evaluation/tiny holds\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--setting", "ddpm"], "setting is 'ddpm'; legal: SAMPLER:NUM_STEPS"),
        (["--setting", "ddpm:21", "--num-images", "100"], "num_steps must be in 1..20, got 21"),
        (["--setting", "ddpm:2", "--num-images", "0"], "num_images is 0; legal: 100 .. 200"),
        (["--num-images", "500"], "num_images is 500; legal: 100 .. 200"),
        (["--quick", "--seed", "-1"], "seed is -1; legal: 0 .. 2^63 - 1"),
        (["--curve", "--curve-guidance", "1,x"], "curve_guidance is '1,x'; legal: numbers"),
        (["--curve", "--curve-num-steps", "1.5"], "curve_num_steps is '1.5'; legal: numbers"),
        (["--curve", "--curve-num-images", "0"], "curve_num_images is 0; legal: 100 .. 200"),
        (["--dataset", "fashion_mnist"], "no judge 'features' for data set 'fashion_mnist'"),
        (["--model", "nowhere"], "bundle 'nowhere': no such directory"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    run: Run, arguments: list[str], message: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_a_bundle_of_unknown_origin_needs_a_data_set(run: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    manifest = load_bundle(bundle).manifest
    write_manifest(manifest.model_copy(update={"provenance": {}}), bundle)
    done = run("--setting", "ddpm:2", "--num-images", "100")
    assert done.exit_code == 1
    assert re.search("dataset of the manifest's provenance is None; legal: .*mnist", done.stderr)
    assert run("--dataset", "mnist", "--setting", "ddpm:2", "--num-images", "100").exit_code == 0


def test_a_table_of_settings_writes_no_report(run: Run) -> None:
    for option in (["--quick"], ["--curve"], ["--update-manifest"], ["--output", "out"]):
        assert run("--setting", "ddpm:2", *option).exit_code == 2
