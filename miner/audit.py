"""Audit training files: read them all once, check, compare, estimate, and say what was found where.

Bounded memory: a few numbers a row, 16 bytes a text, and the texts of a sample of queries. Texts that are shown come
from a second reading, as far as the last row that is shown.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miner import audit_checks, audit_tables, encoders, firewall, languages, style
from miner.audit_checks import Findings, Hit, Lengths, Log, Sample, Settings
from miner.bounds import exact_interval
from miner.config import Firewall, Job
from miner.defects import DEFECTS, SEVERITIES
from miner.errors import UserError
from miner.forms import NEGATIVE, POSITIVE, QUERY, ROLES, Example
from miner.readers import training
from miner.readers.training import Source

BATCH = 512
LENGTH_DIFFERENCE, FALSE_NEGATIVES, RANDOM, DRIFT = 0.5, 0.05, 0.25, 0.02
Read = tuple[int, Example, list[bytes]]


@dataclass(frozen=True)
class Options:
    """What to audit. form: of all files, None to tell each. job: gives encoder and judge for the estimates, on so many
    queries; 0: none. keep_all: all places, not only those shown, as a fix needs them."""

    files: Sequence[Path]
    form: str | None = None
    corpus: Path | None = None
    firewall: Sequence[Path] = ()
    job: Job | None = None
    encoder_sample: int = 300
    judge_sample: int = 0
    settings: Settings = field(default_factory=Settings)
    keep_all: bool = False


@dataclass
class Report:
    """findings: by severity, then code. shown: their first places. statistics: lines. worst: the highest severity."""

    files: list[dict[str, Any]]
    rows: int
    findings: list[dict[str, Any]]
    statistics: list[str]
    measured: dict[str, Any]
    sources: list[Source]
    by_row: dict[int, list[tuple[str, int, int]]]

    @property
    def worst(self) -> str | None:
        found = {finding["severity"] for finding in self.findings}
        return next((name for name in reversed(SEVERITIES) if name in found), None)

    def fails(self, at: str) -> bool:
        worst = self.worst
        return worst is not None and SEVERITIES.index(worst) >= SEVERITIES.index(at)


def run(options: Options) -> Report:
    """Raises UserError for a file that cannot be opened, or of no known form."""
    corpus = training.open_corpus(options.corpus) if options.corpus else None
    sources = [one for path in options.files for one in training.open_file(path, options.form, corpus)]
    screen = _screen(options.firewall)
    encoder = _encoder(options)
    scan = _Scan(sources, options.settings, Findings(options.settings.shown, options.keep_all), screen)
    scan.read()
    names, kinds = [source.form for source in sources], [source.kind for source in sources]
    audit_tables.check_rows(scan.log, kinds, names, scan.found, options.settings)
    audit_tables.check_places(scan.log, names, scan.found, options.settings)
    measured, lines = _measure(scan, options, encoder)
    rows = [sum(1 for number in scan.log.file if number == i) for i in range(len(sources))]
    files = [
        {"path": str(source.path), "split": source.split, "form": source.form, "rows": count}
        for source, count in zip(sources, rows, strict=True)
    ]
    texts = _texts(sources, scan.found)
    findings = [_finding(code, scan, texts) for code in sorted(scan.found.counts, key=_order)]
    return Report(files, len(scan.log.file), findings, lines, measured, sources, scan.found.by_row)


def _order(code: str) -> tuple[int, str]:
    return -SEVERITIES.index(DEFECTS[code].severity), code


def _screen(paths: Sequence[Path]) -> firewall.Screen | None:
    """Ids are left out: training files number their passages on their own, if at all."""
    entries = [Firewall(path=str(path), ids=False) for path in paths]  # type: ignore[call-arg]
    return firewall.Screen(firewall.read(entries)) if entries else None


def _encoder(options: Options) -> encoders.Encoder | None:
    """Loaded before anything is read: a missing model is told at once."""
    return encoders.load(options.job.encoder) if options.job and options.encoder_sample else None


@dataclass
class _Scan:
    """One reading of all files."""

    sources: list[Source]
    settings: Settings
    found: Findings
    screen: firewall.Screen | None
    log: Log = field(default_factory=Log)
    lengths: Lengths = field(default_factory=Lengths)
    sample: Sample = field(default_factory=Sample)

    def read(self) -> None:
        self.sample.seed = self.settings.seed
        for texts in {id(source.texts): source.texts for source in self.sources if source.texts}.values():
            for place, broken in texts.broken:
                self.found.add(broken.code, -1, value=f"{place}: {broken.reason}")
        rows = self._rows()
        while batch := list(itertools.islice(rows, BATCH)):
            audit_checks.check_near(batch, self.found, self.settings)
            if self.screen is not None:
                self._check_evaluation(batch, self.screen)

    def _rows(self) -> Iterator[Read]:
        for number, source in enumerate(self.sources):
            for entry in source:
                row = self.log.open_row(number, entry.number)
                if entry.example is None:
                    told = entry.broken or training.Broken("F01", "")
                    self.found.add(told.code, row, value=told.reason)
                    continue
                audit_checks.check_row(
                    row, source.form, entry.values, entry.example, self.log, self.found, self.settings
                )
                digests = self.log.fill(row, source.form, entry.values, entry.example)
                self.sample.add(row, entry.example)
                for role, _, text in entry.example.texts():
                    self.lengths.add(role, text)
                yield row, entry.example, digests

    def _check_evaluation(self, batch: list[Read], screen: firewall.Screen) -> None:
        places = [(row, *one) for row, example, _ in batch for one in example.texts()]
        for asked in (True, False):
            mine = {f"{row} {role} {slot}": text for row, role, slot, text in places if (role == QUERY) == asked}
            kind: firewall.Kind = "query" if asked else "passage"
            for told in screen.refuse(kind, mine, mine.values()):
                row, role, slot = map(int, told.id.split())
                code = f"E0{(1 if asked else 3) + (told.reason != 'firewall_copy')}"
                self.found.add(code, row, role, slot, f"{told.place}: {mine[told.id]}")

    def place(self, row: int) -> str:
        return self.sources[self.log.file[row]].place(self.log.number[row]) if row >= 0 else ""


def _texts(sources: list[Source], found: Findings) -> dict[tuple[int, int, int], str]:
    """The texts at the places that are shown without a value: read again, up to the last of them."""
    hits = [hit for hits in found.places.values() for hit in hits if hit.value is None and hit.row >= 0]
    wanted = {hit.row for hit in hits}
    texts: dict[tuple[int, int, int], str] = {}
    if wanted:
        entries = itertools.chain.from_iterable(sources)
        for row, entry in enumerate(itertools.islice(entries, max(wanted) + 1)):
            if row in wanted and entry.example is not None:
                texts |= {(row, role, slot): text for role, slot, text in entry.example.texts()}
    return texts


def _finding(code: str, scan: _Scan, texts: dict[tuple[int, int, int], str]) -> dict[str, Any]:
    def place(hit: Hit) -> dict[str, Any]:
        value = hit.value if hit.value is not None else texts.get((hit.row, hit.role, hit.slot), "")[:200]
        where = f"{ROLES[hit.role]} {hit.slot + 1}" if hit.slot >= 0 and hit.role != QUERY else ""
        where = "query" if hit.slot >= 0 and hit.role == QUERY else where
        return {"place": scan.place(hit.row), "where": where, "value": value}

    defect = DEFECTS[code]
    shown = [place(hit) for hit in scan.found.places[code]]
    return {
        "code": code,
        "severity": defect.severity,
        "what": defect.what,
        "count": scan.found.counts[code],
        "places": shown,
    }


# ---------------------------------------------------------------- statistics


def _measure(scan: _Scan, options: Options, encoder: encoders.Encoder | None) -> tuple[dict[str, Any], list[str]]:
    measured: dict[str, Any] = {"lengths": _lengths(scan), "scripts": _scripts(scan)}
    sample = scan.sample.both()
    told = _style(sample, options.settings.seed)
    measured["style"] = {**vars(told), "features": told.features[:6]} if told.verdict != "too_few" else vars(told)
    if told.verdict in ("warn", "refuse"):
        scan.found.add("D02", -1, value=_style_line(told))
    measured["languages"] = _languages(scan, sample)
    lines = [_length_line(measured["lengths"]), _script_line(measured["scripts"]), _language_line(measured)]
    lines.append(f"style: {_style_line(told)}")
    if options.job is not None:
        lines += _estimate(scan, sample, options, encoder, measured)
    return _finite(measured), lines


def _finite(value: Any) -> Any:
    """NaN as None: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and value != value else value


