"""Configuration: what is wrong is refused with its key, value and what is allowed; identity excludes runtime fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cinesynth.config import EvaluateConfig, GenerateConfig, PipelineConfig, PrepareConfig, TrainConfig, TuneConfig
from cinesynth.data.prepare import check_inputs
from cinesynth.errors import ConfigError
from cinesynth.settings import differences, load_config, parse_config
from cinesynth.settings_help import groups_of
from cinesynth.studies.config import StudyConfig
from docs.configuration import JOBS

CONFIGS = Path(__file__).parent.parent / "jobs" / "configs"
STYLE = str(CONFIGS / "nano" / "style.yaml")
PREPARE = str(CONFIGS / "nano" / "prepare.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.rnak=4"], r"lora\.rnak: unknown key; did you mean 'rank'\?"),
        (["lora.rank=0"], r"lora\.rank = 0: input should be greater than or equal to 1"),
        (["lora.rank=eight"], r"lora\.rank = 'eight': input should be a valid integer"),
        (["optimizer.lr=.nan"], r"optimizer\.lr = nan: input should be a finite number"),
        (["optimizer.batch_size=3", "workers=2"], r"batch_size 3 does not divide by workers 2"),
        (["validation.sigmas=[0.5,1.5]"], r"sigmas holds 1\.5; every noise level lies in \(0, 1\]"),
        (
            ["strategy=zero9"],
            r"strategy = 'zero9': input should be 'auto', 'replicate', 'fsdp2', 'hsdp' or 'deepspeed'",
        ),
        (["optimizer.betas=[0.9,1.0]"], r"optimizer\.betas\.1 = 1\.0: input should be less than 1"),
        (["cpus_per_worker=.inf"], r"cpus_per_worker = inf: input should be a finite number"),
        (["deterministic=true", "attention=cudnn", "use_gpu=true"], r"deterministic does not go with attention cudnn"),
        (["attention=cudnn"], r"attention cudnn needs use_gpu true"),
        (["name=Bad Name"], r"name = 'Bad Name'"),
        (["lora=null"], r"lora = None: input should be a valid dictionary"),
        (["lora.rank"], r"override 'lora\.rank' is not of the form key=value"),
    ],
)
def test_a_bad_training_option_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, STYLE, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["window.num_frames=18"], r"window\.num_frames\.0 = 18: must be 4n\+1"),
        (["window.sizes=100x64"], r"window\.sizes\.0 = '100x64': is a table .* in multiples of 16"),
        (["split.val=0.6", "split.test=0.5"], r"leaves nothing to train on"),
        (["resources.vae.gpus=1.5"], r"resources\.vae\.gpus = 1\.5: above 1 it must be a whole number"),
    ],
)
def test_a_bad_prepare_option_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(PrepareConfig, PREPARE, overrides)


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigError, match="2 problems") as e:
        load_config(TrainConfig, STYLE, ["lora.rank=0", "optimizer.steps=0"])
    assert "lora.rank" in str(e.value)
    assert "optimizer.steps" in str(e.value)


def test_a_missing_footage_folder_is_named(tmp_path: Path) -> None:
    config = load_config(PrepareConfig, PREPARE, [f"footage=[{{path: '{tmp_path}/nowhere'}}]"])
    with pytest.raises(ConfigError, match=r"footage\.0\.path: '.*/nowhere' does not exist"):
        check_inputs(config, config.model)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(TrainConfig, str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("lora: {rank: 3")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(TrainConfig, str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected keys and values"):
        load_config(TrainConfig, str(tmp_path / "list.yaml"))


def test_overrides_reach_into_lists_and_read_numbers() -> None:
    config = load_config(PrepareConfig, PREPARE, ["footage.0.path=/some where/else", "window.num_frames=33"])
    assert config.footage[0].path == "/some where/else"
    assert len(config.footage) > 1
    assert load_config(TrainConfig, STYLE, ["optimizer.lr=3e-5"]).optimizer.lr == 3e-5


def test_a_group_is_merged_and_an_empty_one_clears_it() -> None:
    named = load_config(TrainConfig, STYLE, ["resources={labels: {a: x}}", "resources.labels={b: y}"])
    assert named.resources.labels == {"a": "x", "b": "y"}
    assert load_config(TrainConfig, STYLE, ["resources={labels: {a: x}}", "resources.labels={}"]).resources.labels == {}


def test_identity_holds_what_changes_the_result_only() -> None:
    config = load_config(TrainConfig, STYLE)
    same = load_config(TrainConfig, STYLE, ["workers=2", "strategy=fsdp2", "micro_batch=1", "storage=/x", "name=other"])
    other = load_config(TrainConfig, STYLE, ["lora.rank=4"])
    assert config.identity() == same.identity()
    assert differences(config.identity(), other) == ["lora.rank: recorded 32, given 4"]


def test_where_a_file_lies_is_runtime_also_inside_lists_and_mappings() -> None:
    def generate(folder: str, prompt: str = "p") -> GenerateConfig:
        shots = [{"image": f"{folder}/{i}.png", "prompt": prompt} for i in range(2)]
        return parse_config(GenerateConfig, {"name": "g", "shots": shots, "adapters": [{"ref": folder, "scale": 0.5}]})

    def evaluate(folder: str, *arms: str) -> EvaluateConfig:
        folders = {arm: f"{folder}/{arm}" for arm in arms}
        return parse_config(EvaluateConfig, {"name": "e", "real": folder, "arms": folders})

    assert generate("/a").identity() == generate("/b").identity()
    assert generate("/a").identity()["adapters"] == [{"scale": 0.5}]
    found = differences(generate("/a").identity(), generate("/b", prompt="q"))
    assert found == [f"shots.{i}.prompt: recorded 'p', given 'q'" for i in range(2)]
    assert differences(evaluate("/a", "x", "y").identity(), evaluate("/b", "x", "y")) == []
    assert differences(evaluate("/a", "x", "y").identity(), evaluate("/a", "y", "x")), "the first arm is the baseline"


def test_a_field_that_a_record_lacks_counts_as_its_default() -> None:
    recorded = load_config(TrainConfig, STYLE, ["optimizer.betas=[0.8,0.9]"]).identity()
    del recorded["caption_dropout"], recorded["optimizer"]["betas"]
    given = ["caption_dropout=0", "optimizer.betas=[0.9, 0.999]"]
    assert differences(recorded, load_config(TrainConfig, STYLE, given)) == []
    assert differences(recorded, load_config(TrainConfig, STYLE, [*given, "caption_dropout=0.5"])) == [
        "caption_dropout: recorded 0.0, given 0.5"
    ]
    later = recorded | {"dreaming": True}
    assert "which this version" in differences(later, load_config(TrainConfig, STYLE, given))[0]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("caption=yes", "yes"),
        ("caption=true", "true"),
        ("caption=1_000", "1_000"),
        ("caption=the camera: it pans, [slowly]", "the camera: it pans, [slowly]"),
        ("caption=${HOME} and ${a.b}", "${HOME} and ${a.b}"),
        ("caption='quoted: 1'", "quoted: 1"),
        ("caption=2024-01-01", "2024-01-01"),
        ("name=42", "42"),
        ("split.salt=007", "007"),
    ],
)
def test_text_stays_as_it_was_written(override: str, value: str, tmp_path: Path) -> None:
    key, _, text = override.partition("=")
    config = load_config(PrepareConfig, PREPARE, [override])
    assert {"caption": config.caption, "name": config.name, "split.salt": config.split.salt}[key] == value
    if ":" not in text:
        first, _, second = key.partition(".")
        file = tmp_path / "c.yaml"
        file.write_text(
            (f"{first}: {{{second}: {text}}}" if second else f"{key}: {text}") + "\nfootage: [{path: /f}]\n"
        )
        config = load_config(PrepareConfig, str(file), [] if key == "name" else ["name=n"])
        assert {"caption": config.caption, "name": config.name, "split.salt": config.split.salt}[key] == value


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("groups=#1.csv", "#1.csv"),
        ("real=#1", "#1"),
        ("real=2024", "2024"),
        ("groups=---", "---"),
        ("groups=~", None),
        ("groups=null", None),
        ("groups= NULL ", None),
    ],
)
def test_only_null_clears_a_field_of_text(override: str, value: str | None) -> None:
    config = load_config(EvaluateConfig, None, ["name=e", "real=/r", "groups=/g", "arms.a=/a", override])
    assert getattr(config, override.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("overrides", "labels"),
    [
        (["resources.labels.cinesynth.io/pool=a100"], {"cinesynth.io/pool": "a100"}),
        (["resources.labels.cinesynth.io/pool=[a100, 2]"], {"cinesynth.io/pool": ["a100", "2"]}),
        (["resources.labels.zone=1"], {"zone": "1"}),
        (["resources.labels={zone: true, rack: 007}"], {"zone": "true", "rack": "007"}),
        (["resources.labels={zone: [a, b]}", "resources.labels.zone.1=c"], {"zone": ["a", "c"]}),
    ],
)
def test_labels_are_text_under_names_that_may_have_dots(overrides: list[str], labels: dict[str, object]) -> None:
    assert load_config(TrainConfig, STYLE, overrides).resources.labels == labels


def test_numbers_and_truth_values_are_read_in_every_usual_form() -> None:
    forms = ["optimizer.lr=3e-5", "optimizer.steps=1e3", "optimizer.batch_size=0x8", "seed=1_000", "use_gpu=yes"]
    config = load_config(TrainConfig, STYLE, forms)
    assert (config.optimizer.lr, config.optimizer.steps, config.optimizer.batch_size) == (3e-5, 1000, 8)
    assert (config.seed, config.use_gpu) == (1000, True)
    assert (
        load_config(GenerateConfig, None, ["name=g", "split=val", "dataset=d", "max_windows=null"]).max_windows is None
    )


def test_an_override_that_has_no_place_is_named() -> None:
    for override, message in (
        ("footage.9.path=/a", "there is no item '9' in a list of 4"),
        ("window.num_frames.0=33", "window.num_frames is one value and holds no keys"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(PrepareConfig, PREPARE, [override])
    with pytest.raises(ConfigError, match=r"parents has no items; give the whole list, parents=\[\.\.\.\]"):
        load_config(TrainConfig, STYLE, ["parents.0.ref=a"])
    arms = load_config(EvaluateConfig, None, ["name=e", "real=/r", 'arms.v1.5="/a b"', "arms.2=/c"]).arms
    assert arms == {"v1.5": "/a b", "2": "/c"}


def test_an_override_of_a_group_changes_what_it_names_only() -> None:
    assert load_config(TrainConfig, STYLE, ["lora={rank: 4}"]).lora.targets == "all"


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("lora: {rank: 3}\nlora: {rank: 4}\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml: the key 'lora' stands twice"):
        load_config(TrainConfig, str(tmp_path / "twice.yaml"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention": "efficient"}, "attention efficient needs use_gpu true"),
        ({"attention": "efficient", "use_gpu": True, "ranks": 2}, "attention efficient does not divide over ranks"),
        ({"attention": "flash", "ranks": 2}, "attention flash does not divide over the ranks of CPUs"),
        ({"strategy": "fsdp2"}, "set ranks above 1"),
        ({"strategy": "fsdp2", "ranks": 2, "compile": True}, "compile does not go with strategy fsdp2"),
    ],
)
def test_kernels_that_cannot_compute_a_video_are_refused(values: dict[str, Any], message: str) -> None:
    shots = [{"image": "a.png", "prompt": "a car"}]
    with pytest.raises(ConfigError, match=message):
        parse_config(GenerateConfig, {"name": "x", "storage": "s", "shots": shots, **values})
    parse_config(GenerateConfig, {"name": "x", "storage": "s", "shots": shots, "attention": "flash", "ranks": 1})


def test_generation_takes_one_source() -> None:
    values: dict[str, Any] = {"name": "g"}
    with pytest.raises(ConfigError, match="give either shots"):
        parse_config(GenerateConfig, values)
    with pytest.raises(ConfigError, match="needs dataset"):
        parse_config(GenerateConfig, {**values, "split": "test"})


def _class_of(path: Path) -> Any:
    by_name: dict[str, Any] = {"prepare": PrepareConfig, "pipeline": PipelineConfig, "generate": GenerateConfig}
    by_name |= {"evaluate": EvaluateConfig, "style": TrainConfig, "motion": TrainConfig, "tune": TuneConfig}
    by_name |= {"study": StudyConfig}
    return by_name[path.stem.partition("-")[0]]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    needed = ["r_lpips_weights=w.pth"] if path.parent.name == "wan14b" and path.stem == "tune" else []
    needed += ["study=rank_quality"] if path.stem == "study" else []
    load_config(_class_of(path), str(path), needed)


@pytest.mark.parametrize(
    ("overrides", "targets"),
    [
        ([], "cross_attention"),
        (["stage=motion"], ("self",)),
        (["stage=joint"], "attention"),
        (["stage=motion", "lora={rank: 4}"], ("self",)),
        (["stage=motion", "lora.targets=all"], "all"),
        (["lora.targets=[image, cross]"], "cross_attention"),
        (["lora.targets=[ffn, self, self]"], ("self", "ffn")),
        (["lora.targets=self"], ("self",)),
        (["lora.targets=to_q$"], "to_q$"),
    ],
)
def test_what_an_adapter_is_put_on_has_one_form(overrides: list[str], targets: object) -> None:
    config = load_config(TrainConfig, None, ["name=a", "storage=/x", "dataset=d", *overrides])
    assert config.lora.targets == targets
    again = parse_config(TrainConfig, config.model_dump(mode="json"))
    assert again.identity() == config.identity()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("[crosss]", "has no group 'crosss'; there are cross, image, self, ffn"),
        ("[]", "names no group"),
        ("'('", "regular"),
    ],
)
def test_targets_that_mean_nothing_are_refused(value: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(TrainConfig, None, ["name=a", "storage=/x", "dataset=d", f"lora.targets={value}"])


@pytest.mark.parametrize(("given", "meant"), [("true", "full"), ("false", "none"), ("attention", "attention")])
def test_recomputation_is_still_asked_for_with_true_and_false(given: str, meant: str) -> None:
    overrides = ["name=a", "storage=/x", "dataset=d", f"activation_checkpointing={given}"]
    assert load_config(TrainConfig, None, overrides).activation_checkpointing == meant


@pytest.mark.parametrize("job", JOBS)
def test_every_field_says_what_it_means(job: str) -> None:
    told = [(f"{group.key}.{field.key}", field) for group in groups_of(JOBS[job]) for field in group.fields]
    assert told
    assert [key for key, field in told if not field.meaning] == []
    assert [key for key, field in told if "Ellipsis" in field.takes] == []
