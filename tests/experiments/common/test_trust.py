"""Every attempt to run code from a YAML that we could think of: refused in one line, before anything is called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import NoBadWordsLogitsProcessor

from drafters.ngram import Ngram
from experiments import bench
from experiments.common.components import OURS, choice_of, component, instantiate
from experiments.common.composition import CommandLine, refuse_commands
from specdec.errors import InputError
from specdec.model.load import load_hub
from specdec.prompts.sets import builtin
from tests.support.commands import Done, command
from tests.support.configs import CONF, group

REFUSED = r"expected a component of this project \(Drafter, .*\), got '.*'; if you trust it, pass allow_targets=\["
CALLS = (  # dotted names that would do something
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "builtins.exec",
    "importlib.import_module",
    "functools.partial",
    "pathlib.Path.write_text",
    "torch.load",
    "torch.hub.load",
    "torch.utils.cpp_extension.load_inline",
    "ctypes.CDLL",
    "pickle.loads",
    "numpy.load",
    "yaml.unsafe_load",
    "hydra.utils.get_method",
    "hydra.utils.get_class",
    "hydra.utils.get_object",
    "hydra.utils.instantiate",
    "hydra.utils.call",
    "transformers.AutoModelForCausalLM.from_pretrained",
    "transformers.Trainer",
    "transformers.pipeline",
    "experiments.common.components.instantiate",
    "experiments.bench.main",
    # the project's own that compile, write or load, and other people's through its modules
    "specdec.model.runtime.build.load_library",
    "specdec.model.runtime.library.kernels",
    "specdec.runs.log.write_bytes",
    "specdec.files.durable.write_text",
    "specdec.runs.log.write_json",
    "specdec.runs.log.RunLog",
    "specdec.runs.provenance.subprocess.run",
    "specdec.model.runtime.build.shutil.rmtree",
    "specdec.training.text.archive.export_text",
    "specdec.training.saving.save_drafter",
    "drafters.medusa.files.Source",
    "specdec.trees.files.write_tree",
    "drafters.shared.trained.save_parts",
    "drafters.ngram.Ngram.propose",
    "specdec.decoding.protocols.Drafter",
    "tests.conftest.tiny_draft",
)


@pytest.mark.fault("attempt to run code")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("place", ["top", "nested", "list", "partial", "args", "unrecursive"])
def test_a_target_that_is_no_component_is_refused(name: str, place: str) -> None:
    bad = {"_target_": name, "_args_": ["/tmp/never"]}
    own = {"_target_": "drafters.ngram.Ngram"}
    node = {
        "top": bad,
        "nested": {**own, "depth": bad},
        "list": {**own, "depth": [1, [bad]]},
        "partial": {**bad, "_partial_": True},
        "args": {**own, "_args_": [bad]},
        "unrecursive": {**own, "_recursive_": False, "depth": {"deeper": bad}},
    }[place]
    with pytest.raises(InputError, match=REFUSED):
        instantiate(OmegaConf.create({"drafter": node}).drafter)


@pytest.mark.parametrize("name", [7, None, "", "os", "..os.system", "os.system; x", "a b.c", ["os.system"], {"a": 1}])
def test_a_target_that_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(InputError, match=r"drafter\._target_: expected"):
        instantiate(OmegaConf.create({"drafter": {"_target_": name}}).drafter)


@pytest.mark.fault("attempt to run code")
def test_nothing_foreign_is_imported_to_refuse_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "foreign_code.py").write_text("raise SystemExit('this ran')", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=REFUSED):
        component("foreign_code.Drafter", "drafter._target_")
    assert "foreign_code" not in sys.modules


@pytest.mark.fault("attempt to run code")
@pytest.mark.parametrize(
    "node",
    [
        {"drafter": {"_target_": "${name}"}, "name": "os.system"},
        {"drafter": "${other}", "other": {"_target_": "os.system"}},
        {"drafter": {"_target_": "drafters.ngram.Ngram", "depth": "${other}"}, "other": {"_target_": "os.system"}},
        {"drafter": {"_target_": "drafters.ngram.Ngram", "depth": "${oc.create:{_target_:os.system}}"}},
        {"drafter": {"_target_": "drafters.ngram.Ngram", "depth": r"\${other}"}, "other": {"_target_": "os.system"}},
        {"drafter": {"_target_": "${oc.decode:os.system}"}},
    ],
    ids=["name", "node", "argument", "created", "escaped", "decoded"],
)
def test_interpolations_are_no_way_around(node: dict) -> None:
    with pytest.raises(InputError, match=r"expected a component|expected an interpolation that is resolved once"):
        instantiate(OmegaConf.create(node).drafter)


def test_what_the_user_allows_is_called_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "my_drafters.py").write_text("import os\nclass Mine:\n    pass\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for allowed in ("my_drafters.", "my_drafters", "my_drafters.Mine"):
        cfg = OmegaConf.create({"allow_targets": [allowed], "drafter": {"_target_": "my_drafters.Mine"}})
        assert type(instantiate(cfg.drafter)).__name__ == "Mine"
        assert "allow_targets: drafter._target_ calls my_drafters.Mine" in capsys.readouterr().err
    for name in ("my_drafters.os.system", "my_drafters2.Mine", "os.system"):
        cfg = OmegaConf.create({"allow_targets": ["my_drafters."], "drafter": {"_target_": name}})
        with pytest.raises(InputError, match=REFUSED):
            instantiate(cfg.drafter)


def test_logits_processors_of_transformers_are_components() -> None:
    node = {"_target_": "transformers.NoBadWordsLogitsProcessor", "bad_words_ids": [[3]]}
    (made,) = instantiate(OmegaConf.create({"processors": [node]}).processors, _convert_="all")
    assert isinstance(made, NoBadWordsLogitsProcessor)


def test_every_target_of_the_projects_files_is_a_component() -> None:
    built_by_hydra = CONF / "hydra"  # launchers: plugins, which need not be installed
    files = [file for file in CONF.rglob("*.yaml") if not file.is_relative_to(built_by_hydra)]
    text = [line for file in files for line in file.read_text("utf-8").splitlines()]
    names = {
        line.split("_target_:")[1].split("#")[0].strip()
        for line in text
        if "_target_:" in line and not line.lstrip().startswith("#")
    }
    assert "drafters.ngram.Ngram" in names
    for name in names - {"experiments.sweeps.callbacks.CompareJobs", "experiments.common.claiming.ClaimFolder"}:
        assert name.partition(".")[0] in (*OURS, "transformers")
        assert callable(component(name, "_target_"))


@pytest.mark.fault("attempt to run code")
@pytest.mark.parametrize(
    "choice", ["../drafter/ngram", "/etc/passwd", "../../conf/acceptance/exact", "exact.yaml", "", "."]
)
def test_names_of_rules_cannot_leave_their_folder(choice: str) -> None:
    with pytest.raises(InputError, match="rules: expected one of block, exact"):
        choice_of("acceptance", choice, "rules")


@pytest.mark.fault("attempt to run code")
def test_a_rules_file_allows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acceptance").mkdir()
    (tmp_path / "acceptance" / "mine.yaml").write_text("_target_: os.system\nallow_targets: [os.]\n", "utf-8")
    monkeypatch.setattr("experiments.common.components.CONF", tmp_path)
    with pytest.raises(InputError, match=REFUSED):
        instantiate(choice_of("acceptance", "mine", "rules"))


FILES = {  # an experiment from somebody else, and what the line says; {touch} would leave a file behind
    "callback": ("hydra: {callbacks: {x: {_target_: os.system, command: 'touch {touch}'}}}", "callback, launcher"),
    "callback of ours": ("hydra: {callbacks: {x: {_target_: specdec.runs.log.write_text}}}", "callback, launcher"),
    "callback by another way": (
        "hydra: {callbacks: {x: {_target_: hydra.utils.get_method, path: os.system}}}",
        "callback",
    ),
    "callback that is none": (
        "hydra: {callbacks: {x: {_target_: experiments.sweeps.callbacks.json.loads}}}",
        "callback",
    ),
    "callback inside one": (
        "hydra: {callbacks: {compare: {_target_: experiments.sweeps.callbacks.CompareJobs, x: {_target_: os.system}}}}",
        "callback, launcher",
    ),
    "launcher": ("hydra: {launcher: {_target_: os.system}}", "callback, launcher"),
    "sweeper": ("hydra: {sweeper: {_target_: os.system}}", "callback, launcher"),
    "handler": ("hydra: {job_logging: {handlers: {x: {(): os.system, command: 'touch {touch}'}}}}", "logging.Stream"),
    "handler class": ("hydra: {job_logging: {handlers: {x: {class: logging.handlers.SMTPHandler}}}}", "logging.Stream"),
    "formatter": ("hydra: {job_logging: {formatters: {x: {(): subprocess.run}}}}", "logging.Stream"),
    "filter": ("hydra: {hydra_logging: {filters: {x: {(): subprocess.run}}}}", "logging.Stream"),
    "stream": ("hydra: {job_logging: {handlers: {console: {stream: 'ext://os.system'}}}}", "ext://sys.stdout"),
    "environment": ("hydra: {job: {env_set: {CXX: /tmp/compiler}}}", "command line only"),
    "allow_targets": ("allow_targets: [os.]\ndrafter: {_target_: os.system}", "command line only"),
    "drafter": ("drafter: {_target_: os.system}", "a component of this project"),
    "remote code": ("target: {trust_remote_code: true}", "command line only"),
    "remote code, by reference": ("target: {trust_remote_code: '${seed}'}", "command line only"),
    "custom generate": (
        "reference: {methods: [{_target_: specdec.measure.rivals.TransformersGenerate, name: x, "
        "options: {custom_generate: somebody/code}}]}",
        "command line only",
    ),
    "a secret": ("tracker: {_target_: specdec.runs.log.WandbTracker, project: '${oc.env:MY_API_TOKEN}'}", "no secret"),
}


@pytest.fixture
def with_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    """Call `bench` with somebody's folder of configs."""
    monkeypatch.chdir(tmp_path)

    def call(folder: Path, *arguments: str) -> Done:
        return command(bench.main, tmp_path / "run", monkeypatch, capsys)(*arguments, flags=[f"--config-dir={folder}"])

    return call


