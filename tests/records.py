"""Made-up records."""

from worstcase.evaluation.record import AttackRecord, Record

CONFIG = {
    "thg": 0.03,
    "full_scale": "layer_max",
    "layers": ["*"],
    "exclude": [],
    "seed": 0,
    "data_dir": "data",
    "net": None,
    "model": {"net": {"_target_": "worstcase.models.LeNet"}, "weight_bits": None, "activation_bits": None},
    "dataset": {"_target_": "worstcase.data.MNIST5k"},
}


def attack_record(**changes):
    return AttackRecord(
        **{
            "attack": "flwc",
            "thg": 0.03,
            "accuracy": 0.25,
            "final_accuracy": 0.5,
            "max_relative_perturbation": 0.03,
            "feasible": True,
            "seconds": 1.0,
            "passes": 31.0,
            "parameters": {"steps": 10},
            "seed": 0,
            "perturbation": "perturbation.safetensors",
            "history": [{"passes": 1.0, "accuracy": 0.9}],
            **changes,
        }
    )


def record(*attacks, **changes):
    return Record(
        **{
            "kind": "train",
            "source_run": None,
            "command": "python -m src.train",
            "config": CONFIG,
            "seed": 0,
            "method": "vanilla",
            "model": "lenet",
            "dataset": "mnist5k",
            "reference": "test",
            "samples": 1000,
            "decisions": 1000,
            "dtype": "float32",
            "thg": 0.03,
            "full_scale": "layer_max",
            "clean_accuracy": 0.9,
            "attacks": list(attacks) or [attack_record()],
            "train_seconds": 1.0,
            "epochs": 2,
            "parameters": 4,
            "parameters_perturbed": 3,
            "threads": 1,
            **changes,
        }
    )
