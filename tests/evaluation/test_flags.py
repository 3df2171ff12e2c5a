import pytest
from records import attack_record, record

from worstcase.evaluation.flags import lower_elsewhere, of_a_chip, red_flags


def history(*accuracies, start=None):
    entries = [{"passes": 1.0 + 3 * i, "accuracy": a} for i, a in enumerate(accuracies)]
    if start is not None:
        entries.insert(1, {"passes": 2.0, "accuracy": start, "start": True})
    return entries


def found(attack, thg, *accuracies, start=None, **changes):
    lowest = min([*accuracies, start if start is not None else 1.0])
    return attack_record(
        attack=attack,
        thg=thg,
        accuracy=lowest,
        final_accuracy=accuracies[-1],
        max_relative_perturbation=thg,
        history=history(*accuracies, start=start),
        **changes,
    )


def test_attacks_that_agree_raise_no_flag():
    attacks = [found("flwc", 0.01, 0.9, 0.5), found("flwc", 0.02, 0.9, 0.3), found("lwc", 0.02, 0.9, 0.2)]
    assert red_flags(attacks, random_vertex=0.89) == []


def test_attacks_that_disagree_are_flagged_unless_one_is_sampling():
    weak, strong = found("flwc", 0.02, 0.9, 0.9), found("lwc", 0.02, 0.9, 0.6)
    assert red_flags([weak, strong]) == [
        "attacks disagree at th_g 0.02 (masking?): flwc finds 90.00%, lwc 60.00% (docs/flags.md#attacks-disagree)"
    ]
    assert red_flags([found("monte_carlo", 0.02, 0.9, 0.9, distribution={"chips": 10}), strong]) == []


def test_lower_accuracies_on_some_weights_are_flagged_with_which():
    points = [{"share": share, "only_these_move": 0.5, "all_others_move": 0.9 - share} for share in (0.001, 0.3)]
    diagnosis = {"accuracy": 0.9, "layers": [{"array": "fc.weight", "lowest_alone": 0.89}]}
    flags = red_flags([found("flwc", 0.02, 0.9)], diagnosis=diagnosis | {"selective_write_verify": points})
    assert [flag.partition(" finds ")[0] for flag in flags] == [
        "an attack on fc.weight",
        "an attack on the 0.1 % most important weights",
        "an attack on the 30 % most important weights",
        "an attack on all but the 30 % most important weights",
    ]


def test_an_attack_worse_than_a_random_vertex_is_flagged():
    (flag,) = red_flags([found("flwc", 0.02, 0.9, 0.89)], random_vertex=0.7)
    assert flag == "flwc at th_g 0.02: finds 89.00%, but a random vertex has 70.00% (docs/flags.md#random-vertex)"


def test_a_rise_with_th_g_is_flagged_although_the_result_is_monotone():
    attacks = [found("flwc", 0.01, 0.9, 0.5), found("flwc", 0.02, 0.9, 0.6, start=0.5)]
    assert attacks[1].accuracy == 0.5
    (flag,) = [flag for flag in red_flags(attacks) if "rises with th_g," in flag]
    assert flag == (
        "flwc: the accuracy that it finds rises with th_g, 50.00% at 0.01 and 60.00% at 0.02 "
        "(docs/flags.md#rises-with-th_g)"
    )


def test_only_the_largest_rise_with_th_g_is_flagged():
    attacks = [found("flwc", thg, 0.9, own) for thg, own in ((0.01, 0.5), (0.02, 0.4), (0.03, 0.55), (0.04, 0.45))]
    (flag,) = [flag for flag in red_flags(attacks) if "rises with th_g," in flag]
    assert "rises with th_g, 40.00% at 0.02 and 55.00% at 0.03" in flag


def test_a_chip_that_was_read_back_is_held_against_the_largest_of_equal_th_g():
    (flag,) = of_a_chip(0.1, 0, [found("flwc", 0.01, 0.9, 0.9), found("flwc", 0.05, 0.9, 0.9)])
    assert flag.startswith("flwc at th_g 0.05: finds 90.00%")


def test_chips_that_are_sampled_are_no_search_that_failed():
    drawn = [
        found("monte_carlo", thg, 0.9, own, distribution={"chips": 9}) for thg, own in ((0.01, 0.5), (0.02, 0.8))
    ]
    assert red_flags([*drawn, found("flwc", 0.02, 0.9, 0.7)], random_vertex=0.75) == []