@pytest.mark.fault("attempt to run code")
@pytest.mark.parametrize("attempt", FILES)
def test_files_from_somebody_else_run_nothing(
    attempt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_folder: Callable[..., Done]
) -> None:
    text, expected = FILES[attempt]
    touch = tmp_path / "ran"
    (tmp_path / "theirs" / "experiment").mkdir(parents=True)
    body = f"# @package _global_\n{text.replace('{touch}', str(touch))}\n"
    (tmp_path / "theirs" / "experiment" / "x.yaml").write_text(body, "utf-8")
    monkeypatch.setenv("MY_API_TOKEN", "secret")
    options = ("target=tiny", "tracker=none", "report=false", "prompts.limit=1", "experiment=x")
    done = with_folder(tmp_path / "theirs", *options)
    assert done.status == 2, done.err
    assert expected in done.err
    assert done.err.count("\n") == 1
    assert "secret" not in done.err.replace("no secret", "").replace("is secret", "").replace("secrets", "")
    assert not touch.exists()
    assert not (tmp_path / "run" / "steps.jsonl").exists()


@pytest.mark.fault("attempt to run code")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("allow_targets=os.system", "a component of this project"),
        ("allow_targets=[]", "allow_targets: expected a list of beginnings of names"),
        ("allow_targets=[1]", "allow_targets: expected a list of beginnings of names"),
        ("allow_targets=['']", "allow_targets: expected a list of beginnings of names"),
        ("allow_targets=null", "allow_targets: expected a list of beginnings of names"),
    ],
)
def test_the_command_line_is_checked_too(
    typed: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    done = command(bench.main, tmp_path, monkeypatch, capsys)(typed, "target=tiny", "drafter._target_=subprocess.run")
    assert done.status == 2
    assert expected in done.err


@pytest.mark.fault("attempt to run code")
def test_a_search_path_in_a_file_imports_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_folder: Callable[..., Done]
) -> None:
    (tmp_path / "evil_package").mkdir()
    (tmp_path / "evil_package" / "__init__.py").write_text("raise SystemExit(7)", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "main.yaml").write_text("defaults: [bench]\nhydra: {searchpath: ['pkg://evil_package']}\n", "utf-8")
    done = with_folder(tmp_path, "--config-name=main")
    assert done.status == 2
    assert "hydra.searchpath: expected folders, got 'pkg://evil_package'" in done.err