def _lengths(scan: _Scan) -> dict[str, Any]:
    lengths = scan.lengths
    difference = lengths.difference()
    if difference is not None and abs(difference) >= LENGTH_DIFFERENCE:
        scan.found.add("D01", -1, value=f"standardised difference {difference:.2f} (of log characters)")
    means = {f"{ROLES[role]} characters": round(lengths.mean(role), 1) for role in (QUERY, POSITIVE, NEGATIVE)}
    return means | {"difference": difference}


def _scripts(scan: _Scan) -> dict[str, dict[str, int]]:
    counted = zip(ROLES, scan.lengths.scripts, strict=True)
    return {name: dict(sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:5]) for name, counts in counted}


def _length_line(found: dict[str, Any]) -> str:
    means = ", ".join(f"{name.split()[0]} {found[f'{name} characters']:g}" for name in ROLES)
    difference = found["difference"]
    told = "too few texts" if difference is None else f"{difference:+.2f} standard deviations (log)"
    return f"mean characters: {means}; negatives against positives {told}"


def _script_line(found: dict[str, dict[str, int]]) -> str:
    parts = [f"{name} {', '.join(f'{script} {n:,}' for script, n in counts.items())}" for name, counts in found.items()]
    return f"scripts: {'; '.join(parts)}"


