"""Formatting of results, and which lines count when an evaluation is repeated."""

from mimcl.cli.evaluate.results_file import format_results, format_settings, latest_results


def line(nn, k=20, **others):
    return {"evaluation": "knn", "draw": 8, "settings": {"k": k}, "values": {"nn": nn}, **others}


def test_the_last_line_of_a_repeated_evaluation_counts():
    first, again, other = line(0.1, details={"a": 1}), line(0.2, details={"a": 2}), line(0.3, k=5)
    assert latest_results([first, {"step": 1, "draw": 8}, other, again]) == [again, other]
    assert latest_results([line(0.1), line(0.1) | {"values": None}]) == [line(0.1)]


def test_deviations_follow_their_value_and_untrained_values_come_last():
    values = {
        "nn": 0.468,
        "1_shot": 0.176,
        "1_shot_std": 0.028,
        "untrained_1_shot": 0.155,
        "untrained_1_shot_std": 0.014,
    }
    assert format_results(values) == "nn 46.8 %, 1_shot 17.6 ± 2.8 %; untrained: 1_shot 15.5 ± 1.4 %"
    assert format_results({"nn": 0.5}) == "nn 50.0 %"
    ranks = {"rank_me": 59.04, "lidar": 42.65, "untrained_rank_me": 55.9, "untrained_lidar": 44.1}
    assert format_results(ranks) == "rank_me 59.0, lidar 42.6; untrained: rank_me 55.9, lidar 44.1"
    assert format_settings({"k": 20, "shots": [1, 5]}) == "k 20, shots 1 5"
