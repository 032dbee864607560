"""Calibration of window and margin against slow plain-Python definitions; YAML files changed in place."""

from __future__ import annotations

import math
import time
from pprint import pformat

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from miner import calibration, ranking, resampling, template, yaml_file
from miner.calibration import Setting
from miner.errors import UserError

# Flat lists of (query, score, relevant); the rank is the place in the query. Scores are eighths, so sums are exact.
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(-8, 8), st.sampled_from([-1, 0, 0, 1])), max_size=40).map(
    lambda rows: sorted(rows, key=lambda row: row[0])
)
SETTINGS = st.lists(
    st.builds(Setting, st.integers(1, 4), st.sampled_from(["absolute", "relative"]), st.sampled_from([0, 0.125, 0.5])),
    min_size=1,
    max_size=3,
)
LOWEST = [0.5, 0.25, -0.25, 0.75]


def lists(rows: list[tuple]) -> tuple[np.ndarray, ...]:
    query, score, relevant = (np.array([row[i] for row in rows]) for i in range(3))
    rank = ranking.position(query) + 1 if rows else np.empty(0)
    lowest = np.array(LOWEST, np.float32)[query.astype(np.int64)]
    columns = (query, rank, score / 8, lowest, relevant)
    kinds = (np.int64, np.int32, np.float32, np.float32, np.int8)
    return tuple(column.astype(kind) for column, kind in zip(columns, kinds, strict=True))


def curve(rows, grid, negatives=2, **more):
    return calibration.curve(*lists(rows), negatives=negatives, grid=grid, seed=13, samples=50, **more)


def kept(rows, setting: Setting, negatives: int) -> dict[int, list[tuple]]:
    found: dict[int, list[tuple]] = {row[0]: [] for row in rows}
    ranks = dict.fromkeys(found, 0)
    for query, score, relevant in rows:
        ranks[query] += 1
        margin = setting.margin * (1 if setting.kind == "absolute" else abs(LOWEST[query]))
        passes = ranks[query] >= setting.rank_min and score / 8 <= LOWEST[query] - margin
        if passes and len(found[query]) < negatives:
            found[query].append((score / 8, relevant))
    return found


def test_hardness_is_of_the_plain_scores_where_the_margin_weighs_others():
    rows = [(0, 3, 0), (0, 2, 1), (1, 2, 0)]
    grid = [Setting(1, "relative", 0)]
    plain = np.array([0.9, 0.7, 0.2], np.float32)
    columns = lists(rows)
    (weighed,) = calibration.curve(*columns, negatives=2, grid=grid, seed=13, samples=50)
    (point,) = calibration.curve(*columns, plain, negatives=2, grid=grid, seed=13, samples=50)
    assert point._replace(hardness=weighed.hardness) == weighed
    assert weighed.hardness != point.hardness == pytest.approx(plain.mean())


@given(ROWS, SETTINGS, st.integers(1, 5))
def test_a_point_counts_what_its_setting_keeps(rows, grid, negatives):
    for setting, point in zip(grid, curve(rows, grid, negatives), strict=True):
        by_query = kept(rows, setting, negatives)
        everything = [one for found in by_query.values() for one in found]
        some = any(row[2] == 0 for row in rows)
        judged = [relevant for _, relevant in everything if relevant >= 0 or not some]
        queries = max(1, len(by_query))
        assert point[:3] == setting
        assert point.kept == len(everything) / queries
        assert point.full == sum(len(found) >= negatives for found in by_query.values()) / queries
        assert (point.judged, point.relevant) == (len(judged), judged.count(1))
        assert point.fn == (judged.count(1) / len(judged) if judged else None)
        assert point.fn_all == (judged.count(1) / len(everything) if everything else None)
        assert point.hardness == (sum(score for score, _ in everything) / len(everything) if everything else None)
        assert 0 <= point.interval[0] <= (point.fn or 0) or not judged
        assert (point.fn or 0) <= point.upper <= point.interval[1] <= 1


@given(ROWS)
def test_queries_without_any_candidate_are_counted_when_told(rows):
    (plain,), (more,) = (curve(rows, [Setting(1, "relative", 0)], queries=n) for n in (None, 40))
    present = max(1, len({row[0] for row in rows}))
    assert more.kept == pytest.approx(plain.kept * present / 40)
    assert more.full == pytest.approx(plain.full * present / 40)
    assert more[5:9] == plain[5:9]


