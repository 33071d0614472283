"""Post-steps behind operators: what they compute, and that they are operators like any other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_states import merger_of, recipe_of

from evomerge.errors import ConfigurationError
from evomerge.merging import OPERATORS, check_merge
from evomerge.recipe import Merge, Recipe

LAYERS = 3
PLAIN = sorted(name for name in OPERATORS if OPERATORS[name].max_sources is None)


def family(dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    names = ["embed.weight", *(f"layers.{i}.up.weight" for i in range(LAYERS)), "head.weight"]
    base = {name: torch.randn(5, 4, generator=generator) for name in names}
    states = {"base": base}
    for model in "ab":
        states[model] = {
            name: value + 0.1 * torch.randn(5, 4, generator=generator)
            for name, value in base.items()
        }
    return {m: {n: v.to(dtype) for n, v in state.items()} for m, state in states.items()}


def merged(states, operator, **parameters):
    merger = merger_of(states, operator=operator.split(" | ")[0])
    return dict(merger.tensors(recipe_of(states, operator, **parameters)))


@pytest.mark.parametrize("operator", PLAIN)
@given(alpha=st.floats(-2, 2), beta=st.floats(-2, 2))
@settings(max_examples=8, deadline=None)
def test_lines_scales_what_an_operator_changed_layer_by_layer(operator, alpha, beta):
    states = family()
    plain = merged(states, operator)
    found = merged(states, f"{operator} | lines", lines_alpha=alpha, lines_beta=beta)
    for name, base in states["base"].items():
        depth = int(name.split(".")[1]) / (LAYERS - 1) if name.startswith("layers") else 0
        expected = base + (alpha + beta * depth) * (plain[name] - base)
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-5)


def test_lines_behind_task_arithmetic_is_the_operator_of_that_name():
    states = family()
    values = {"weight": {"a": 0.7, "b": -0.2}}
    one = merged(states, "lines", alpha=0.3, beta=0.6, **values)
    other = merged(states, "task_arithmetic | lines", lines_alpha=0.3, lines_beta=0.6, **values)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-6)


def test_steps_are_applied_one_after_another_each_with_its_own_numbers():
    states = family()
    plain = merged(states, "ties")
    found = merged(
        states,
        "ties | lines | lines",
        lines_alpha=0.5,
        lines_beta=0.0,
        lines2_alpha=0.2,
        lines2_beta=0.8,
    )
    for name, base in states["base"].items():
        depth = int(name.split(".")[1]) / (LAYERS - 1) if name.startswith("layers") else 0
        expected = base + 0.5 * (0.2 + 0.8 * depth) * (plain[name] - base)
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-6)


def test_low_precision_is_rounded_once_behind_the_last_step():
    low = family(torch.bfloat16)
    high = {m: {n: v.float() for n, v in state.items()} for m, state in low.items()}
    exact = merged(high, "task_arithmetic | lines", lines_alpha=0.37, lines_beta=0.4)
    for name, value in merged(
        low, "task_arithmetic | lines", lines_alpha=0.37, lines_beta=0.4
    ).items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, exact[name].bfloat16())


def test_random_masks_and_depth_go_together_where_layers_are_moved():
    """The depth is the slot's, the draw goes by the tensor's name there."""
    states = family()
    recipe = recipe_of(
        states, "dare_linear | lines", density=0.5, lines_alpha=0.0, lines_beta=1.0
    ).model_dump(mode="json")
    recipe["slots"] = [{"layer": 2}, {"layer": 0}]
    found = dict(merger_of(states).tensors(Recipe.model_validate(recipe)))
    base = states["base"]
    assert torch.equal(found["layers.0.up.weight"], base["layers.2.up.weight"])  # depth 0
    assert not torch.allclose(found["layers.1.up.weight"], base["layers.0.up.weight"])  # depth 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tis | lines", "unknown operator 'tis' .*ties"),
        ("ties | line", "unknown post-step 'line' .*lines"),
        ("ties | lines |", "unknown post-step ''"),
        ("| lines", "unknown operator ''"),
        ("aim", "'aim' is a post-step.*task_arithmetic \\| aim"),
        ("aim | lines", "'aim' is a post-step"),
    ],
)
def test_what_is_unknown_is_named(name, said):
    with pytest.raises(ConfigurationError, match=said):
        raise ConfigurationError(check_merge(Merge(operator=name, sources=("a",)), "base"))


def test_a_base_is_needed_even_by_what_needs_none():
    problems = check_merge(Merge(operator="linear | lines", sources=("base", "a")), "base")
    assert [problem.where for problem in problems] == ["sources"]


def test_blanks_around_the_pipe_make_no_other_recipe():
    one, other = (recipe_of(("base", "a"), name, ["a"]) for name in ("ties | lines", "ties|lines"))
    assert one.fingerprint == other.fingerprint
