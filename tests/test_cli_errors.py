"""A mistake in the settings is answered at once, in one line that names the choices."""

from pathlib import Path

import pytest

from pipeline.cli import USER_ERROR, check_overrides, one_line_errors, resumed_arguments
from wattbit.errors import ConfigError, OutputError
from wattbit.storage.writable import require_writable


@pytest.mark.parametrize(
    ("override", "mentions"),
    [
        ("workload=digit", ["workload=digit", "digits", "fashion_mnist"]),
        ("guardrail=strickt", ["strict", "mlperf_99"]),
        ("energy/device=edge", ["edge_7nm", "cmos_45nm"]),
        ("sead=3", ["sead", "seed"]),
        ("agent.ppo.update.learning_rat=1", ["agent.ppo.update.learning_rat", "learning_rate"]),
        ("seed.x=1", ["seed.x"]),
        ("no equals sign", ["key=value"]),
        ("budget.agents=3", ["agent", "baseline"]),
        ("experiment=quik", ["experiment=quik", "quick", "sentiment"]),
        ("=3", ["key=value"]),
    ],
)
def test_a_typo_names_itself_and_the_valid_choices(override: str, mentions: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_overrides("train", [override])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in mentions), message


@pytest.mark.parametrize(
    "override", ["workload=digit", "guardrail=strickt", "energy=modeled", "precisions=al"]
)
def test_an_option_that_does_not_exist_is_not_taken_for_none(override: str) -> None:
    with pytest.raises(ConfigError, match="no such option; choose from"):
        check_overrides("evaluate", [override])


def test_what_is_right_is_not_blamed_for_what_is_wrong_beside_it() -> None:
    with pytest.raises(ConfigError, match=r"^sead: no such setting"):
        check_overrides("train", ["workload=fashion_mnist", "workload.data_dir=x", "+agent.more=1", "sead=3"])


def test_a_setting_that_lies_deeper_is_named_by_its_path() -> None:
    with pytest.raises(ConfigError, match=r"choose from protocol\.trials, ") as caught:
        check_overrides("train", ["energy=rapl", "energy.trials=8"])
    assert "_target_" not in str(caught.value)


def test_the_nearest_choice_comes_first() -> None:
    with pytest.raises(ConfigError, match=r"choose from seed,"):
        check_overrides("train", ["sead=3"])


@pytest.mark.parametrize(
    "override", ["seed=3", "workload=fashion_mnist", "experiment=quick", "budget.agent=5"]
)
def test_what_is_right_composes(override: str) -> None:
    check_overrides("train", [override])


def test_errors_meant_for_people_leave_as_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise ConfigError("first\n  second")
    assert caught.value.code == USER_ERROR
    assert capsys.readouterr().err == "error: first second\n"


def test_a_folder_that_cannot_be_made_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"hydra\.run\.dir"):
        require_writable(tmp_path / "file" / "run", "choose another with hydra.run.dir=FOLDER")
    require_writable(tmp_path / "a" / "b", "choose another")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_resume_needs_a_run_and_keeps_its_settings(tmp_path: Path) -> None:
    assert resumed_arguments(["seed=1"]) == ["seed=1"]
    assert resumed_arguments(["resume=null"]) == ["resume=null"]
    with pytest.raises(ConfigError, match="no run in it"):
        resumed_arguments([f"resume={tmp_path}"])
    record = tmp_path / ".hydra" / "overrides.yaml"
    record.parent.mkdir()
    record.write_text("- seed=7\n- resume=null\n- hydra.run.dir=x\n", encoding="utf-8")
    arguments = resumed_arguments(["budget.agent=9", f"resume={tmp_path}"])
    assert arguments == ["seed=7", "budget.agent=9", f"resume={tmp_path}", f"hydra.run.dir='{tmp_path}'"]
