from mmlm.core.figure import LOSS, OTHER, Figure, declared, family_of, in_order, loss_term, shown_in

FIGURES = {
    "b": Figure("B", low="b_low", high="b_high"),
    "a": Figure("A", shown=("chart", "console")),
    "lines": Figure("lines", family=True),
    "lines/own": Figure("own"),
}


def test_a_value_without_a_declaration_is_shown_under_its_own_name():
    figure = declared(FIGURES, "probe/odd_thing")
    assert (figure.name, figure.heading, figure.group) == ("probe/odd_thing", "probe odd thing", OTHER)
    assert "table" in figure.shown
    assert "chart" in figure.shown


def test_the_order_is_that_of_the_declarations_then_that_of_appearance():
    assert in_order(FIGURES, ["z", "a", "y", "b", "z"]) == ["b", "a", "z", "y"]


def test_what_is_shown_where():
    names = ["a", "b", "b_low", "b_high", "odd"]
    assert shown_in("table", FIGURES, names) == ["b", "odd"], "the ends of an interval are part of their figure"
    assert shown_in("chart", FIGURES, names) == ["b", "a", "odd"]
    assert shown_in("console", FIGURES, names) == ["a"]
    assert shown_in("compare", FIGURES, names) == []


def test_a_value_below_a_family_is_a_line_of_it_unless_it_is_declared():
    assert family_of(FIGURES, "lines/encoder") == "lines"
    assert family_of(FIGURES, "lines/encoder/deep") == "lines"
    assert family_of(FIGURES, "lines/own") is None
    assert family_of(FIGURES, "lines") is None
    assert family_of(FIGURES, "a/encoder") is None, "only a family has lines"
    assert family_of(FIGURES, "odd") is None


def test_a_line_is_declared_by_its_family_and_has_helpers_of_its_own():
    figures = {
        "z": Figure("Z"),
        "by_kind": Figure("Kinds", share=True, low="low", high="high", chance="guess", family=True),
    }
    line = declared(figures, "by_kind/swap_colour")
    assert (line.name, line.share, line.family) == ("Kinds: swap colour", True, False)
    assert (line.low, line.high, line.chance) == ("low/swap_colour", "high/swap_colour", "guess/swap_colour")
    names = ["odd", "by_kind/b", "low/b", "high/b", "guess/b", "by_kind/a", "z"]
    assert shown_in("table", figures, names) == ["z", "by_kind/b", "by_kind/a", "odd"]
    assert declared({"by_kind": Figure("Kinds", chance=0.5, family=True)}, "by_kind/a").chance == 0.5


def test_a_prefix_reaches_the_names_that_a_figure_mentions():
    figure = Figure("gap", low="low", high="high", chance="guess").under("use/")
    assert (figure.low, figure.high, figure.chance) == ("use/low", "use/high", "use/guess")
    assert figure.helpers() == {"use/low", "use/high", "use/guess"}
    plain = Figure("gap", chance=0.25).under("use/")
    assert (plain.low, plain.high, plain.chance) == ("", "", 0.25)
    assert plain.helpers() == set()


def test_a_term_of_the_loss_is_known_by_its_group():
    term = loss_term("nats a token")
    assert term.group == LOSS
    assert term.higher_is_better is False
