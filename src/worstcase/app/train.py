"""Train a network, attack it, and record the lowest accuracy found: python -m src.train."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from worstcase.app import resume, sweeps, tracking
from worstcase.app.doors import CONF, command
from worstcase.app.errors import instantiated
from worstcase.app.job import is_first_process, run_job
from worstcase.app.precision import warn_of_slow_bfloat16
from worstcase.app.pulses import check_pulses, shared_out
from worstcase.app.start import start
from worstcase.app.threads import use_threads
from worstcase.digests import digest_of_files
from worstcase.evaluation.record import CHECKPOINT, LAST, Record, git_commit

if TYPE_CHECKING:
    import lightning as L

    from worstcase.callbacks import WorstCaseAtTest
    from worstcase.data import ImageDataModule
    from worstcase.methods import Method

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def _train(cfg: DictConfig) -> float | None:
    return run_job("train", train, cfg)


def main() -> None:
    start(_train)


def train(cfg: dict[str, Any], folder: Path) -> Record | None:
    """Train, test and attack as the settings say, and leave everything in the folder.

    Of several processes that train together, only the first returns a record.
    """
    import lightning as L
    from lightning.pytorch.callbacks import RichProgressBar, Timer

    from worstcase.callbacks import EpochLines, MovableCheckpoint, WholeFiles
    from worstcase.checkpoints import load_weights
    from worstcase.data import OwnDataModule

    _quieten()
    L.seed_everything(cfg["seed"], verbose=False)
    datamodule = instantiated(cfg, "dataset")
    datamodule.prepare_data()
    datamodule.setup()
    method = _method(cfg, datamodule)
    if cfg["pulses"] is not None:
        check_pulses(cfg, method.crossbar)
    use_threads(cfg, method.crossbar, datamodule)
    callbacks, at_test = _callbacks(cfg, method, datamodule)
    at_test.folder = folder
    _check_batches(datamodule, cfg["trainer"])

    terminal = bool(sys.stderr and sys.stderr.isatty())
    files: dict[str, Any] = {"dirpath": folder / CHECKPOINT.parent, "enable_version_counter": False}
    best = MovableCheckpoint(**files, filename=CHECKPOINT.stem, monitor=method.monitor, mode="max")
    last = MovableCheckpoint(**files, filename=LAST.stem, save_on_train_epoch_end=True)
    timer = Timer(cfg["trainer"].get("max_time"))  # Lightning adds none of its own where there is one
    loggers = tracking.loggers(cfg["logger"], folder)
    trainer = L.Trainer(
        **cfg["trainer"] | {"plugins": [*cfg["trainer"].get("plugins", []), WholeFiles()]},
        default_root_dir=folder,
        logger=loggers,
        callbacks=[*callbacks, timer, best, last, RichProgressBar() if terminal else EpochLines()],
        enable_progress_bar=terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    warn_of_slow_bfloat16(cfg, trainer.strategy.root_device.type)
    unfinished = resume.unfinished(folder)
    ended = None
    if unfinished:
        resume.go_on_with_metrics(loggers, unfinished)
        # what stopped it, such as early stopping, may not do so again
        if ended := resume.Trained.load(folder, cfg):
            trainer.fit_loop.max_epochs = ended.epochs
    for logger in loggers:
        logger.log_hyperparams(cfg)
    try:
        with resume.training_of(folder, cfg) as trained:
            if trained is None:
                # after max_steps it would go on as if it had been killed within an epoch
                trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
                trainer.fit(method, datamodule=datamodule, ckpt_path=unfinished, weights_only=True)
                if best.best_model_score is None:
                    raise ValueError(
                        "training ended before its first validation, so no epoch is kept; leave out or raise "
                        "trainer.max_steps and trainer.max_time, or validate earlier (trainer.val_check_interval)"
                    )
                trained = ended or resume.Trained(
                    seconds=timer.time_elapsed("train"),
                    epochs=trainer.current_epoch,
                    validation=best.best_model_score.item(),
                    training=resume.digest(cfg),
                    commit=git_commit(),
                )
                if is_first_process():
                    trained.save(folder)
        # which Lightning does not restore, and which the metrics of the test tell
        trainer.fit_loop.epoch_progress.current.completed = trained.epochs
        if cfg["pulses"] is not None:
            load_weights(method.crossbar, folder / CHECKPOINT)
            method.crossbar.thg = shared_out(cfg, method.crossbar, datamodule)
        trainer.test(method, datamodule, ckpt_path=folder / CHECKPOINT, weights_only=True, verbose=False)
    finally:
        if "wandb" in sys.modules:  # so that the next job of a sweep begins a run of its own
            sys.modules["wandb"].finish()

    if not is_first_process():
        return None
    assert at_test.evaluation is not None
    choices = HydraConfig.get().runtime.choices
    record = at_test.evaluation.record(
        kind="train",
        data_digest=datamodule.digest() if isinstance(datamodule, OwnDataModule) else None,
        command=command("train"),
        sweep=sweeps.command(),
        config=cfg,
        method=choices["method"],
        model=cfg["net"] or choices["model"],
        dataset=choices["dataset"],
        train_seconds=trained.seconds,
        epochs=trained.epochs,
        validation=trained.validation,
        trained_commit=trained.commit,
        weights_digest=digest_of_files([folder / CHECKPOINT]),
    )
    at_test.evaluation.save(folder, record)
    return record


def _method(cfg: dict[str, Any], datamodule: ImageDataModule) -> Method:
    """The training method of the settings, with the network in it."""
    from worstcase.checkpoints import load_weights
    from worstcase.methods import Method
    from worstcase.runs import check_fit, make_crossbar, user_net

    net = user_net(cfg["net"]) if cfg["net"] else instantiated(cfg, "model.net")
    if not net.training:  # as libraries hand out pretrained networks
        net.train()
    crossbar = make_crossbar(net, cfg)
    if cfg["init_from"]:
        load_weights(crossbar, Path(cfg["init_from"]))
    check_fit(crossbar, datamodule)
    described = {key: value for key, value in cfg["method"].items() if key != "trains_without_thg"}
    made = instantiated({"method": described}, "method", _partial_=True)(
        crossbar,
        num_classes=datamodule.num_classes,
        optimizer=instantiated(cfg, "model.optimizer"),
        scheduler=instantiated(cfg, "model.scheduler"),
        seed=cfg["seed"],
    )
    if not isinstance(made, Method):
        raise ValueError(
            f"method._target_={described['_target_']}: must be a subclass of worstcase.methods.Method"
        )
    return made


def _callbacks(
    cfg: dict[str, Any], method: Method, datamodule: ImageDataModule
) -> tuple[list[L.Callback], WorstCaseAtTest]:
    """The callbacks of the settings, and the one of them whose evaluation becomes the record.

    Raises:
        ValueError: there is no such one, it has no attack, an attack or the method's metric does not fit, or what
            a callback makes would not be tested.
    """
    from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging

    from worstcase.callbacks import WorstCaseAtTest, WorstCasePerEpoch

    for place in ("val_attack", "test_attack", "suite"):  # an error then names the setting
        instantiated(cfg, place)
    callbacks = [callback for callback in instantiated(cfg, "callbacks").values() if callback is not None]
    for callback in callbacks:
        if isinstance(callback, StochasticWeightAveraging) or (
            isinstance(callback, WeightAveraging)
            and callback.should_update(epoch_idx=cfg["trainer"]["max_epochs"] - 1)
        ):
            raise ValueError(
                f"callbacks: {type(callback).__name__} averages after the last validation, so that no epoch of it "
                "could be kept; take lightning.pytorch.callbacks.EMAWeightAveraging, which averages after steps"
            )
        own = isinstance(callback, ModelCheckpoint) and callback.dirpath is None
        if own and (callback.save_last or callback.filename in (CHECKPOINT.stem, LAST.stem)):
            raise ValueError(
                f"callbacks: {type(callback).__name__} would write over the run's own {LAST.name} or "
                f"{CHECKPOINT.name}; leave save_last out, choose another filename, or say dirpath:FOLDER"
            )
    at_tests = [callback for callback in callbacks if isinstance(callback, WorstCaseAtTest)]
    if len(at_tests) != 1:
        raise ValueError("callbacks: a run needs one worstcase.callbacks.WorstCaseAtTest for its record")
    if not at_tests[0].attacks:
        raise ValueError("suite: a run needs at least one attack for its record")
    per_epoch = [callback.attack for callback in callbacks if isinstance(callback, WorstCasePerEpoch)]
    for attack in [*at_tests[0].attacks, *per_epoch]:
        attack.check_classes(datamodule.num_classes)
    for attack in at_tests[0].attacks:
        attack.check_fit(method.crossbar, datamodule.test_dataloader())
    for attack in per_epoch:
        attack.check_fit(method.crossbar, datamodule.val_dataloader())
    proves = method.SELECTED_BY == "val/certified_accuracy"
    _check_metrics(callbacks, method.monitor, attacked=bool(per_epoch), certified=proves)
    return callbacks, at_tests[0]


def _check_metrics(callbacks: list, monitor: str, *, attacked: bool, certified: bool) -> None:
    """Refuse to watch a metric that nobody logs. Custom callbacks may log any.

    Raises:
        ValueError: nobody logs a watched metric, the epoch of the highest loss would be kept, or a callback takes
            a low accuracy for a good one.
    """
    known = {"val/accuracy"} | ({"val/attacked_accuracy"} if attacked else set())
    known |= {"val/certified_accuracy"} if certified else set()
    homes = {type(callback).__module__.split(".")[0] for callback in callbacks}
    watched = {c.monitor for c in callbacks if isinstance(getattr(c, "monitor", None), str)} - {"train/loss"}
    unknown = [name for name in (monitor, *sorted(watched)) if name not in known]
    if unknown and (monitor == "train/loss" or homes <= {"worstcase", "lightning"}):
        allowed, place = " or ".join(sorted(known)), "method." if unknown[0] == monitor else "callbacks: "
        raise ValueError(f"{place}monitor={unknown[0]}: must be {allowed}; each is logged by a callback")
    for callback in callbacks:
        if getattr(callback, "monitor", None) in known and getattr(callback, "mode", None) == "min":
            watching = f"{type(callback).__name__} with mode=min on {callback.monitor}"
            raise ValueError(f"callbacks: {watching}, of which more is better; say mode:max")


def _check_batches(datamodule: Any, trainer: dict[str, Any]) -> None:
    """Check that the limit of training batches leaves one.

    Raises:
        ValueError: it leaves none.
    """
    share = trainer.get("limit_train_batches")
    if isinstance(share, float) and int(share * len(datamodule.train_dataloader())) < 1:
        raise ValueError(f"trainer.limit_train_batches={share}: leaves no batch; raise it")


def _quieten() -> None:
    """Silence Lightning's remarks on hardware, loaders and its own products."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
