"""What the report says of a table of true accuracies."""

import json

from nasjax import report

JUDGED = {
    "table": "tiny",
    "architectures": 4096,
    "found": {"accuracy": 91.3, "rank": 110, "percentile": 2.7, "regret": 0.33},
    "best": 91.63,
    "random": {"1": 90.02, "10": 91.16, "100": 91.43},
}


def write(folder, regrets, judged=True):
    lines = [
        {"phase": "search", "step": 10 * (i + 1), "oracle": {"regret": r}, "train_loss": 1.0}
        for i, r in enumerate(regrets)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps({"oracle": JUDGED} if judged else {}))


def test_one_sentence_says_how_good_the_found_network_is():
    text = report.format_oracle(JUDGED)
    assert "91.30% accurate, rank 110 of 4,096 (top 2.7%), 0.33 points below the best" in text
    assert "91.43% the best of 100" in text


def test_the_curve_is_read_from_the_log(tmp_path):
    write(tmp_path, [1.5, 0.8, 0.33])
    run = report.Run.load(tmp_path)
    assert report.anytime(run) == ([10.0, 20.0, 30.0], [1.5, 0.8, 0.33])
    assert "best of 100 at random" in report.oracle_plot(run)


def test_the_page_has_the_section_only_where_there_is_a_table(tmp_path):
    write(tmp_path, [1.5, 0.8])
    assert "rank 110 of 4,096" in report.write_report(tmp_path).read_text()
    write(tmp_path, [], judged=False)
    assert "The truth" not in report.write_report(tmp_path).read_text()


def test_several_methods_are_drawn_with_their_means():
    runs = [([1.0, 2.0], [3.0, 1.0]), ([1.0, 2.0], [2.0, 2.0])]
    svg = report.regret_plot({"drnas/entangled": runs, "drnas/plain": runs[:1]}, JUDGED)
    assert svg.count("<svg") == 1 and "drnas/plain" in svg and "mean of all" in svg


def test_the_stages_of_a_search_are_one_curve(tmp_path):
    lines = [
        {"phase": phase, "step": step, "oracle": {"regret": regret}, "train_loss": 1.0}
        for phase, step, regret in (
            ("search_1", 5, 3.0), ("search_1", 10, 2.0), ("search_2", 4, 1.0), ("search", 8, 0.5),
            ("retrain", 8, 9.0),
        )
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = report.Run.load(tmp_path)
    assert report.anytime(run) == ([5.0, 10.0, 14.0, 22.0], [3.0, 2.0, 1.0, 0.5])
    assert run.phases == ("search", "retrain")
