"""Text as an agent reads it: source files, search hits, test runs, records, logs; and prose that repeats little.

Everything is drawn from a random.Random and nothing else: the same seed gives the same text on any machine.
"""

import json
import random

_AREAS = ["billing", "session", "catalog", "router", "storage", "search", "profile", "invoice", "cart", "upload"]
_VERBS = ["load", "store", "merge", "parse", "render", "check", "apply", "fetch", "count", "split", "update", "close"]
_NOUNS = ["order", "token", "page", "record", "header", "price", "batch", "filter", "entry", "schema", "user", "limit"]
_TYPES = ["int", "str", "float", "bool", "list[int]", "dict[str, int]"]
_PEOPLE = ["Ana", "Ben", "Carla", "Dmitri", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas"]
_STATES = ["open", "pending", "shipped", "delivered", "cancelled", "refunded", "escalated"]
_GOODS = ["desk lamp", "monitor arm", "laptop stand", "webcam", "usb-c hub", "travel mug"]

TOOLS = {
    "read_file": ("Reads lines of a file; they come numbered.", {"path": "string", "first": "integer"}),
    "search": ("Finds a word in all files of the project.", {"word": "string", "path": "string"}),
    "run_tests": ("Runs one test file and shows what failed.", {"path": "string", "verbose": "boolean"}),
    "edit_file": ("Replaces one text in a file by another.", {"path": "string", "old": "string", "new": "string"}),
    "query": ("Reads records of a table by a condition.", {"table": "string", "where": "string", "limit": "integer"}),
    "build": ("Builds the application and shows the log.", {"target": "string"}),
    "list_files": ("Lists a folder with sizes and dates.", {"path": "string"}),
}


def schema(name: str) -> str:
    description, arguments = TOOLS[name]
    properties = {key: {"type": kind, "description": f"The {key} to use."} for key, kind in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)[:1]}
    return json.dumps({"name": name, "description": description, "parameters": parameters})