def test_a_rise_with_th_g_is_one_of_the_same_settings():
    attacks = [found("lwc", thg, 0.9, own) for thg, own in ((0.01, 0.5), (0.02, 0.4))]
    attacks += [found("lwc", thg, 0.9, own, parameters={"epochs": 1}) for thg, own in ((0.01, 0.6), (0.02, 0.55))]
    assert red_flags(attacks) == []


def test_one_attack_with_two_settings_at_one_th_g_raises_no_flag():
    attacks = [found("flwc", 0.02, 0.9, own) for own in (0.5, 0.8)]
    assert red_flags(attacks) == []


def test_accuracy_that_rises_within_an_attack_is_flagged():
    (flag,) = red_flags([found("lwc", 0.02, 0.9, 0.4, 0.6)])
    assert "the accuracy rises with the budget, 40.00% after 4 passes and 60.00% at the end" in flag


def test_given_starts_and_clamped_iterates_do_not_count_as_a_rise():
    given = found("flwc", 0.02, 0.9, 0.7, 0.7, start=0.5)
    free = found("lwc", 0.02, 0.9, 0.3, 0.8)
    free.history[1]["magnitude"] = 2.5
    assert red_flags([given]) == red_flags([free]) == []


def test_members_that_differ_in_speed_are_not_called_masked():
    members = [
        {"member": name, "accuracy": a, "lowest": a, "passes": 1.0} for name, a in (("dlr", 0.3), ("p2", 0.0))
    ]
    (flag,) = red_flags([found("ensemble", 0.02, 0.99, 0.0, members=members)])
    assert "members disagree in the first round: dlr finds 30.00%, p2 0.00%" in flag


def test_gradients_that_vanish_are_flagged():
    (flag,) = red_flags([found("pgd", 0.02, 0.9, 0.9, vanished=0.6)])
    assert "gradients vanish (zero for every weight, or not finite, in 60.00% of the mini-batches)" in flag


def test_members_and_attacks_that_disagree_are_flagged():
    members = [
        {"member": "p2", "accuracy": 0.9, "lowest": 0.9, "passes": 1.0},
        {"member": "p6", "accuracy": 0.1, "lowest": 0.1, "passes": 1.0},
    ]
    one, two = red_flags([found("lwc", 0.02, 0.95, 0.9), found("ensemble", 0.02, 0.95, 0.1, members=members)])
    assert "ensemble at th_g 0.02: members disagree in the first round (masking?): p2 finds 90.00%, p6" in one
    assert "attacks disagree at th_g 0.02 (masking?): lwc finds 90.00%, ensemble 10.00%" in two


@pytest.mark.parametrize(
    ("thg", "accuracy", "flagged"), [(0.02, 0.1, True), (0.01, 0.1, True), (0.03, 0.1, False)]
)
def test_a_lower_accuracy_in_another_run_is_flagged(thg, accuracy, flagged):
    images = {"_target_": "worstcase.data.ImageFolderDataModule"}
    config = {"checkpoint": None, "layers": ["*"], "exclude": [], "dataset": images}
    now = record(found("flwc", 0.02, 0.9, 0.4), kind="evaluate", config=config, thg=0.02)
    before = record(found("lwc", thg, 0.9, accuracy), kind="evaluate", config=config, thg=thg)
    flags = lower_elsewhere(now, [before, now])
    assert bool(flags) == flagged
    if flagged:
        assert flags == [
            f"flwc at th_g 0.02: 40.00%, but lwc found 10.00% at th_g {thg:g} in another run "
            "(docs/flags.md#another-run)"
        ]
    other = record(found("lwc", thg, 0.9, 0.0), kind="evaluate", config=config | {"exclude": ["fc*"]}, thg=thg)
    assert lower_elsewhere(now, [other]) == []
    for key, value, same in (("digest", "b", False), ("data_dir", "elsewhere", False), ("batch_size", 32, True)):
        of_data = config | {"dataset": images | {key: value}}
        other = record(found("lwc", thg, 0.9, accuracy), kind="evaluate", config=of_data, thg=thg)
        assert bool(lower_elsewhere(now, [other])) == (flagged and same)
    attacked = record(found("flwc", 0.02, 0.9, 0.4), kind="evaluate", config=config | {"weights": "b"}, thg=0.02)
    for digest, same in (("a", False), ("b", True), (None, True)):
        trained = record(found("lwc", thg, 0.9, accuracy), config=config, thg=thg, weights_digest=digest)
        assert bool(lower_elsewhere(attacked, [trained])) == (flagged and same)
    sampled = record(found("monte_carlo", 0.02, 0.9, 0.4, distribution={"mean": 0.8}), config=config, thg=0.02)
    assert lower_elsewhere(sampled, [before]) == []
