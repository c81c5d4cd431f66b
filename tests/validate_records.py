"""Validates records against the published schema, with a validator that is not ours.

usage: validate_records.py SCHEMA RUNS DIRECTORY

RUNS holds what `situla runs --json` prints; each file of DIRECTORY holds lines of events. Prints how many of each kind it has
seen; exits with 1 and the reasons if one is not valid.
"""

import collections
import copy
import json
import os
import sys

import jsonschema


def main(schema_name, runs_name, directory):
    with open(schema_name, encoding="utf-8") as file:
        schema = json.load(file)
    jsonschema.Draft202012Validator.check_schema(schema)

    def validator(name):
        whole = {key: schema[key] for key in ("$schema", "$defs")}
        return jsonschema.Draft202012Validator({**whole, "$ref": "#/$defs/" + name})

    seen, wrong, sample = collections.Counter(), [], {}

    def check(judge, value, place):
        for error in judge.iter_errors(value):
            path = "/".join(map(str, error.absolute_path))
            wrong.append(f"{place}: {path}: {error.message[:300]}")

    event, record = validator("event"), validator("record")
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError as error:
                    wrong.append(f"{name}:{number}: {error}")
                    continue
                seen[value.get("event")] += 1
                sample[value.get("event")] = value
                check(event, value, f"{name}:{number}")
    with open(runs_name, encoding="utf-8") as file:
        for value in json.load(file):
            seen["class " + value["outcome"]["class"]] += 1
            check(record, value, "record " + value["run"])

    # A validator that finds nothing wrong with these would find nothing at all.
    for kind, spoilt in (("start", "identity"), ("task-exit", "exit"), ("start", "run")):
        value = copy.deepcopy(sample.get(kind, {}))
        value.pop(spoilt, None)
        if event.is_valid(value):
            wrong.append(f"a {kind} without {spoilt} is taken for valid")

    for kind, count in sorted(seen.items()):
        print(kind, count)
    for line in wrong[:20]:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