def system_prompt(job: str, tools: list[str], rules: int) -> str:
    """An agent's job, numbered rules and its tools' schemas."""
    lines = [f"You are an agent that works with tools. {job}"]
    for i in range(rules):
        verb, noun = _VERBS[i % len(_VERBS)], _NOUNS[(5 * i + i // 12) % len(_NOUNS)]
        lines.append(f"{i + 1}. Before you {verb} a {noun}, read what the {_AREAS[i % 10]} module says about it.")
    return "\n".join([*lines, "Tools:", *map(schema, tools), 'Call one with {"name": ..., "arguments": {...}}.'])


class Project:
    """Source files with functions that call each other, and the tools of an agent that works on them."""

    def __init__(self, rng: random.Random, num_files: int = 8):
        self.rng = rng
        self.files: dict[str, list[str]] = {}
        self.last = ""  # the file looked at last: an agent comes back to it
        names = [f"{verb}_{noun}" for verb in _VERBS for noun in _NOUNS]
        rng.shuffle(names)
        self.functions = names[: 6 * num_files]
        for i in range(num_files):
            path = f"src/{_AREAS[i % len(_AREAS)]}{'' if i < len(_AREAS) else i // len(_AREAS)}.py"
            self.files[path] = self._source(self.functions[6 * i : 6 * i + 6])

    def _source(self, names: list[str]) -> list[str]:
        r, lines = self.rng, ["import json", "import logging", "", "log = logging.getLogger(__name__)", ""]
        for name in names:
            noun, kind = name.split("_")[1], r.choice(_TYPES)
            limit = r.randrange(2, 900)
            lines += [
                f"def {name}({noun}: {kind}, limit: int = {limit}) -> {r.choice(_TYPES)}:",
                f'    """{name.replace("_", "s the ").capitalize()}, at most `limit` of them."""',
                f"    if {noun} is None or limit > {limit * 2}:",
                f'        raise ValueError(f"{name}: limit is {{limit}}, expected at most {limit * 2}")',
                f"    {r.choice(_NOUNS)}s = {r.choice(self.functions)}({noun}, {r.randrange(99)})",
                f'    log.info("{name} took %d of %d", limit, {r.randrange(99)})',
                f"    return {r.choice(self.functions)}({noun}, limit - {r.randrange(1, 9)})",
                "",
            ]
        return lines

    def _path(self) -> str:
        if not self.last or self.rng.random() < 0.5:
            self.last = self.rng.choice(list(self.files))
        return self.last

    def read_file(self) -> str:
        path = self._path()
        lines = self.files[path]
        first = self.rng.randrange(max(1, len(lines) - 24))
        shown = [f"{first + i + 1}\t{line}" for i, line in enumerate(lines[first : first + 24])]
        return "\n".join([f"{path}, lines {first + 1} to {first + len(shown)}:", *shown])

    def search(self) -> str:
        word = self.rng.choice(self.functions)
        hits = [
            f"{path}:{i + 1}:{line.strip()}"
            for path, lines in self.files.items()
            for i, line in enumerate(lines)
            if word in line
        ]
        return "\n".join([f"{len(hits)} lines with {word}", *hits])

    def run_tests(self) -> str:
        path, r = self._path(), self.rng
        name = r.choice([line[4:].split("(")[0] for line in self.files[path] if line.startswith("def ")])
        test = path.replace("src/", "tests/test_")
        failed = [f"{test}::test_{name}[{r.randrange(40)}]" for _ in range(r.randrange(1, 4))]
        lines = [f"running {test}"]
        for case in failed:
            at, a, b = r.randrange(20, 90), r.randrange(900), r.randrange(900)
            lines += [
                f"FAILED {case}",
                f"  {test}:{at}: in test_{name}",
                f"    assert {name}(case.value, {b}) == {a}",
                f"E   AssertionError: assert {b} == {a}",
            ]
        return "\n".join([*lines, f"{len(failed)} failed, {r.randrange(9, 60)} passed in {r.uniform(0.2, 9):.2f}s"])

    def edit_file(self) -> str:
        path, r = self._path(), self.rng
        lines = self.files[path]
        at = r.choice([i for i, line in enumerate(lines) if "limit" in line])
        old, number = lines[at], str(r.randrange(1000))
        lines[at] = old.replace("limit", f"limit_{number}", 1)
        around = [f" {line}" for line in lines[max(0, at - 3) : at]]
        return "\n".join([f"edited {path}", f"@@ -{at + 1} +{at + 1} @@", *around, f"-{old}", f"+{lines[at]}"])

    def build(self) -> str:
        r, lines = self.rng, ["> build --production"]
        for path in r.sample(list(self.files), 5):
            lines.append(f"  transforming {path} ({r.randrange(2, 90)} modules)")
            if r.random() < 0.4:
                lines.append(f"  warning: {path}:{r.randrange(1, 60)}: {r.choice(self.functions)} is never used")
        sizes = [f"  dist/{a}-{r.getrandbits(32):08x}.js   {r.uniform(1, 90):.2f} kB" for a in r.sample(_AREAS, 4)]
        return "\n".join([*lines, *sizes, f"built in {r.uniform(1, 20):.2f}s"])

    def list_files(self) -> str:
        r = self.rng
        shown = [f"-rw-r--r-- {r.randrange(200, 9000):>6} 2026-0{r.randrange(1, 10)}-1{i % 10} {path}"
                 for i, path in enumerate(self.files)]  # fmt: skip
        return "\n".join([f"{len(shown)} files", *shown])

    def query(self) -> str:
        r = self.rng
        rows = [
            {
                "order_id": f"ORD-{r.randrange(10**5, 10**6)}",
                "customer_name": r.choice(_PEOPLE),
                "status": r.choice(_STATES),
                "total_cents": r.randrange(500, 90000),
                "items": [{"name": r.choice(_GOODS), "quantity": r.randrange(1, 5)} for _ in range(r.randrange(1, 3))],
            }
            for _ in range(3)
        ]
        return json.dumps({"ok": True, "count": len(rows), "rows": rows})

    def use(self, tool: str) -> str:
        """A result of one of TOOLS."""
        return getattr(self, tool)()


def prose(rng: random.Random, num_words: int) -> str:
    """Sentences of invented words: each word is new, so hardly any run of tokens comes back."""
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    sentences, left = [], num_words
    while left > 0:
        length = min(left, rng.randrange(6, 15))
        words = [
            "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.randrange(1, 4)))
            + rng.choice(("", "n", "r", "s", "th", "ck"))
            for _ in range(length)
        ]
        sentences.append(" ".join(words).capitalize() + rng.choice(".?!;"))
        left -= length
    return " ".join(sentences)
