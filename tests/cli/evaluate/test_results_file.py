"""Evaluations in words, and which of several lines count."""

from mimcl.cli.evaluate.results_file import last_of_each, settings_in_words, shares_in_words


def line(nn, k=20, **others):
    return {"evaluation": "knn", "draw": 8, "settings": {"k": k}, "values": {"nn": nn}, **others}


def test_of_lines_alike_but_for_what_was_found_the_last_counts():
    first, again, other = line(0.1, details={"a": 1}), line(0.2, details={"a": 2}), line(0.3, k=5)
    assert last_of_each([first, {"step": 1, "draw": 8}, other, again]) == [again, other]
    assert last_of_each([line(0.1), line(0.1) | {"values": None}]) == [line(0.1)]


def test_a_spread_stands_beside_its_value_and_the_untrained_at_the_end():
    values = {
        "nn": 0.468,
        "1_shot": 0.176,
        "1_shot_std": 0.028,
        "untrained_1_shot": 0.155,
        "untrained_1_shot_std": 0.014,
    }
    assert shares_in_words(values) == "nn 46.8 %, 1_shot 17.6 ± 2.8 %; untrained: 1_shot 15.5 ± 1.4 %"
    assert shares_in_words({"nn": 0.5}) == "nn 50.0 %"
    assert settings_in_words({"k": 20, "shots": [1, 5]}) == "k 20, shots 1 5"
