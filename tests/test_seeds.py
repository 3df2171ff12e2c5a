import torch

from worstcase.seeds import derived_seed, drawing_by


def test_derived_seeds_differ_in_the_bits_that_a_cpu_generator_uses():
    seeds = {derived_seed(0, epoch, batch) % 2**32 for epoch in range(20) for batch in range(200)}
    assert len(seeds) == 4000


def test_drawing_by_depends_on_its_parts_and_restores_the_generator():
    torch.manual_seed(5)
    with drawing_by(0, [1, 2]):
        first = torch.rand(3)
    after = torch.rand(3)
    with drawing_by(0, [1, 2]):
        assert torch.equal(first, torch.rand(3))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
