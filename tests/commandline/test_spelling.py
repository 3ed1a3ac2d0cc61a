import pytest

from polylight.arguments import with_switches


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        ("", ""),
        ("--json R", "--json=true R"),
        ("R --json", "R --json=true"),
        ("R --json false --csv", "R --json false --csv=true"),
        ("R --json=false", "R --json=false"),
        ("R --sort -score --json", "R --sort=-score --json=true"),
        ("--top -3 -h", "--top=-3 -h"),
        ("--sort score -h R", "--sort score -h R"),
        ("--top -h", "--top -h"),
        ("R -x --sort --json", "R -x --sort --json=true"),
    ],
)
def test_switches_stand_alone_and_values_may_have_a_minus(given, spelt):
    seen = []
    with_switches(seen.extend, "json", "csv")(given.split())
    assert seen == spelt.split()