@pytest.mark.fault("attempt to run code")
@pytest.mark.parametrize("option", ["setup", "python", "srun_args"])
def test_commands_of_a_clusters_launcher_come_from_the_command_line(option: str) -> None:
    launcher = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", option: ["x"]}
    cfg = OmegaConf.create({"hydra": {"launcher": launcher, "job": {"env_set": {}, "env_copy": []}}})
    with pytest.raises(InputError, match=rf"hydra\.launcher\.{option}: expected it on the command line only"):
        refuse_commands(cfg, CommandLine([], []))
    refuse_commands(cfg, CommandLine([], [f"hydra.launcher.{option}"]))
    refuse_commands(cfg, CommandLine([f"hydra.launcher.{option}"], []))


@pytest.mark.fault("attempt to run code")
def test_a_swept_file_cannot_allow_targets(tmp_path: Path, with_folder: Callable[..., Done]) -> None:
    (tmp_path / "experiment").mkdir()
    params = "{+allow_targets: '[os.]', drafter._target_: os.system}"
    (tmp_path / "experiment" / "x.yaml").write_text(
        f"# @package _global_\nhydra: {{sweeper: {{params: {params}}}}}\n", "utf-8"
    )
    sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    done = with_folder(tmp_path, "-m", sweep, "experiment=x", "target=tiny")
    assert done.status == 2
    assert "allow_targets: expected it on the command line only" in done.err


def test_good_files_of_ours_are_still_good() -> None:
    assert len(instantiate(OmegaConf.load(CONF / "prompts" / "builtin.yaml"))) == len(builtin(12))
    assert isinstance(instantiate(OmegaConf.load(CONF / "drafter" / "ngram.yaml")), Ngram)
    assert all(choice_of("acceptance", name, "rules")._target_ for name in group("acceptance"))


def test_remote_code_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError):
        load_hub(str(tmp_path / "nothing"), trust_remote_code=True)
    assert "nothing' may run code of its own" in capsys.readouterr().err
