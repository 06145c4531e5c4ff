#!/usr/bin/env python3
"""Measures Fluxmill against the best that can be done without it, side by side on one real Apache Kafka.

    benches/ladder.py throughput [--rounds 7] [--cells default] [--only A,B,...] [--write]
    benches/ladder.py latency    [--rounds 3] [--seconds 20] [--write]
    benches/ladder.py growth     [--rounds 3] [--write]
    benches/ladder.py idle       [--write]

Builds what it measures, starts Apache Kafka (Java 17; Maven fetches it once), loads topics of 4 partitions with JSON
orders of exactly the size that is asked for, and runs the contestants in turn, round after round, in an order that
changes from round to round. Every run is checked: as many events must come out as belong there.

throughput  A cell is a size and a codec; `--cells 250/none,250/lz4` measures these, `all` all twelve, `default` every
            size uncompressed and 250 bytes with each codec. A cell of 7 rounds takes about 4 minutes, the default about
            25 and all about 45.
latency     Open loop at fixed rates: how long an event takes from the topic that it is produced to to the one that it
            is read from, with and without Fluxmill in between.
growth      The same with 1 and with 20 million events: what an event costs must not grow. Takes 15 GB of disk.
idle        What a chain takes that has nothing to do.

Only ratios within one run mean something: machines differ and are shared, and the broker uses the same cores. A' is A
again: how far these two differ is the noise. Events/s is measured at the broker: events that went in, divided by the
time between the first and the last append to the output topic. CPU is user and system time of the whole process, start
and end included. With --write the tables go between markers of docs/performance.md.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time

import rig
from rig import Contestant

SIZES = {100: 1_000_000, 250: 1_000_000, 1_000: 400_000, 10_000: 60_000}  # bytes: events
CODECS = ["none", "lz4", "zstd"]
CELLS = {
    "default": [(size, "none") for size in SIZES] + [(250, codec) for codec in CODECS[1:]],
    "all": [(size, codec) for codec in CODECS for size in SIZES],
}
LADDER = {
    "A": Contestant("raw librdkafka loop", "raw"),
    "A'": Contestant("the same again (noise)", "raw"),
    "N": Contestant("raw librdkafka loop, native JSON transform", "raw", "price"),
    "B": Contestant("bare columnar copy", "bare"),
    "C": Contestant("fluxmill, no function", "fluxmill"),
    "I": Contestant("fluxmill, identity function", "fluxmill", guest="identity"),
    "E": Contestant("fluxmill, identity function, exactly once", "fluxmill", guest="identity", delivery="exactly_once"),
    "K": Contestant("fluxmill, identity function, order by key", "fluxmill", guest="identity", order="key"),
    "O": Contestant("fluxmill, identity function, no order", "fluxmill", guest="identity", order="none"),
    "F": Contestant("fluxmill, filter function", "fluxmill", "filter", "filter"),
    "J": Contestant("fluxmill, JSON transform function", "fluxmill", "price", "json"),
    "LC": Contestant("fluxmill on librdkafka, no function", "fluxmill", client="librdkafka"),
    "LI": Contestant("fluxmill on librdkafka, identity function", "fluxmill", guest="identity", client="librdkafka"),
    "LF": Contestant("fluxmill on librdkafka, filter function", "fluxmill", "filter", "filter", "librdkafka"),
    "LJ": Contestant("fluxmill on librdkafka, JSON transform function", "fluxmill", "price", "json", "librdkafka"),
}
# Which CPU per event is compared with which, beside all with A.
GOALS = [("I", "A"), ("I", "B"), ("J", "N"), ("LI", "A"), ("E", "I"), ("K", "I"), ("O", "I")]
RATES = [100, 1_000]  # events per second
GROWTH = [1_000_000, 20_000_000]
QUIET = 3  # seconds in which a chain that has nothing to do must use next to no CPU
QUIET_TICKS = 5  # clock ticks of 10 ms in that time
TICK = os.sysconf("SC_CLK_TCK")


def rounds(bench, contestants, load, number_of_rounds):
    """The runs of each contestant; a round is a row of all, none always after the same other."""
    results = {name: [] for name in contestants}
    for contestant in contestants.values():
        if contestant.kind == "fluxmill":
            bench.run(contestant, load)  # compiles the function, fills the page cache; not counted
    for number in range(number_of_rounds):
        order = list(contestants)
        random.Random(number).shuffle(order)
        for name in order:
            run = bench.run(contestants[name], load)
            results[name].append(run)
            print(
                f"{load.topic} round {number + 1}: {name}: {run.rate:,.0f} events/s, {run.cpu:.3f} CPU-s/M,"
                f" {run.memory:.0f} MiB",
                flush=True,
            )
    return results


def ratio(mine, base, value):
    """The median of the ratios round by round: what disturbs one round disturbs all its runs."""
    return statistics.median(value(a) / value(b) for a, b in zip(mine, base))


def table(contestants, results):
    base = results.get("A") or next(iter(results.values()))
    lines = [
        "| | contestant | events/s | range | ratio | CPU-s per million | range | ratio | peak MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in results.items():
        rates, cpus = [run.rate / 1e3 for run in runs], [run.cpu for run in runs]
        faster, dearer = (ratio(runs, base, value) for value in (lambda run: run.rate, lambda run: run.cpu))
        lines.append(
            f"| {name} | {contestants[name].name} | {statistics.median(rates):,.0f} k"
            f" | {min(rates):,.0f}-{max(rates):,.0f} k | {faster:.2f}"
            f" | {statistics.median(cpus):.3f} | {min(cpus):.3f}-{max(cpus):.3f} | {dearer:.2f}"
            f" | {statistics.median(run.memory for run in runs):.0f} |"
        )
    said = [
        f"{mine}/{other} {ratio(results[mine], results[other], lambda run: run.cpu):.2f}"
        for mine, other in GOALS
        if mine in results and other in results
    ]
    return "\n".join(lines) + ("\n\nCPU per event: " + ", ".join(said) + "." if said else "")


def throughput(bench, options):
    contestants = {name: LADDER[name] for name in (options.only or list(LADDER))}
    parts = []
    for size, codec in options.cells:
        load = bench.load(options.events or SIZES[size], size, codec)
        text = table(contestants, rounds(bench, contestants, load, options.rounds))
        heading = f"**{size:,} bytes, {'uncompressed' if codec == 'none' else codec}** ({load.events:,} events)"
        parts.append(f"{heading}\n\n{text}")
        print(parts[-1], flush=True)
        bench.drop(load.topic)
    return "\n\n".join(parts)


def growth(bench, options):
    contestants = {name: LADDER[name] for name in (options.only or ["A", "B", "I"])}
    sizes = [options.events, 20 * options.events] if options.events else GROWTH
    results = {}
    for events in sizes:
        load = bench.load(events)
        for name, runs in rounds(bench, contestants, load, options.rounds).items():
            results[name, events] = [run.cpu for run in runs], [run.memory for run in runs]
        bench.drop(load.topic)
    lines = [
        f"| | contestant | CPU-s per million, {sizes[0]:,} events | {sizes[1]:,} events | ratio | peak MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, contestant in contestants.items():
        few, many = (statistics.median(results[name, events][0]) for events in sizes)
        peaks = " to ".join(f"{statistics.median(results[name, events][1]):.0f}" for events in sizes)
        lines.append(f"| {name} | {contestant.name} | {few:.3f} | {many:.3f} | {many / few:.2f} | {peaks} |")
    return "\n".join(lines)


def started(bench, load, output, name):
    """A chain that goes on for what comes, as a process."""
    with open(bench.folder / "chain.log", "w", encoding="utf-8") as log:
        contestant = LADDER[name]
        command = bench.chain(load, output, contestant.guest, contestant.client)
        return subprocess.Popen(command, stdout=log, stderr=log)


def latency(bench, options):
    ways = {"no hop": None, "fluxmill, identity": "I", "fluxmill on librdkafka, identity": "LI"}
    if options.only:
        ways = {label: name for label, name in ways.items() if name is None or name in options.only}
    results = {(rate, label): [] for rate in RATES for label in ways}
    for number in range(options.rounds):
        for rate, label in random.Random(number).sample(list(results), len(results)):
            results[rate, label].append(one_latency(bench, ways[label], rate, options.seconds, number))
            print(f"round {number + 1}: {label}, {rate}/s: {results[rate, label][-1]}", flush=True)
    quantiles = ["p50", "p90", "p99", "p99.9", "max"]
    lines = ["| events/s | | " + " | ".join(f"{name} ms" for name in quantiles) + " |", "| ---: | --- |" + " ---: |" * 5]
    for (rate, label), runs in results.items():
        cells = (statistics.median(run[name] for run in runs) for name in quantiles)
        lines.append(f"| {rate:,} | {label} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(lines)


def one_latency(bench, name, rate, seconds, number):
    topics = [bench.make(f"latency-{number}-{rate}-{name}-{end}") for end in (["in", "out"] if name else ["in"])]
    source, to = topics[0], topics[-1]
    chain = started(bench, rig.Load(source, 0, "none", {}), to, name) if name else None
    try:
        command = [bench.programs.bare, "latency", bench.brokers, source, to, str(rate), str(seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds + 120, check=True).stdout
    finally:
        if chain:
            rig.end(chain, bench.folder / "chain.log")
    bench.drop(*topics)
    found = {key: float(value) for key, value in (pair.split("=") for pair in done.split())}
    if found["received"] != found["sent"] or found["doubled"]:
        sys.exit(f"{name} at {rate}/s: {done}")
    return found


def idle(bench, options):
    lines = ["| | chain with nothing to do | RSS MiB | CPU, % of a core |", "| --- | --- | ---: | ---: |"]
    for name in options.only or ["C", "I", "LC", "LI"]:
        source, to = bench.make(f"idle-in-{name}"), bench.make(f"idle-out-{name}")
        chain = started(bench, rig.Load(source, 0, "none", {}), to, name)
        try:
            memory, cpu = until_quiet(chain)
        finally:
            rig.end(chain, bench.folder / "chain.log")
        lines.append(f"| {name} | {LADDER[name].name} | {memory:.1f} | {cpu:.2f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def until_quiet(process):
    """Waits until a process uses next to no CPU; gives its RSS in MiB and that little CPU in per cent."""
    deadline = time.monotonic() + rig.RUN_DEADLINE
    time.sleep(QUIET)  # it has to start first
    while time.monotonic() < deadline:
        before = ticks(process.pid)
        time.sleep(QUIET)
        used = ticks(process.pid) - before
        if used <= QUIET_TICKS:
            with open(f"/proc/{process.pid}/status", encoding="utf-8") as status:
                resident = next(line for line in status if line.startswith("VmRSS:"))
            return int(resident.split()[1]) / 1024, 100 * used / TICK / QUIET
    sys.exit(f"the chain is never quiet: {used} ticks in {QUIET} s")


def ticks(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def cells(text):
    if text in CELLS:
        return CELLS[text]
    pairs = [cell.split("/") for cell in text.split(",")]
    return [(int(size), codec) for size, codec in pairs]


def main():
    whats = {"throughput": (throughput, 7), "latency": (latency, 3), "growth": (growth, 3), "idle": (idle, 1)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=whats, default="throughput")
    parser.add_argument("--rounds", type=int, help="7 for throughput, 3 for latency and growth")
    parser.add_argument("--cells", type=cells, default=CELLS["default"], help="SIZE/CODEC,..., default or all")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"of {', '.join(LADDER)}")
    parser.add_argument("--events", type=int, help="instead of what belongs to the size")
    parser.add_argument("--seconds", type=int, default=20, help="of one latency run")
    parser.add_argument("--debug", action="store_true", help="build without optimisation, to try this program out")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args()
    measure, usual = whats[options.what]
    options.rounds = options.rounds or usual
    about = rig.machine()
    with rig.rig(rig.build(release=not options.debug)) as bench:
        tables = measure(bench, options)
    given = " ".join(argument for argument in sys.argv[1:] if argument != "--write")
    text = f"`benches/ladder.py {given}`, {time.strftime('%Y-%m-%d')}. {about}.\n\n{tables}"
    print(f"\n{text}")
    if options.write:
        rig.write(options.what, text)


if __name__ == "__main__":
    main()
