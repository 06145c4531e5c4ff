#!/usr/bin/env python3
"""Says where the CPU time of the contestants of benches/ladder.py goes, by Linux perf.

    benches/profile.py [--rounds 5] [--events 1000000] [--write]

The contestants copy the topic in turn under `perf record` with call stacks, round after round: one profile alone says
little, since the work of librdkafka's own threads differs by a factor of two from run to run. The table has medians
and ranges. A sample counts for the first group of `GROUPS` that fits the thread's name and a function on the stack.
Samples become CPU-seconds by the sampling frequency; sampling with stacks disturbs, so the totals are not those of
the ladder.
With --write the table replaces the part between the markers of docs/performance.md.
"""

import argparse
import collections
import itertools
import re
import statistics
import subprocess
import sys
import time

import rig

FREQUENCY = 999
STACK_BYTES = 16384

# Group, thread, function: the first that fits. Threads are named by librdkafka (`rdk:...`) and by Fluxmill; the bare
# copy's have its name.
GROUPS = [
    ("sockets, in the kernel", r"", r"^(tcp_|sock_|__sys_(send|recv)|__x64_sys_(send|recv|writev)|do_writev|vfs_writev|unix_stream)"),
    ("waiting and waking, in the kernel", r"^(source-|tokio|bare)", r"^(__x64_sys_|do_|ksys_)(epoll|futex|write|poll)|^schedule$|^eventfd"),
    ("checksums", r"", r"crc32"),
    ("sandbox: instance, call, columns in and out", r"", r"wasmtime|wasm_trampoline|sandbox|Function.*call|\[unknown\].*jit"),
    ("records into columns", r"^(source-|bare)", r"Partition::take|batch::(decode|varint)"),
    ("columns into records", r"^(tokio|bare)", r"Batches::append|Encoder|copy::produce"),
    ("fetch: responses into messages", r"rdk:", r"msgset_reader|fetch_reply|handle_Fetch|rd_kafka_fetch"),
    ("produce: delivery reports", r"", r"handle_Produce|rd_kafka_dr_|rd_kafka_poll_cb|rd_kafka_poll\b|dr_msg|copy_loop.*deliver(y|ed|ies)"),
    ("produce: messages into requests", r"rdk:", r"msgset_(create|writer)|produce_toppar|ProduceRequest|toppar_producer_serve"),
    ("librdkafka's other threads' work", r"rdk:", r""),
    ("commit", r"", r"commit"),
    ("produce: rows handed to the producer", r"", r"rd_kafka_produce|rd_kafka_msg_partitioner|rd_kafka_msg_new|librdkafka.*sink"),
    ("consume: messages taken, freed", r"", r"rd_kafka_consume|rd_kafka_message_|rd_kafka_op_|rd_kafka_q_|rd_kafka_queue"),
    ("records into columns", r"", r"BatchBuilder|intake|Writer.*append|BinaryBuilder|GenericByteBuilder"),
    ("consume: messages taken, freed", r"^copy-loop", r"[kK]afka|free|mutex|clock_gettime|copy_loop"),
    ("source: everything else", r"^source-", r""),
    ("lanes and producer: everything else", r"^tokio", r""),
]
OTHER = "other"


def samples(data):
    """The thread's name and the functions on the stack, innermost first, of each sample."""
    command = ["perf", "script", "--no-inline", "-i", data, "-F", "comm,tid,ip,sym"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as script:
        comm, frames = None, []
        for line in script.stdout:
            if not line.strip():
                if comm is not None:
                    yield comm, frames
                comm, frames = None, []
            elif comm is None:
                comm = line.rsplit(None, 1)[0].strip()
            else:
                frames.append(line.split(None, 1)[1].strip())
        if comm is not None:
            yield comm, frames
    if script.returncode != 0:
        sys.exit("perf script failed")


def group(comm, frames):
    for name, thread, function in GROUPS:
        if re.search(thread, comm) and any(re.search(function, frame) for frame in frames):
            return name
    return OTHER


def profile(bench, contestant, load, data):
    """CPU-seconds per million events of each group, and the names of what fits no group."""
    record = ["perf", "record", "-q", "-F", str(FREQUENCY), "--call-graph", f"dwarf,{STACK_BYTES}", "-o", data, "--"]
    bench.run(contestant, load, record)
    counts, strange = collections.Counter(), collections.Counter()
    for comm, frames in samples(data):
        name = group(comm, frames)
        counts[name] += 1
        if name == OTHER:
            strange[f"{comm}: {frames[0] if frames else '?'} < {frames[1] if len(frames) > 1 else '?'}"] += 1
    per_million = {name: count / FREQUENCY / (load.events / 1e6) for name, count in counts.items()}
    return per_million, strange


def cell(values):
    if not any(values):
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def table(results):
    """Medians and ranges; `results` has a list of rounds for each contestant."""
    names = dict.fromkeys([name for name, *_ in GROUPS] + [OTHER])
    lines = ["| CPU-s per million events | " + " | ".join(results) + " |", "| --- |" + " ---: |" * len(results)]
    for name in names:
        cells = [cell([result.get(name, 0) for result in rounds]) for rounds in results.values()]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    totals = [cell([sum(result.values()) for result in rounds]) for rounds in results.values()]
    lines.append("| **all** | " + " | ".join(totals) + " |")
    return "\n".join(lines)


CONTESTANTS = [
    rig.Contestant("raw loop", "raw"),
    rig.Contestant("bare copy", "bare"),
    rig.Contestant("no function", "fluxmill"),
    rig.Contestant("identity function", "fluxmill", guest="identity"),
    rig.Contestant("identity function, librdkafka", "fluxmill", guest="identity", client="librdkafka"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    parser.add_argument("--strange", action="store_true", help="print what fits no group")
    options = parser.parse_args()
    with rig.rig(rig.build()) as bench:
        load = bench.load(options.events)
        results = {contestant.name: [] for contestant in CONTESTANTS}
        for number, contestant in itertools.product(range(options.rounds), CONTESTANTS):
            result, strange = profile(bench, contestant, load, bench.folder / "perf.data")
            results[contestant.name].append(result)
            print(f"round {number + 1}: {contestant.name}: {sum(result.values()):.2f} CPU-s/M", flush=True)
            if options.strange:
                print(*(f"  {count:5} {what}" for what, count in strange.most_common(25)), sep="\n")
    command = f"benches/profile.py --rounds {options.rounds} --events {options.events}"
    text = f"`{command}`, {time.strftime('%Y-%m-%d')}. Median (range).\n\n{table(results)}"
    print(text)
    if options.write:
        rig.write("profile", text)


if __name__ == "__main__":
    main()
