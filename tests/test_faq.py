"""Every promise of the FAQ, with the tests that hold it; and those that no other file has."""

import ast
from pathlib import Path

import pytest
import torch
from strategies import normal

from ncfd import GaussianFrequencies, NCFDLoss
from ncfd.functional import gaussian_ncfd, ncfd_loss

ROOT = Path(__file__).resolve().parents[1]
ADVICE = ()  # nothing that a test could find wrong

HELD_BY: dict[str, tuple[str, ...]] = {
    "My two sets have the same distribution. Why is the loss not zero?": (
        "test_functional::test_null_floor",
        "test_functional::test_unbiased_loss_is_zero_on_average_where_the_biased_is_not",
    ),
    "It stopped falling. Has it converged?": ADVICE,
    "Can it be negative?": ("test_faq::test_only_the_unbiased_form_is_ever_negative",),
    "Which tensor do I give it: pixels, features, projections?": (
        "test_loss::test_normalize_compares_directions",
    ),
    "My batches have different sizes": ("test_functional::test_loss_is_that_of_the_loop",),
    "My sets are padded, or samples have weights": (
        "test_functional::test_only_the_ratios_of_weights_matter",
        "test_functional::test_zero_weight_is_an_absent_row",
        "test_adversary::test_rows_of_weight_zero_are_absent",
    ),
    "I have a batch of sets, (B, N, D)": ("test_functional::test_batched_loss_is_a_loop",),
    "I match several layers, or tokens under a mask": ("test_faq::test_tokens_under_a_mask",),
    "I have frequencies of my own": (
        "test_loss::test_module_is_the_function_at_fixed_frequencies",
        "test_loss::test_fixed_frequencies_are_a_buffer",
    ),
    "It runs out of memory": (
        "test_ops::test_peak_memory_of_the_loss_is_bounded",
        "test_functional::test_chunks_change_neither_the_loss_nor_its_gradients",
    ),
    "Do I get NaN gradients when both sets are equal?": (
        "test_functional::test_equal_inputs_give_exactly_zero_with_zero_slopes",
        "test_functional::test_nan_and_infinity_show",
    ),
    "Does it work under autocast, with bfloat16 features?": (
        "test_functional::test_every_dtype",
        "test_frequencies::test_autocast_does_not_reach_the_sampler",
        "test_transforms::test_compiled_loss_under_autocast",
    ),
    "I pass a CPU generator and my module is on the GPU": (
        "test_frequencies::test_a_cpu_generator_gives_the_same_numbers_on_the_device",
    ),
    "Does it work with DistributedDataParallel?": (
        "test_distributed::test_value_and_averaged_gradients_are_those_of_one_process",
    ),
    "Does it compile?": ("test_transforms::test_loss_compiles_without_a_break",),
    "Biased or unbiased? Which bandwidth? Is it an MMD?": (
        "test_functional::test_many_gaussian_frequencies_approach_the_gaussian_kernel",
        "test_functional::test_unbiased_loss_is_that_of_the_pairs",
        "test_faq::test_the_closed_form_is_half_the_squared_mmd_of_bandwidth_one_over_scale",
    ),
    "Does ψ really move?": ("test_loss::test_one_backward_trains_both_players",),
    "Do I need `maximize=True` or a minus sign?": (
        "test_loss::test_only_the_samplers_gradient_is_reversed",
        "test_loss::test_without_adversary_the_sampler_lowers_the_loss",
    ),
    "Learned frequencies made my result worse": ADVICE,
    "I trained on the distilled images and got chance level": (
        "test_docs::test_the_loader_shown_is_the_loader_used",
        "examples/test_distill::test_the_loader_gives_images_to_train_on",
    ),
    "Why is my figure below the published one?": ADVICE,
    "Is the score the best checkpoint?": (
        "examples/test_evaluation::test_the_figure_to_quote_is_that_of_the_last_epoch",
    ),
    "How does it compare with random images?": (
        "examples/test_evaluation::test_a_run_with_every_baseline",
    ),
    "My classes are unequal, or it is my own data": (
        "examples/test_data::test_a_small_class_gives_all_it_has",
        "examples/test_images::test_16_bits_have_white_at_65535_whatever_they_hold",
    ),
    "My evaluation network has batch norm and does badly": (
        "examples/test_parts::test_convnet_has_instance_norm_and_the_right_sizes",
    ),
    "How long does it take, and do I need a GPU?": ADVICE,
    "How does it differ from a sliced test against a normal distribution?": ADVICE,
    "And from optimal transport?": ("test_faq::test_the_loss_is_bounded",),
}


def test_every_answer_names_its_tests() -> None:
    page = (ROOT / "docs" / "guide" / "faq.md").read_text(encoding="utf-8")
    asked = [line[4:] for line in page.splitlines() if line.startswith("### ")]
    assert asked == list(HELD_BY)


@pytest.mark.parametrize("name", sorted({name for names in HELD_BY.values() for name in names}))
def test_tests_named_here_exist(name: str) -> None:
    file, function = name.split("::")
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_only_the_unbiased_form_is_ever_negative(alpha: float) -> None:
    found = []
    for seed in range(200):
        x, y, t = normal(seed, 4, 3), normal(1000 + seed, 5, 3), normal(2000 + seed, 8, 3)
        assert ncfd_loss(x, y, t, alpha=alpha) >= 0
        assert ncfd_loss(x, y, t, alpha=alpha, squared=True) >= 0
        assert gaussian_ncfd(x, y) >= 0
        found.append(float(ncfd_loss(x, y, t, squared=True, unbiased=True)))
    assert min(found) < 0 < max(found)


def test_tokens_under_a_mask() -> None:
    # B sets of L tokens, of which some are padding, against as many of another length.
    x, y, t = normal(0, 3, 7, 4), normal(1, 3, 5, 4), normal(2, 16, 4)
    lengths = [7, 2, 4]
    mask = torch.stack([(torch.arange(7) < n).double() for n in lengths])
    x = torch.where(mask.unsqueeze(-1) == 0, torch.nan, x)
    whole = ncfd_loss(x, y, t, x_weights=mask)
    alone = [ncfd_loss(x[b, :n], y[b], t) for b, n in enumerate(lengths)]
    torch.testing.assert_close(whole, torch.stack(alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_closed_form_is_half_the_squared_mmd_of_bandwidth_one_over_scale(scale: float) -> None:
    x, y = normal(0, 9, 3), normal(1, 6, 3) + 1

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        bandwidth = 1 / scale
        squares = (a.unsqueeze(1) - b).square().sum(-1)
        return (-squares / (2 * bandwidth**2)).exp().mean()

    mmd = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    torch.testing.assert_close(gaussian_ncfd(x, y, scale), mmd / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shift", [1.0, 1e3, 1e8])
def test_the_loss_is_bounded(shift: float) -> None:
    # |φx - φy| is 2 at the most.
    loss = NCFDLoss(GaussianFrequencies(3, 64))
    for seed in range(20):
        assert loss(normal(seed, 1, 3), normal(seed, 1, 3) + shift) <= 2**0.5 + 1e-6
