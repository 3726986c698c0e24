"""Ask models that run on this machine through the gateway, with OpenAI's own client."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

from crossroads.prompts import fit_router, read_outcomes, read_pool, save_router

CONFIG = """
pool: local                       # SmolLM2-135M, a calculator, a unit converter
port: 0                           # any free one
policies:
  auto: {kind: learned, router: router}
ledger: {url: "sqlite:calls.db"}
telemetry: {logs: {file: gateway.log}}   # beside the ledger, not between the answers
admin: null                       # no dashboard for three questions
"""
QUESTIONS = [
    "What is 37 * 48?",
    "Convert 5 miles to kilometres.",
    "Name the capital of Japan.",
]


@contextmanager
def gateway(folder: Path) -> Iterator[str]:
    """Run ``crossroads serve`` in a folder; yield its URL."""
    command = [sys.executable, "-m", "crossroads", "serve", "--config", "gateway.yaml"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            greeting = server.stdout.readline()  # "crossroads serves on http://... (...)"
            if not greeting:
                raise SystemExit("the gateway did not start; it says why above")
            yield greeting.split()[3]
        finally:
            server.terminate()
            server.communicate()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # it takes none
    pool = read_pool("local")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_router(fit_router("auto", read_outcomes("local"), pool=pool), folder / "router")
        (folder / "gateway.yaml").write_text(CONFIG, "utf-8")
        with gateway(folder) as url:
            client = OpenAI(base_url=f"{url}/v1", api_key="none-needed-on-this-machine")
            for question in QUESTIONS:
                reply = client.chat.completions.with_raw_response.create(
                    model="auto",
                    messages=[{"role": "user", "content": question}],
                    max_tokens=30,
                )
                answer = reply.parse()
                print(f"\n{question}\n  {answer.choices[0].message.content}")
                print(f"  {answer.model}: {reply.headers['x-crossroads-reason']}")
                print(f"  {float(reply.headers['x-crossroads-cost-usd']):.8f} USD, "
                      f"overhead {reply.headers['x-crossroads-overhead-ms']} ms")  # fmt: skip
            client.close()


if __name__ == "__main__":
    main()
