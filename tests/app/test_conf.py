"""Every file of every group composes and builds what it names."""

from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from commands import REPOSITORY
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from worstcase.app import ranges, schema
from worstcase.app.naming import completed
from worstcase.attacks import Attack
from worstcase.chip.presets import PRESETS
from worstcase.chip.tolerance import Tolerance, from_plain, largest
from worstcase.data import ImageDataModule
from worstcase.methods import Method
from worstcase.runs import build, dataset, make_crossbar
from worstcase.verify.cost import Programming

CONF = REPOSITORY / "conf"
NEEDED = {
    "torchvision": ["model.arch=squeezenet1_1"],
    "imagefolder": ["dataset.folder=x", "dataset.num_classes=3"],
    "arrays": ["dataset.file=x.npz", "dataset.num_classes=3"],
    "time_series": ["dataset.test=x.csv", "dataset.num_classes=3"],
    "own": ["dataset.of=examples.your_own_data:data", "dataset.num_classes=10"],
}


def options(group):
    return sorted(path.stem if path.suffix == ".yaml" else path.name for path in Path(CONF, group).iterdir())


@cache
def composed(*overrides):
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides))
    ranges.check(completed(cfg))
    OmegaConf.resolve(cfg)
    return cfg


@pytest.mark.parametrize("name", options("dataset"))
def test_data_sets(name):
    cfg = composed(f"dataset={name}", *NEEDED.get(name, []))
    data = instantiate(cfg.dataset)
    assert isinstance(data, ImageDataModule)
    assert data.num_classes == cfg.dataset.num_classes
    config = OmegaConf.to_container(cfg.dataset)
    if name == "own":
        with pytest.raises(ValueError, match=r"OwnDataModule is not a data set of worstcase\.data"):
            build(config, ImageDataModule)
        config["_target_"] = "worstcase.data.own.OwnDataModule"
        with pytest.raises(ValueError, match=r"OwnDataModule is not a data set of worstcase\.data"):
            dataset(config)
    else:
        assert isinstance(build(config, ImageDataModule), type(data))


@pytest.mark.parametrize("name", options("model"))
def test_models_and_their_optimisers(name):
    cfg = composed(f"model={name}", *NEEDED.get(name, []))
    if "width" in cfg.model:
        cfg = composed(f"model={name}", "model.width=0.125")
    crossbar = make_crossbar(instantiate(cfg.model.net), cfg)
    assert crossbar.programmed()
    optimiser = instantiate(cfg.model.optimizer)(crossbar.parameters())
    instantiate(cfg.model.scheduler)(optimiser)
    assert isinstance(build(OmegaConf.to_container(cfg.model.net), nn.Module), type(crossbar.net))


@pytest.mark.parametrize("name", options("method"))
def test_methods(name):
    cfg = composed(f"method={name}")
    method = instantiate(arguments(cfg), _partial_=True)(
        make_crossbar(instantiate(cfg.model.net), cfg), num_classes=10
    )
    assert isinstance(method, Method)


def arguments(cfg):
    """Those of the method's class."""
    return {key: value for key, value in cfg.method.items() if key != "trains_without_thg"}


def settings(thing):
    """What it was built with, in plain types."""
    kept = (bool, int, float, str, list, type(None))
    return {k: v for k, v in vars(thing).items() if isinstance(v, kept) and not k.startswith("_")}


@pytest.mark.parametrize("name", options("method"))
def test_a_method_has_the_same_defaults_in_python(name):
    cfg = composed(f"method={name}")
    crossbar = make_crossbar(instantiate(cfg.model.net), cfg)
    said = instantiate(arguments(cfg), _partial_=True)(crossbar, num_classes=10)
    attack = {"attack": said.attack} if name == "adversarial" else {}
    own = settings(type(said)(crossbar, num_classes=10, **attack))
    differing = {key for key, value in own.items() if settings(said)[key] != value}
    assert differing == VARIANTS.get(name, set())


VARIANTS = {
    "ensemble_short": {"rounds"},
    "lwc_short": {"epochs"},
    "lwc_margin": {"epochs", "objective"},
    "universal_at_deep": {"factor", "ramp", "clean", "weight_clip"},
}
"""Files of a method or an attack that differ from its defaults, and in what."""


@pytest.mark.parametrize("name", options("attack"))
def test_an_attack_has_the_same_defaults_in_python(name):
    said = instantiate(composed(f"attack@test_attack={name}").test_attack)
    own = type(said)()
    differing = {key for key, value in own.parameters().items() if said.parameters()[key] != value}
    assert differing == VARIANTS.get(name, set())


@pytest.mark.parametrize("name", options("dataset"))
def test_a_data_set_has_the_same_defaults_in_python(name):
    cfg = composed(f"dataset={name}", *NEEDED.get(name, []))
    said = instantiate(cfg.dataset)
    needed = {
        key: cfg.dataset[key]
        for key in ("data_dir", "folder", "file", "test", "of", "num_classes")
        if key in cfg.dataset
    }
    assert settings(said) == settings(type(said)(**needed))


def test_a_method_chooses_the_attack_that_selects_and_the_command_line_wins():
    assert composed("method=vanilla").val_attack == composed("method=atrice").val_attack
    for name in ("pgd_at", "random_errors", "universal_at", "universal_at_deep"):
        assert composed(f"method={name}").val_attack.objective == "sigmoid_margin"
        assert composed(f"method={name}", "attack@val_attack=flwc").val_attack._target_ == "worstcase.attacks.FLWC"


def test_adversarial_training_takes_any_attack():
    assert composed("method=adversarial").method.attack.epochs == 10
    assert composed("method=adversarial", "attack@method.attack=flwc").method.attack.steps == 10


@pytest.mark.parametrize("name", options("attack"))
def test_attacks(name):
    cfg = composed(f"attack@test_attack={name}")
    attack = instantiate(cfg.test_attack)
    assert isinstance(attack, Attack) and attack.name == name.removesuffix("_short").removesuffix("_margin")


@pytest.mark.parametrize("name", options("suite"))
def test_suites_are_attacks_as_their_own_files_have_them(name):
    cfg = composed(f"suite={name}")
    attacks = instantiate(cfg.suite)
    assert attacks and all(isinstance(attack, Attack) for attack in attacks.values())
    at_test = instantiate(cfg.callbacks).worst_case_at_test.attacks
    assert list(map(settings, at_test)) == list(map(settings, attacks.values()))
    for key, attack in attacks.items():
        known = instantiate(
            composed("attack@test_attack=" + ("lwc" if key == "test" else attack.name)).test_attack
        )
        assert type(attack) is type(known) and settings(attack).keys() == settings(known).keys()


@pytest.mark.parametrize("name", options("th_g"))
def test_th_g_presets(name):
    thg = from_plain(completed(composed(f"th_g={name}"))["thg"])
    assert 0 < largest(thg) <= 0.13
    assert name not in PRESETS or thg == Tolerance.preset(name, sigmas=2)


@pytest.mark.parametrize("name", options("logger"))
def test_loggers(name):
    assert "csv" in composed(f"logger={name}").logger


def test_the_settings_of_programming_are_those_that_it_takes():
    assert set(schema.PROGRAMMING) == {field.name for field in fields(Programming)}
    assert composed().programming == schema.PROGRAMMING
