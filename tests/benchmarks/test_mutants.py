"""The mutations of `make mutants` are small, repeatable and real, and its table names modules and tests that exist."""

import ast
import random
from pathlib import Path

import pytest

from benchmarks.mutants.equivalent import ANY, EQUIVALENT
from benchmarks.mutants.operators import draw, mutations
from benchmarks.mutants.table import DESELECTED, MODULES, source_file

ROOT = Path(__file__).parents[2]

SOURCE = '''
def energy(x, y, rng, seed, *, scale=0.5, batch=64):
    """Text with - and 1 in it."""
    if x is None:
        raise ValueError(f"{x - 1}")
    total: float = -x.clamp(0, 1) + scale * max(x, y)
    log.update(total)
    print("of", 3 * total, flush=True)
    write(dumps(total, indent=1))
    generator = default_rng([seed, 7])
    return total.sum(dim=-1) if x < y and not rng else swap(x, y)
'''


def mutants() -> dict[str, str]:
    """Mutated line → kind."""
    return {mutation.lines(SOURCE)[1]: mutation.kind for mutation in mutations(SOURCE)}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("total: float = x.clamp(0, 1) + scale * max(x, y)", "sign"),
        ("total: float = -x + scale * max(x, y)", "dropped call"),
        ("total: float = -x.clamp(0, 1) - scale * max(x, y)", "operator"),
        ("total: float = -x.clamp(0, 1) + scale / max(x, y)", "operator"),
        ("total: float = -x.clamp(0, 1) + scale * min(x, y)", "function"),
        ("total: float = -x.clamp(1, 1) + scale * max(x, y)", "constant"),
        ("def energy(x, y, rng, seed, *, scale=1.0, batch=64):", "constant"),
        ("if x is not None:", "comparison"),
        ("if (not (x is None)):", "condition"),
        ("pass", "dropped call"),
        ("def energy(x, y, rng, seed, *, scale=0.5, batch=65):", None),  # as many rows at a time change no number
        ('print("of", 3 / total, flush=True)', None),
        ("write(dumps(total, indent=2))", None),
        ("generator = default_rng([7])", "seed"),
        ("generator = default_rng([seed])", "seed"),
        ("generator = default_rng([seed, 8])", "constant"),
        ("return total.sum(dim=0) if x < y and not rng else swap(x, y)", "axis"),
        ("return total.mean(dim=-1) if x < y and not rng else swap(x, y)", "function"),
        ("return total.sum(dim=-1) if x <= y and not rng else swap(x, y)", "comparison"),
        ("return total.sum(dim=-1) if x < y or not rng else swap(x, y)", "condition"),
        ("return total.sum(dim=-1) if x < y and rng else swap(x, y)", "condition"),
        ("return total.sum(dim=-1) if x < y and not rng else swap(y, x)", "arguments"),
        ("total: float = -x.clamp(0, 1) + scale * max(y, x)", None),  # of a maximum the order says nothing
    ],
)
def test_single_places_are_changed(line: str, kind: str | None) -> None:
    assert mutants().get(line) == kind


def test_every_mutant_compiles_differs_and_leaves_messages_alone() -> None:
    for mutation in draw(SOURCE, 999, random.Random(0)):
        changed = mutation.apply(SOURCE)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(SOURCE))
        assert 'raise ValueError(f"{x - 1}")' in changed and "Text with - and 1 in it." in changed


def test_the_sample_depends_on_the_seed_alone_and_kinds_take_turns() -> None:
    first, again, other = (draw(SOURCE, 6, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other and len(first) == len({mutation.kind for mutation in first}) == 6
    whole = draw(SOURCE, 999, random.Random(0))
    assert len(set(whole)) == len(whole) > 15 and set(whole) <= set(mutations(SOURCE))


def test_the_table_names_what_exists() -> None:
    for module, tests in MODULES.items():
        assert source_file(module, ROOT).is_file() and tests
        assert all((ROOT / test).is_file() for test in tests), module
    for test in DESELECTED:
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / path).read_text(), test


def test_mutations_that_change_nothing_are_still_there_and_have_a_reason() -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for (module, before, after), reason in EQUIVALENT.items():
        if module not in found:
            source = source_file(module, ROOT).read_text()
            found[module] = {mutation.lines(source) for mutation in mutations(source)}
            found[module] |= {(line, ANY) for line, _ in found[module]}
        assert (before, after) in found[module], (module, before, after)
        assert reason
    with pytest.raises(FileNotFoundError, match=r"faceclip\.gone"):
        source_file("faceclip.gone", ROOT)
