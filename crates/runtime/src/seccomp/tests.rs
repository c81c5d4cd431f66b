//! Filters, run as the kernel runs them and compared with what the document says.

use situla_plan::SeccompArch;

use super::*;
use situla_plan::SeccompArg;

/// What a filter is asked about.
#[derive(Clone, Copy, Debug)]
struct Asked {
    table: Table,
    number: u32,
    args: [u64; 6],
}

/// Runs a filter; panics where the kernel would not take it.
fn run(program: &[Instruction], asked: Asked) -> u32 {
    assert!(program.len() <= MAX_INSTRUCTIONS);
    let word = |offset: u32| match offset {
        NUMBER => asked.number,
        ARCHITECTURE => asked.table.audit(),
        _ => {
            let (high, low) = halves(asked.args[usize::try_from((offset - ARGUMENTS) / 8).unwrap()]);
            if (offset - ARGUMENTS).is_multiple_of(8) { low } else { high }
        }
    };
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let one = program[at];
        at += 1;
        let holds = match one.code {
            0x20 => {
                accumulator = word(one.value);
                continue;
            }
            0x54 => {
                accumulator &= one.value;
                continue;
            }
            0x06 => return one.value,
            0x05 => {
                at += usize::try_from(one.value).unwrap();
                continue;
            }
            0x15 => accumulator == one.value,
            0x25 => accumulator > one.value,
            0x35 => accumulator >= one.value,
            code => panic!("instruction {code}"),
        };
        at += usize::from(if holds { one.jump_true } else { one.jump_false });
    }
}

/// What the document says, without a program.
fn expected(document: &Seccomp, table: Table, name: &str, args: [u64; 6]) -> u32 {
    let mask = if table == Table::Arm { u64::from(u32::MAX) } else { u64::MAX };
    let holds = |arg: &SeccompArg| {
        let given = args[usize::try_from(arg.index).unwrap()] & mask;
        let (value, value_two) = (arg.value & mask, arg.value_two & mask);
        match arg.op {
            SeccompOperator::NotEqual => given != value,
            SeccompOperator::Less => given < value,
            SeccompOperator::LessOrEqual => given <= value,
            SeccompOperator::Equal => given == value,
            SeccompOperator::GreaterOrEqual => given >= value,
            SeccompOperator::Greater => given > value,
            SeccompOperator::MaskedEqual => given & value == value_two,
        }
    };
    let fits = |rule: &&SeccompRule| {
        let n_indices = (0..6).filter(|index| rule.args.iter().any(|arg| arg.index == *index)).count();
        let args = if n_indices < rule.args.len() {
            rule.args.iter().any(holds)
        } else {
            rule.args.iter().all(holds)
        };
        args && rule.names.iter().any(|other| other == name)
    };
    match document.syscalls.iter().find(fits) {
        Some(rule) => result(rule.action, rule.errno_ret).unwrap(),
        None => result(document.default_action, document.default_errno_ret).unwrap(),
    }
}

fn document(text: serde_json::Value) -> Seccomp {
    serde_json::from_value(text).unwrap()
}

/// A small generator, so that a failure can be had again: xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[usize::try_from(self.next() % values.len() as u64).unwrap()]
    }
}

