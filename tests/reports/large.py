"""A large set of results, made up: 40 backends x 60 invariants x 3 dtypes, and a million benchmark rows."""

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import recorded

from bench.record import METRICS, SCHEMA

BACKENDS, INVARIANTS, DTYPES = 40, 60, ("float32", "bfloat16", "float16")
ROWS, RUNS = 1_000_000, 10
NAMES = ["frozen", "peft", *(f"backend-{n:02}" for n in range(BACKENDS - 1))]
MEASURED = ("time_ms", "tokens_s", "ratio_to_frozen", "ratio_to_peft", "peak_alloc_delta", "saved_bytes")
MODES = ("fwd", "bwd", "step")


def conformance(path: Path) -> Path:
    """One verdict in five is red, each with a counterexample of its own."""
    names = NAMES[1:]
    invariants = [
        {"id": f"invariant-{n:02}", "family": f"family-{n // 6}", "statement": f"Statement {n} holds.", "after": []}
        for n in range(INVARIANTS)
    ]
    generator, lines = np.random.default_rng(0), []
    for name in names:
        for one in invariants:
            for dtype in DTYPES:
                verdict = str(generator.choice(["PASS", "FAIL", "GAP", "UNSUPPORTED"], p=[0.6, 0.2, 0.1, 0.1]))
                place = {"facet": "layer", "dtype": dtype, "on": ""}
                told = {"failure": f"{one['id']}: {name} {dtype}\n{'  got  1.5  ' * 80}", "reproduce": f"again {name}"}
                record = {"type": "record", "backend": name, "version": "1.0", "invariant": one["id"], **place}
                record |= {"family": one["family"], "verdict": verdict} | (told if verdict in {"FAIL", "GAP"} else {})
                lines.append(record)
    header = {"type": "header", "schema": 1, "suite": "0.1.0", "started": "2026-01-01T00:00:00+00:00", "digest": "d"}
    header |= {"invariants": invariants, "profile": "full", "seed": 0, "models": [], "trials": len(lines)}
    header |= {"backends": [{"reference": name, "name": name, "version": "1.0"} for name in names]}
    header |= {"device": {"name": "a processor", "cores": 2}, "versions": {}, "command": "lora-conformance run"}
    footer = {"type": "footer", "records": len(lines), "seconds": 1.0, "exitstatus": 1}
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines, footer)))
    return path


def benchmarks(folder: Path) -> None:
    """A million rows in ten runs: cases x modes x backends x metrics, raw samples with every time."""
    folder.mkdir()
    cases = ROWS // RUNS // (len(NAMES) * len(MODES) * len(MEASURED)) + 1
    keys = [(c, m, b, k) for c in range(cases) for m in MODES for b in NAMES for k in MEASURED][: ROWS // RUNS]
    about = [recorded.case(n=c).as_row() for c in range(cases)]
    generator = np.random.default_rng(0)
    for run in range(RUNS):
        value = generator.uniform(1, 2, len(keys))
        columns: dict[str, pa.Array] = {}
        rows = [about[c] | {"mode": m, "case_id": about[c]["case_id"].replace("step", m)} for c, m, _, _ in keys]
        columns |= {name: pa.array([row[name] for row in rows], SCHEMA.field(name).type) for name in about[0]}
        metrics = [METRICS[k] for *_, k in keys]
        text = {
            "backend": [b for _, _, b, _ in keys],
            "metric": [k for *_, k in keys],
            "unit": [metric.unit for metric in metrics],
            "better": [metric.better for metric in metrics],
            "kind": [metric.kind for metric in metrics],
            "verdict": ["conforming"] * len(keys),
            "status": ["ok"] * len(keys),
        }
        columns |= {name: pa.array(values, pa.string()) for name, values in text.items()}
        columns |= {"value": pa.array(value), "ci_low": pa.array(0.95 * value), "ci_high": pa.array(1.05 * value)}
        samples = [generator.uniform(1, 2, 10).tolist() if k == "time_ms" else None for *_, k in keys]
        columns["samples"] = pa.array(samples, SCHEMA.field("samples").type)
        shared = recorded.ABOUT | {"run_id": f"run{run}", "timestamp": recorded.START + timedelta(days=run)}
        for field in SCHEMA:
            if field.name not in columns:
                columns[field.name] = pa.array([shared.get(field.name)] * len(keys), field.type)
        table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
        pq.write_table(table, folder / f"run{run}.parquet", compression="zstd")
