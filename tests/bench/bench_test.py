# SPDX-License-Identifier: Apache-2.0
"""What the tests of results stand on: where the scripts are, the schema, and a result with given samples."""
import json
import os
import sys
import unittest
from unittest import mock

try:
    import jsonschema
except ImportError:
    jsonschema = None

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(SOURCE, "bench"), os.path.join(SOURCE, "tests", "integration")]
sys.dont_write_bytecode = True
import figures  # noqa: E402,F401


def schema():
    with open(os.path.join(SOURCE, "bench", "schema.json")) as file:
        return json.load(file)


need_schema = unittest.skipUnless(jsonschema, "python3-jsonschema is not installed")


def validate(document):
    jsonschema.Draft202012Validator(schema()).validate(document)
    figures.check(document)


def noise():
    few = {"count": 1, "p50": 30.0, "p90": 40.0, "p99": 50.0, "max": 50.0}
    return {"threads": 2, "seconds": 0.2, "stolen_share": 0.001, "gaps_us": dict(few), "late_us": dict(few)}


def environment():
    return {"cpu": "Some CPU", "cores": 2, "memory_bytes": 8 << 30, "virtual": True, "kernel": "Linux 6.9", "clock": "tsc",
            "qemu": "QEMU emulator version 7.2.0", "openssl": "OpenSSL 3.0.1 1 Jan 2022", "liburing": "2.3",
            "kvm": {"usable": False, "why": "/dev/kvm: No such file or directory", "cpu_virtualises": False},
            "load_average_before": [0.1, 0.2, 0.3], "load_average_after": [0.1, 0.2, 0.3],
            "noise": {"before": noise(), "after": noise()}}


def sample_result(samples, better="lower", ratios=None):
    """A result of `replicate` with these figures: {name: samples}; ratios: {(of, to): samples}."""
    return {"schema": "understudy-bench/1", "tool": {"name": "understudy", "version": "0.1.0"}, "subcommand": "replicate",
            "began": "2026-01-02T03:04:05Z", "seconds": 1.5, "options": {"lanes": 2}, "environment": environment(),
            "figures": [{"name": name, "title": name, "unit": "ms", "better": better, "group": "all", "who": "ours",
                         "samples": values} for name, values in samples.items()],
            "ratios": [{"of": of, "to": to, "title": f"{of} of {to}", "better": "higher", "who": "ceiling", "samples": values}
                       for (of, to), values in (ratios or {}).items()],
            "histograms": [], "timelines": [], "notes": []}


def result_of(subcommand, describe, own, **options):
    """As frame.run() makes it, without a run."""
    with mock.patch.object(figures, "environment", lambda _: environment()), mock.patch.object(figures, "version", lambda _: "1"):
        result = figures.Result(subcommand, options, "understudy")
        describe(result, own)
        return result.finish(**own)