@pytest.mark.parametrize(("rest", "count", "judged"), [(-1, None, 3), (0, None, 2), (-1, False, 1), (0, True, 3)])
def test_the_unjudged_count_as_irrelevant_only_where_nothing_else_is_judged_so(rest, count, judged):
    rows = [(0, 1, 1), (0, 0, rest), (0, 0, -1)]
    (point,) = curve(rows, [Setting(1, "relative", 0)], negatives=3, count_unjudged=count)
    assert (point.kept, point.judged, point.relevant) == (3.0, judged, 1)
    assert point.fn == pytest.approx(1 / judged)
    assert point.fn_all == pytest.approx(1 / 3)


def test_nothing_is_safe_where_nothing_is_known():
    (point,) = curve([], [Setting(1, "relative", 0.1)])
    assert (point.kept, point.fn, point.interval, point.upper) == (0.0, None, (0.0, 1.0), 1.0)
    assert calibration.choose([point], 0.99) is None
    assert calibration.lacking([point], 0.5) is None


def simulated(queries: int, seed: int) -> tuple[np.ndarray, ...]:
    """Every query has its own share of relevant passages, one in ten on average: 2.5 of 10, or none."""
    chance = np.random.default_rng(seed)
    bad = chance.random(queries) < 0.4
    relevant = (chance.random((queries, 10)) < 0.25) & bad[:, None]
    query, rank = np.repeat(np.arange(queries), 10), np.tile(np.arange(1, 11), queries).astype(np.int32)
    score = np.tile(np.linspace(0.5, 0.4, 10, dtype=np.float32), queries)
    return query, rank, score, np.full(len(query), 0.9, np.float32), relevant.ravel().astype(np.int8)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Of 200 intervals that hold it 95 times in 100, five standard deviations below 190 are 174; of bounds too."""
    points = [
        calibration.curve(*simulated(100, i), negatives=10, grid=[Setting(1, "relative", 0)], seed=i, samples=400)[0]
        for i in range(200)
    ]
    assert sum(point.interval[0] <= 0.1 <= point.interval[1] for point in points) >= 174
    assert 174 <= sum(point.upper >= 0.1 for point in points) < 200


def test_the_interval_is_that_of_whole_queries():
    """Passages of one query err together: ten copies of each judgment say no more than one."""
    relevant = np.repeat(np.arange(100) < 10, 10).astype(np.int8)
    query, rank, score, lowest, _ = simulated(100, 0)
    (point,) = calibration.curve(
        query, rank, score, lowest, relevant, negatives=10, grid=[Setting(1, "relative", 0)], seed=1
    )
    deviation = math.sqrt(0.1 * 0.9 / 100)
    assert point.interval == pytest.approx((0.1 - 1.96 * deviation, 0.1 + 1.96 * deviation), abs=0.02)


def test_the_same_seed_gives_the_same_interval_in_any_chunks(monkeypatch):
    data = simulated(50, 3)
    grid = calibration.grid()
    whole = calibration.curve(*data, negatives=7, grid=grid, seed=5)
    assert whole == calibration.curve(*data, negatives=7, grid=grid, seed=5)
    assert whole != calibration.curve(*data, negatives=7, grid=grid, seed=6)
    (draws,) = resampling.draws(50, 5, 100)
    assert draws.sum(axis=0).tolist() == [50.0] * 100
    monkeypatch.setattr(resampling, "AT_ONCE", 350)
    assert [part.shape for part in resampling.draws(50, 5, 100)] == [(50, 7)] * 14 + [(50, 2)]
    assert whole == calibration.curve(*data, negatives=7, grid=grid, seed=5)


def test_a_thousand_queries_take_two_seconds():
    query = np.repeat(np.arange(1000), 100)
    rank = np.tile(np.arange(1, 101, dtype=np.int32), 1000)
    score, lowest = (0.8 - 0.004 * rank).astype(np.float32), np.full(len(query), 0.8, np.float32)
    relevant = (query * 100 + rank) % 7 - 5  # -1 and 0 and 1 come, and smaller values are cut
    start = time.process_time()
    grid = calibration.grid()
    points = calibration.curve(
        query, rank, score, lowest, np.maximum(relevant, -1).astype(np.int8), negatives=7, grid=grid, seed=1
    )
    assert len(points) == len(set(grid)) == 60
    assert time.process_time() - start < 4  # 0.5 s on the machine it was written on


def binomial(errors: int, trials: int, share: float) -> float:
    return sum(math.comb(trials, i) * share**i * (1 - share) ** (trials - i) for i in range(errors + 1))


@given(st.integers(0, 40), st.integers(1, 60))
def test_the_exact_bound_leaves_five_percent(errors, more):
    bound = calibration.upper_bound(errors, errors + more)
    assert binomial(errors, errors + more, bound) == pytest.approx(0.05, rel=1e-6)


def test_bounds_by_arithmetic():
    assert calibration.upper_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert calibration.upper_bound(0, 0) == calibration.upper_bound(3, 3) == 1.0
    assert calibration.upper_bound(1001, 5005) == pytest.approx(calibration.upper_bound(1000, 5000), abs=1e-4)


@given(st.floats(0.001, 0.9))
def test_needed_is_the_smallest_count_that_shows_the_target(target):
    count = calibration.needed(target)
    assert calibration.upper_bound(0, count) <= target * (1 + 1e-9)
    assert count == 1 or calibration.upper_bound(0, count - 1) > target * (1 - 1e-9)


def test_needed_for_five_percent_is_59():
    assert calibration.needed(0.05) == 59


def point(kept: float, upper: float, hardness: float, fn: float = 0.0, judged: int = 10) -> calibration.Point:
    counts = (judged, round(fn * judged), fn, fn, (0.0, upper))
    return calibration.Point(1, "relative", 0.0, kept, 1.0, *counts, upper=upper, hardness=hardness)


def test_the_most_kept_then_the_hardest_is_chosen():
    unsafe, few, soft, hard = point(7, 0.2, 0.9), point(5, 0.01, 0.9), point(6, 0.05, 0.5), point(6, 0.04, 0.6)
    assert calibration.choose([unsafe, few, soft, hard], 0.05) is hard
    assert calibration.choose([soft, soft._replace(margin=0.1)], 0.05) is soft
    assert calibration.choose([unsafe], 0.05) is None


def test_what_is_lacking():
    clean, worse, bad = point(5, 0.26, 0.5), point(5, 0.05, 0.5, fn=0.02, judged=400), point(5, 0.2, 0.5, fn=0.1)
    assert calibration.lacking([clean, bad], 0.05) == 49  # 59 in all, 10 are there
    assert abs(calibration.lacking([worse], 0.03) - 3200) <= 1  # three times nearer: nine times as many
    assert calibration.lacking([bad], 0.05) is None
    assert calibration.lacking([bad, worse], 0.05) == 0


PAIRS = st.sets(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=30).map(sorted)


@given(PAIRS, st.integers(0, 2**63 - 1), st.floats(0.01, 0.99))
def test_some_positives_are_hidden_and_some_stay(pairs, seed, share):
    positives = np.array([(q, d, 1) for q, d in pairs], np.int64).reshape(-1, 3)
    queries, docs = ranking.mix(np.arange(5)), ranking.mix(np.arange(100, 110))
    hidden = calibration.hide(positives, queries, docs, seed, share)
    for query in range(5):
        own = positives[:, 0] == query
        size, count = int(own.sum()), int(hidden[own].sum())
        assert count == (0 if size < 2 else min(max(math.floor(share * size + 0.5), 1), size - 1))
        alone = calibration.hide(positives[own], queries, docs, seed, share)
        assert alone.tolist() == hidden[own].tolist(), "depends on the query's own pairs alone"
    turned = calibration.hide(positives[::-1], queries, docs, seed, share)
    assert turned[::-1].tolist() == hidden.tolist()


def test_another_seed_hides_others():
    positives = np.array([(q, d, 1) for q in range(20) for d in range(6)], np.int64)
    queries, docs = ranking.mix(np.arange(20)), ranking.mix(np.arange(100, 106))
    one, other = (calibration.hide(positives, queries, docs, seed, 0.5) for seed in (1, 2))
    assert one.sum() == other.sum() == 60
    assert (one != other).any()


JOB = """\
# a job
data:
  path: data  # where
