"""Validates events of runs against the published schema, with a validator that is not ours.

usage: validate_events.py SCHEMA FILE...

Each file holds lines of events. Prints how many of each kind it has seen; exits with 1 and the reasons if one is not valid.
"""

import collections
import copy
import json
import sys

import jsonschema


def main(schema_name, names):
    with open(schema_name, encoding="utf-8") as file:
        schema = json.load(file)
    jsonschema.Draft202012Validator.check_schema(schema)
    judge = jsonschema.Draft202012Validator(schema)
    seen, wrong, sample = collections.Counter(), [], {}
    for name in names:
        with open(name, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                except ValueError as error:
                    wrong.append(f"{name}:{number}: {error}: {line[:200]!r}")
                    continue
                seen[value.get("event")] += 1
                sample[value.get("event")] = value
                for error in judge.iter_errors(value):
                    wrong.append(f"{name}:{number}: {error.message[:300]}")

    # A validator that finds nothing wrong with these would find nothing at all.
    for kind, spoilt in (("started", "pid"), ("exit", "exit"), ("error", "status"), ("planned", "run")):
        value = copy.deepcopy(sample.get(kind, {}))
        value.pop(spoilt, None)
        if judge.is_valid(value):
            wrong.append(f"a {kind} without {spoilt} is taken for valid")

    for kind, count in sorted(seen.items()):
        print(kind, count)
    for reason in wrong[:50]:
        print(reason, file=sys.stderr)
    return 1 if wrong or not seen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
