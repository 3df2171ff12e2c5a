from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import EMAWeightAveraging

import worstcase
from worstcase import Crossbar
from worstcase.attacks import FLWC, LWC
from worstcase.callbacks import EpochLines, WholeFiles, WorstCaseAtTest, WorstCasePerEpoch
from worstcase.methods import Vanilla


def trainer(folder, *callbacks):
    return L.Trainer(
        max_epochs=2,
        callbacks=list(callbacks),
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, L.pytorch.callbacks.ModelCheckpoint) for c in callbacks),
    )


def test_the_attack_after_each_epoch_can_select_the_checkpoint(tmp_path, small_net, small_loader):
    method = Vanilla(Crossbar(small_net, 0.1), num_classes=3)
    best = L.pytorch.callbacks.ModelCheckpoint(tmp_path, monitor="val/attacked_accuracy", mode="max")
    fit = trainer(tmp_path, WorstCasePerEpoch(FLWC()), best)
    fit.fit(method, small_loader, small_loader)
    found = FLWC()(method.crossbar, small_loader, progress=False)  # the last epoch's weights, again
    assert fit.callback_metrics["val/attacked_accuracy"] == pytest.approx(found.accuracy)
    assert best.best_model_score is not None and best.best_model_score >= found.accuracy - 1e-6


def test_the_attack_after_each_epoch_is_on_averaged_weights_or_refused(tmp_path, small_net, small_loader):
    attack, average = WorstCasePerEpoch(FLWC()), EMAWeightAveraging(decay=0.5)
    method = Vanilla(Crossbar(small_net, 0.1), num_classes=3, optimizer=partial(torch.optim.SGD, lr=0.3))
    fit = trainer(tmp_path, attack, average)
    fit.fit(method, small_loader, small_loader)  # which ends with the average in the network
    found = FLWC()(method.crossbar, small_loader, progress=False)
    assert fit.callback_metrics["val/attacked_accuracy"] == pytest.approx(found.accuracy)
    with pytest.raises(ValueError, match=r"put WorstCasePerEpoch before EMAWeightAveraging"):
        trainer(tmp_path, average, attack).fit(method, small_loader, small_loader)


def test_each_attack_runs_once_on_the_test_split_and_its_result_is_kept(tmp_path, small_net, small_loader):
    method = Vanilla(Crossbar(small_net, 0.1), num_classes=3)
    at_test = WorstCaseAtTest([FLWC(steps=1), LWC(epochs=2)], search_dtype="bfloat16")
    test = trainer(tmp_path, at_test)
    before = {name: tensor.clone() for name, tensor in small_net.state_dict().items()}
    test.test(method, small_loader, verbose=False)
    flwc, lwc = at_test.evaluation.attacks
    assert (flwc.attack, lwc.attack) == ("flwc", "lwc")
    assert lwc.samples == 40 and lwc.feasible and flwc.feasible
    assert {lwc.parameters["search_dtype"], flwc.parameters["search_dtype"]} == {"bfloat16"}
    lowest = min(flwc.accuracy, lwc.accuracy)
    assert test.callback_metrics["test/attacked_accuracy"] == pytest.approx(lowest)
    assert test.callback_metrics["test/accuracy"] == pytest.approx(lwc.clean_accuracy)
    assert all(torch.equal(before[name], tensor) for name, tensor in small_net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr", None, "lr=None: Input should be a valid number"),
        ("lr", 0.0, "lr=0.0: Input should be greater than 0"),
        ("epochs", 0.5, "epochs=0.5: Input should be a valid integer"),
        ("noise", torch.ones(1), "Tensor is not JSON serializable"),
    ],
)
def test_settings_of_an_attack_that_no_record_holds_are_refused_before_the_work(small_net, name, value, message):
    attack = FLWC()
    setattr(attack, name, value)
    with pytest.raises(ValueError, match=message):
        WorstCaseAtTest([attack])
    with pytest.raises(ValueError, match=message):
        worstcase.evaluate(Crossbar(small_net, 0.1), [], [attack])


def test_the_attack_after_each_epoch_uses_the_seed(tmp_path, small_net, small_loader):
    seeds = []

    class Noting(FLWC):
        def __call__(self, *args, seed, **options):
            seeds.append(seed)
            return super().__call__(*args, seed=seed, **options)

    fit = trainer(tmp_path, WorstCasePerEpoch(Noting(), seed=7))
    fit.fit(Vanilla(Crossbar(small_net, 0.1), num_classes=3), small_loader, small_loader)
    assert set(seeds) == {7}


@pytest.mark.parametrize(
    ("length", "places"),
    [({"max_epochs": 3}, ["1 of 3", "2 of 3", "3 of 3"]), ({"max_steps": 9}, ["1", "2", "3"])],
)
def test_a_line_tells_the_validation_of_its_own_epoch(length, places, small_net, small_loader, caplog):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    fit = L.Trainer(**length, **options, check_val_every_n_epoch=2, callbacks=[EpochLines()])
    with caplog.at_level("INFO", "worstcase"):
        fit.fit(Vanilla(Crossbar(small_net, 0.1), num_classes=3), small_loader, small_loader)
    lines = [text for text in caplog.messages if text.startswith("epoch")]
    assert [line.partition(":")[0] for line in lines] == [f"epoch {place}" for place in places]
    assert ["validation" in line for line in lines] == [False, True, False]


def test_several_test_loaders_are_refused(tmp_path, small_net, small_loader):
    method = Vanilla(Crossbar(small_net, 0.1), num_classes=3)
    method.test_step = lambda batch, batch_idx, dataloader_idx=0: None
    with pytest.raises(ValueError, match="one reference set"):
        trainer(tmp_path, WorstCaseAtTest([FLWC()])).test(method, [small_loader, small_loader], verbose=False)


def test_attacks_in_a_mapping_run_in_order_and_none_is_skipped():
    first, last = FLWC(steps=1), FLWC(steps=2)
    assert WorstCaseAtTest({"first": first, "none": None, "last": last}).attacks == [first, last]
    with pytest.raises(ValueError, match="diagnosis='long': must be short, full"):
        WorstCaseAtTest([first], diagnosis="long")
    with pytest.raises(ValueError, match="search_dtype='half': must be bfloat16 or None"):
        WorstCaseAtTest([first], search_dtype="half")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    """As on a disk that is full."""
    file, plugin = tmp_path / "last.ckpt", WholeFiles()
    plugin.save_checkpoint({"epoch": 1}, file)

    def cut_off(self, checkpoint, path, storage_options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", cut_off)
    with pytest.raises(OSError, match="No space left"):
        plugin.save_checkpoint({"epoch": 2}, file)
    assert torch.load(file, weights_only=True) == {"epoch": 1} and [*tmp_path.iterdir()] == [file]


def test_a_checkpoint_that_could_not_be_read_back_is_refused_when_it_is_written(tmp_path):
    plugin = WholeFiles()
    with pytest.raises(ValueError, match=r"last.ckpt would hold a numpy\S*scalar, .* of a callback of yours"):
        plugin.save_checkpoint({"callbacks": {"mine": np.float64(1)}}, tmp_path / "last.ckpt")
    assert not [*tmp_path.iterdir()]