mining:     # how
  # about depth
  depth: 100   # deep
  index: {kind: flat, gpu: true}  # exact
  # margin_relative: 0.05

llm:
  model: "x" # quoted
"""


def test_keys_are_changed_and_put_in_and_all_else_stays():
    values = {"mining.depth": 200, "mining.margin_absolute": None, "mining.index.refine": 8, "teacher.model": "a: b"}
    expected = JOB.replace("100 ", "200 ").replace("{kind", "{refine: 8, kind")
    expected = expected.replace("# how\n", "# how\n  margin_absolute: null\n") + "teacher:\n  model: 'a: b'\n"
    assert yaml_file.set_values(JOB, values) == expected


def test_in_a_file_of_init_the_new_section_comes_last():
    """Otherwise keys that are commented out there would belong to another section."""
    text = template.job_file()
    changed = yaml_file.set_values(text, {"mining.rank_min": 3, "mining.margin_relative": 1e-7})
    assert changed == text + "mining:\n  margin_relative: 1.0e-07\n  rank_min: 3\n"


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("", "mining:\n  depth: 7\n"),
        ("# all\n", "# all\nmining:\n  depth: 7\n"),
        ("a: 1", "a: 1\nmining:\n  depth: 7\n"),
        ("\ufeffa: 1\r\n", "\ufeffa: 1\r\nmining:\r\n  depth: 7\r\n"),
        ("mining: # c\n  # x\nb: 1\n", "mining: # c\n  depth: 7\n  # x\nb: 1\n"),
        ("mining: ~\nb: 1\n", "mining:\n  depth: 7\nb: 1\n"),
        ("mining: {}", "mining: {depth: 7}"),
        ("{a: [1], mining: }", "{a: [1], mining: {depth: 7} }"),
        ("{ # c\n a: 1}", "{mining: {depth: 7},  # c\n a: 1}"),
        ("mining: !!map {a: 1}", "mining: !!map {depth: 7, a: 1}"),
        ("mining:\n    a: |\n      x\n\n# c\n", "mining:\n    depth: 7\n    a: |\n      x\n\n# c\n"),
        ("mining:\n  depth:   # c\n", "mining:\n  depth: 7   # c\n"),
        ("mining:\n  depth: 0x7 # c\n", "mining:\n  depth: 0x7 # c\n"),
        ("mining:\n  depth: >\n    a\n    b\n  # c\nb: 1\n", "mining:\n  depth: 7\n  # c\nb: 1\n"),
        ("mining:\n  depth: 'a\n    b' # c\n", "mining:\n  depth: 7 # c\n"),
        ("a: &a {x: 1}\nmining:\n  <<: *a # c\n", "a: &a {x: 1}\nmining:\n  depth: 7\n  <<: *a # c\n"),
        ("mining:\n  a:\n  - b: 1 # c\n  # d\ne: 2\n", "mining:\n  depth: 7\n  a:\n  - b: 1 # c\n  # d\ne: 2\n"),
        ("a: 1\n...\n", "a: 1\nmining:\n  depth: 7\n...\n"),
    ],
)
def test_a_file_may_be_written_in_many_ways(text, changed):
    assert yaml_file.set_values(text, {"mining.depth": 7}) == changed


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mining: 3\n", "a value or list stands where a section should"),
        ("mining:\n- depth: 3\n", "a value or list stands where a section should"),
        ("mining:\n  depth:\n    a: 1\n", "a section or list stands there"),
        ("mining:\n  depth: [1,\n    2] # c\n", "a section or list stands there"),
        ("a: &a {x: 1}\nmining: *a\n", "an alias stands there"),
        ("mining:\n  depth: &d 3\na: *d\n", "cannot be read"),
        ("mining: [\n", "cannot be read"),
        ("a: 1\n---\nb: 1\n", "cannot be read"),
    ],
)
def test_what_cannot_be_changed_without_loss_is_refused(text, why):
    with pytest.raises(UserError, match=rf"^mining\.depth: .*{why}.*set it by hand$"):
        yaml_file.set_values(text, {"mining.depth": 7})


KEYS = st.sampled_from(["a", "b", "c", "d e", "yes", "1"])
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.just("x # y: {")
)
TREES = st.dictionaries(
    KEYS, st.recursive(SCALARS, lambda s: st.dictionaries(KEYS, s, max_size=3) | st.lists(s), max_leaves=8)
)


@given(TREES, KEYS, KEYS, SCALARS, st.sampled_from([None, False, True]), st.data())
def test_what_is_read_back_is_the_change_and_the_comments_stay(tree, section, key, value, flow, data):
    text = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True, width=10**9, sort_keys=False)
    if not flow and tree:
        lines = text.split("\n")
        comments = data.draw(st.lists(st.integers(0, 9), min_size=len(lines), max_size=len(lines)))
        plain = [line.rstrip().endswith(":") or line.lstrip().startswith("- ") for line in lines]
        marks = zip(lines, comments, plain, strict=True)
        commented = "\n".join(f"{line}  # note {c}" if c > 5 and p else line for line, c, p in marks)
        text = commented if read(commented) == tree else text
    expected = yaml.safe_load(text)
    there = expected.get(section)
    try:
        changed = yaml_file.set_values(text, {f"{section}.{key}": value})
    except UserError:
        fits = there is None or (isinstance(there, dict) and not isinstance(there.get(key), dict | list))
        assert not fits, text
        return
    expected[section] = {**(there or {}), key: value}
    assert pformat(yaml.safe_load(changed)) == pformat(expected)
    gone = [line for line in text.split("\n") if line not in changed.split("\n")]
    assert len(gone) <= 1 or flow
    assert changed.count("# note") == text.count("# note")


def read(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