def _languages(scan: _Scan, sample: list[tuple[bytes, audit_checks.Group]]) -> dict[str, Any] | None:
    """Counts by role in the sampled queries, one positive and one negative of each, and the share of the negatives that
    are in none of the languages of their query's positives; None without the extra.
    """
    if not languages.installed():
        return None
    counts: list[Counter[str]] = [Counter(), Counter(), Counter()]
    told, other = 0, Counter[str]()
    for key, group in sample:
        spoken = {languages.language(text) for text in group.positives} - {""}
        negative = languages.language(group.negatives[key[-1] % len(group.negatives)])
        one = languages.language(group.positives[0])
        for role, name in ((QUERY, languages.language(group.query)), (POSITIVE, one), (NEGATIVE, negative)):
            counts[role][name or "not told"] += 1
        if spoken and negative:
            told += 1
            other[negative] += negative not in spoken
    low, high = exact_interval(other.total(), told) if told else (0.0, 1.0)
    drift = {"negatives": told, "share": other.total() / told if told else None, "low": low, "high": high}
    if low > DRIFT:
        named = ", ".join(f"{name} {count}" for name, count in other.most_common(5) if count)
        scan.found.add("D06", -1, value=f"{_interval(drift)} of {told} sampled: {named}")
    return {name: dict(count.most_common(5)) for name, count in zip(ROLES, counts, strict=True)} | {"drift": drift}


def _language_line(measured: dict[str, Any]) -> str:
    found = measured["languages"]
    if found is None:
        return f"languages: not told apart; {languages.HINT}"
    parts = [f"{name} {', '.join(f'{code} {n:,}' for code, n in found[name].items()) or 'none'}" for name in ROLES]
    drift = found["drift"]
    return f"languages: {'; '.join(parts)}; negatives unlike their positives {_interval(drift)} of {drift['negatives']}"


def _style(sample: list[tuple[bytes, audit_checks.Group]], seed: int) -> style.Style:
    """One positive and one negative of each sampled query, so that both kinds weigh the same."""
    texts: list[str] = []
    for key, group in sample:
        texts += [group.positives[0], group.negatives[key[-1] % len(group.negatives)]]
    second = [bool(i % 2) for i in range(len(texts))]
    return style.audit(texts, second, [key.hex() for key, _ in sample for _ in range(2)], seed)


def _style_line(told: style.Style) -> str:
    if told.verdict == "too_few":
        return f"no verdict, {told.needed}"
    features = ", ".join(name for name, _ in told.features[:4])
    size = f"{told.rows:,} texts of {told.groups:,} queries"
    return f"{told.verdict}, AUC {told.auc:.2f} ({told.low:.2f}-{told.high:.2f}) on {size}: {features}"


def _estimate(
    scan: _Scan,
    sample: list[tuple[bytes, audit_checks.Group]],
    options: Options,
    encoder: encoders.Encoder | None,
    measured: dict[str, Any],
) -> list[str]:
    from miner import audit_estimate

    if not sample:
        raise UserError("--job: no query has both a positive and a negative, so there is nothing to estimate")
    job, lines = options.job, list[str]()
    assert job is not None, "the caller has looked"
    if encoder is not None:
        found = audit_estimate.by_encoder(job, encoder, sample[: options.encoder_sample], options.settings.seed)
        measured["encoder"] = found
        lines.append(f"encoder, {found['negatives']:,} negatives of {found['queries']:,} sampled queries:")
        lines += [f"  {name}: {_interval(one)}" for name, one in found["shares"].items()]
        above = found["shares"]["above the positive"]
        if above["low"] > FALSE_NEGATIVES:
            scan.found.add("D03", -1, value=_interval(above))
        if found["shares"]["no closer than a random passage"]["low"] > RANDOM:
            scan.found.add("D05", -1, value=_interval(found["shares"]["no closer than a random passage"]))
    if options.judge_sample:
        graded = audit_estimate.by_judge(job, sample[: options.judge_sample])
        measured["judge"] = graded
        lines.append(f"judge, {graded['asked']} negatives, {graded['failed']} without an answer: {_interval(graded)}")
        if graded["low"] > FALSE_NEGATIVES:
            scan.found.add("D04", -1, value=_interval(graded))
    return lines


def _interval(found: dict[str, Any]) -> str:
    share = "no answers" if found["share"] is None else f"{found['share']:.1%}"
    return f"{share} ({found['low']:.1%}-{found['high']:.1%})"