#[test]
fn filters_do_what_documents_say() {
    use SeccompOperator::*;
    const NAMES: [&str; 8] =
        ["read", "write", "openat", "close", "uname", "personality", "clone3", "no-such-call"];
    const VALUES: [u64; 8] = [0, 1, 7, 8, 0xffff_ffff, 1 << 32, (1 << 32) | 7, u64::MAX];
    let operators = [NotEqual, Less, LessOrEqual, Equal, GreaterOrEqual, Greater, MaskedEqual];
    let actions =
        [SeccompAction::Allow, SeccompAction::Errno, SeccompAction::Trap, SeccompAction::KillProcess];
    for seed in 1..400u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let rules = (0..random.next() % 12).map(|_| {
            let action = random.of(&actions);
            SeccompRule {
                names: (0..=random.next() % 3).map(|_| random.of(&NAMES).to_owned()).collect(),
                action,
                errno_ret: (action.has_errno() && random.next().is_multiple_of(2)).then_some(38),
                args: (0..random.next() % 4)
                    .map(|_| SeccompArg {
                        index: random.of(&[0, 1, 5]),
                        value: random.of(&VALUES),
                        value_two: random.of(&VALUES),
                        op: random.of(&operators),
                    })
                    .collect(),
            }
        });
        let document = Seccomp {
            syscalls: rules.collect(),
            default_action: random.of(&actions),
            default_errno_ret: None,
            architectures: Vec::new(),
            flags: Vec::new(),
        };
        for table in [Table::X86_64, Table::Aarch64, Table::Arm] {
            let program = instructions(&document, vec![Table::X86_64, Table::Aarch64, Table::Arm]).unwrap();
            for _ in 0..200 {
                let name = random.of(&NAMES);
                let args = std::array::from_fn(|_| random.of(&VALUES));
                for Call { number, .. } in table.calls(name) {
                    let got = run(&program, Asked { table, number, args });
                    assert_eq!(
                        got,
                        expected(&document, table, name, args),
                        "{seed} {table:?} {name} {args:?} {document:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn numbers_that_no_rule_has_get_the_default() {
    let document = document(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "syscalls": [{"names": ["read", "write", "uname", "none-such"], "action": "SCMP_ACT_ALLOW"}],
    }));
    let program = instructions(&document, vec![Table::X86_64]).unwrap();
    let allowed = [0, 1, 63];
    for number in (0..2000).chain([X32_BIT - 1, u32::MAX]) {
        let got = run(&program, Asked { table: Table::X86_64, number, args: [0; 6] });
        assert_eq!(got, if allowed.contains(&number) { 0x7fff_0000 } else { 0x0005_0026 }, "{number}");
    }
}

#[test]
fn other_architectures_are_no_way_around() {
    let refuse = |architectures: &[SeccompArch]| Seccomp {
        architectures: architectures.to_vec(),
        ..document(serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "socket", "msgget"], "action": "SCMP_ACT_ERRNO"}],
        }))
    };
    let ask = |document: &Seccomp, tables: &[Table], table, number, first| {
        let program = instructions(document, tables.to_vec()).unwrap();
        run(&program, Asked { table, number, args: [first, 0, 0, 0, 0, 0] })
    };
    let own = [Table::X86_64];
    let both = [Table::X86_64, Table::X86];
    let document = refuse(&[]);
    const REFUSED: u32 = 0x0005_0001;
    const ALLOWED: u32 = 0x7fff_0000;
    for (tables, table, number, first, result) in [
        (&own[..], Table::X86_64, 83, 0, REFUSED),
        (&own, Table::X86_64, 82, 0, ALLOWED),
        // x32, by number and by the numbers of its own.
        (&own, Table::X86_64, X32_BIT | 83, 0, KILL_PROCESS),
        (&own, Table::X86_64, X32_BIT | 82, 0, KILL_PROCESS),
        (&own, Table::X86_64, X32_BIT, 0, KILL_PROCESS),
        // 32-bit, where it is not listed.
        (&own, Table::X86, 39, 0, KILL_PROCESS),
        (&own, Table::X86, 1, 0, KILL_PROCESS),
        (&both, Table::X86, 39, 0, REFUSED),
        (&both, Table::X86, 40, 0, ALLOWED),
        // On 64 bits that number is another call, and the other way round.
        (&both, Table::X86_64, 39, 0, ALLOWED),
        (&both, Table::X86, 83, 0, ALLOWED),
        // socket and msgget by their own numbers, and by those that they share.
        (&both, Table::X86, 359, 0, REFUSED),
        (&both, Table::X86, 102, 1, REFUSED),
        (&both, Table::X86, 102, (7 << 32) | 1, REFUSED),
        (&both, Table::X86, 102, 2, ALLOWED),
        (&both, Table::X86, 117, 13, REFUSED),
        (&both, Table::X86, 117, 0x1_000d, REFUSED),
        (&both, Table::X86, 117, 14, ALLOWED),
        (&both, Table::Arm, 39, 0, KILL_PROCESS),
    ] {
        assert_eq!(
            ask(&document, tables, table, number, first),
            result,
            "{tables:?} {table:?} {number} {first}"
        );
    }
    if cfg!(target_arch = "x86_64") {
        use SeccompArch::{Aarch64, Arm, X32, X86, X86_64};
        for (listed, tables) in
            [(&[][..], &own[..]), (&[X86_64], &own), (&[Aarch64, Arm, X32], &own), (&[X86, X86_64], &both)]
        {
            assert_eq!(Table::of_machine(listed), tables);
        }
    }
}

#[test]
fn upper_words_of_32_bit_calls_do_not_count() {
    let document = document(serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]
        }],
    }));
    let program = instructions(&document, vec![Table::X86_64, Table::X86]).unwrap();
    let ask = |table, number, first| run(&program, Asked { table, number, args: [first, 0, 0, 0, 0, 0] });
    const HIGH: u64 = 1 << 32;
    assert_eq!((ask(Table::X86, 136, 8), ask(Table::X86, 136, HIGH | 8)), (0x0005_0001, 0x0005_0001));
    assert_eq!((ask(Table::X86_64, 135, 8), ask(Table::X86_64, 135, HIGH | 8)), (0x0005_0001, 0x7fff_0000));
}

#[test]
fn arguments_in_memory_permit_nothing_and_forbid_everything() {
    let conditional = |action: &str| {
        let args = serde_json::json!([{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]);
        document(serde_json::json!({
            "defaultAction": if action == "SCMP_ACT_ALLOW" { "SCMP_ACT_ERRNO" } else { "SCMP_ACT_ALLOW" },
            "syscalls": [{"names": ["socket"], "action": action, "args": args}],
        }))
    };
    for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"] {
        let program = instructions(&conditional(action), vec![Table::X86]).unwrap();
        let asked = Asked { table: Table::X86, number: 102, args: [1, 0, 0, 0, 0, 0] };
        assert_eq!(run(&program, asked), 0x0005_0001, "{action}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let rule =
        |rule: serde_json::Value| serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    for (text, message) in [
        (
            rule(serde_json::json!({"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1})),
            "has no errno",
        ),
        (
            rule(serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096})),
            "greater than",
        ),
        (serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}), "has no errno"),
        (
            rule(serde_json::json!({
                "names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]
            })),
            "no argument 6",
        ),
    ] {
        let error = Filter::compile(&document(text.clone())).unwrap_err();
        assert!(error.to_string().contains(message), "{text}: {error}");
    }
    let many: Vec<_> = (0..1000u32)
        .map(|value| {
            serde_json::json!({
                "names": ["read"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]
            })
        })
        .collect();
    let text = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": many});
    assert!(Filter::compile(&document(text)).unwrap_err().to_string().contains("too long"));
    for text in [
        rule(serde_json::json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})),
        rule(serde_json::json!({"names": ["read"], "action": "ALLOW"})),
        rule(serde_json::json!({"names": ["read"]})),
        rule(serde_json::json!({
            "names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_LIKE"}]
        })),
        serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}),
        serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_VAX"]}),
        serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}),
        serde_json::json!({"syscalls": []}),
    ] {
        assert!(serde_json::from_value::<Seccomp>(text.clone()).is_err(), "{text}");
    }
}
