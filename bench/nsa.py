"""Our own times: runs `cpnsa bench` for one length and reads what it wrote."""

import json
import os
import subprocess
import tempfile


def measure_nsa(command, shape, tokens, selection, backward, iterations, extra, timeout):
    """The row that `cpnsa bench -J` writes for a length, with the report's head, or {"failed": reason}."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "bench.json")
        arguments = [command, "bench", "-b", tokens, "-e", tokens, "-n", iterations, "-J", report]
        arguments += ["--heads", shape.heads, "--kv-heads", shape.kv_heads, "--dk", shape.dk, "--dv", shape.dv]
        arguments += ["--dtype", "bf16", "--selection", selection] + ([] if backward else ["--no-backward"]) + extra
        try:
            run = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"failed": f"more than {timeout:.0f} s"}
        except OSError as error:
            return {"failed": str(error)}
        if run.returncode != 0:
            lines = run.stderr.strip().split("\n")
            return {"failed": lines[-1] or f"exit status {run.returncode}"}
        with open(report, encoding="utf-8") as file:
            content = json.load(file)
    row = content.pop("rows")[0]
    return {"setting": content, **row}
