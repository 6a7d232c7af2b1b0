"""A side of a benchmark in a process of its own, perhaps of another Python: a line of JSON in, a line of JSON out."""

import json
import subprocess
import sys


class Child:
    """`hello`: what the child said first. A call sends JSON and returns the answer."""

    def __init__(self, python, *arguments):
        self.process = subprocess.Popen([python, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = self._read()

    def __call__(self, *arguments):
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.process.args)}: ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(hello, function):
    """The child's side: says `hello`, then answers each call by `function` until its parent closes."""
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        print(json.dumps(function(*json.loads(line))), flush=True)
