"""Tables: ours beside the paper."""

from __future__ import annotations

from diffsel.studies.tables import Value, agreement, markdown


def test_agreement_counts_pairs_in_rows_and_columns() -> None:
    expected = {("a", "x"): 10.0, ("a", "y"): 20.0, ("b", "x"): 30.0, ("b", "y"): (5.0, 0.1), ("a", "word"): "yes"}
    values = {
        ("a", "x"): Value(1, 0, 0.1, 3),
        ("a", "y"): Value(2, 0, 0.1, 3),  # as in the paper, apart
        ("b", "x"): Value(1.1, 0, 0.1, 3),  # above a, x as in the paper, not apart
        ("b", "y"): Value(9, 0, 0.1, 3),  # above b, x and above a, y: both not as in the paper, apart
    }
    text = agreement(values, expected)
    assert "of 4 pairs" in text
    assert "2 stand as in the paper" in text
    assert "of 3 are apart, 1 of these as in the paper" in text
    assert agreement({}, expected) == ""


def test_pairs_across_ipcs_do_not_count_as_order() -> None:
    """More images teach more, whatever selects them."""
    places = {(f"set, IPC {ipc}", method): (ipc, method) for ipc in (10, 100) for method in ("RDED", "ours")}
    expected = {place: ipc + 5.0 * (method == "ours") for place, (ipc, method) in places.items()}
    values = {place: Value(ipc - 5.0 * (method == "ours"), 0, 0.1, 3) for place, (ipc, method) in places.items()}
    assert agreement(values, expected) == (
        "Order: of 2 pairs in a row or column within one IPC, 0 stand as in the paper (the intervals of 2 are apart, 0 of "
        "these as in the paper); of 2 pairs in a row or column across IPCs, 2 stand as in the paper (the intervals of 2 are "
        "apart, 2 of these as in the paper)."
    )


def test_single_students_are_never_apart() -> None:
    values = {("set", "x"): Value(10.0), ("set", "y"): Value(90.0), ("set", "z"): Value(50.0, 1.0, 2.5, 3)}
    told = agreement(values, {("set", "x"): 1.0, ("set", "y"): 2.0, ("set", "z"): 1.5})
    assert "3 stand as in the paper (the intervals of 0 are apart, 0 of these" in told


def test_markdown_escapes_and_sets_ours_beside_the_paper() -> None:
    text = markdown("T", [("a|b", "x")], {("a|b", "x"): Value(51.25, 1.0, 2.48, 3, "toy")}, {("a|b", "x"): (50.0, 0.3)}, "so.")
    assert "| a\\|b | **51.2 ± 2.5** (50.0 ± 0.3) |" in text
    assert "| 51.25 | 1.00 | 48.77 to 53.73 | 50.0 ± 0.3 |" in text
