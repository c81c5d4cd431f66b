//! From the filter of a document to the instructions that the kernel runs for each system call.
//!
//! A filter has a block for each architecture whose calls the machine could make and the document lists, and
//! ends the process for all others: a 32-bit program does not get around the rules. Within a block the number
//! of the call is searched in a tree, and the rules about it are tried in their order.
//!
//! x32 is never let in, even where it is listed: its calls have numbers of their own, and hardly a kernel
//! still has them.

use std::collections::BTreeMap;

use situla_plan::{MAX_SECCOMP_RULES, Seccomp, SeccompAction, SeccompFlag, SeccompOperator, SeccompRule};
use situla_sys::{FilterFlags, Instruction};

use crate::failure::{Failure, FailureClass};

mod numbers;
#[cfg(test)]
mod tests;

use self::numbers::{Call, Table, Width};

/// `BPF_MAXINSNS`, linux/bpf_common.h.
const MAX_INSTRUCTIONS: usize = 4096;

/// `MAX_ERRNO`, linux/err.h; the kernel cuts larger ones down to it.
const MAX_ERRNO: u32 = 4095;

/// Arguments of a system call.
const N_ARGUMENTS: u32 = 6;

/// A filter that is ready to be installed.
#[derive(Debug)]
pub(crate) struct Filter {
    instructions: Vec<Instruction>,
    flags: FilterFlags,
}

impl Filter {
    /// Compiles a document's filter for this machine.
    pub(crate) fn compile(document: &Seccomp) -> Result<Self, Failure> {
        let instructions = instructions(document, Table::of_machine(&document.architectures))?;
        let flags = FilterFlags {
            log: document.flags.contains(&SeccompFlag::Log),
            spec_allow: document.flags.contains(&SeccompFlag::SpecAllow),
        };
        Ok(Filter { instructions, flags })
    }

    /// Installs it. `PR_SET_NO_NEW_PRIVS` must have been set.
    pub(crate) fn install(&self) -> Result<(), Failure> {
        situla_sys::install_filter(&self.instructions, self.flags).map_err(|errno| {
            Failure::of_call(FailureClass::Setup, "cannot install the filter of system calls", errno)
        })
    }
}

/// Tells whether a filter can be made for this machine.
///
/// # Errors
/// It says why not.
pub fn check_filter(document: &Seccomp) -> Result<(), Failure> {
    Filter::compile(document).map(drop)
}

fn refused(what: impl std::fmt::Display) -> Failure {
    Failure::new(FailureClass::Setup, format!("cannot make the filter of system calls: {what}"))
}

/// A condition on an argument: its index, and what it must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    index: u32,
    operator: SeccompOperator,
    value: u64,
    value_two: u64,
}

/// What happens to a call where all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Choice {
    conditions: Vec<Condition>,
    result: u32,
}

/// The value that a filter returns for an action; linux/seccomp.h.
fn result(action: SeccompAction, errno: Option<u32>) -> Result<u32, Failure> {
    if errno.is_some() && !action.has_errno() {
        return Err(refused("an action that has no errno is given one"));
    }
    if errno.is_some_and(|errno| errno > MAX_ERRNO) {
        return Err(refused(format_args!("an errno is greater than {MAX_ERRNO}")));
    }
    // EPERM, as the specification says.
    let errno = errno.unwrap_or(1);
    Ok(match action {
        SeccompAction::KillProcess => KILL_PROCESS,
        SeccompAction::KillThread => 0x0000_0000,
        SeccompAction::Trap => 0x0003_0000,
        SeccompAction::Errno => 0x0005_0000 | errno,
        SeccompAction::Trace => 0x7ff0_0000 | errno,
        SeccompAction::Log => 0x7ffc_0000,
        SeccompAction::Allow => 0x7fff_0000,
    })
}

/// `SECCOMP_RET_KILL_PROCESS`
const KILL_PROCESS: u32 = 0x8000_0000;

/// The rule's conditions as alternatives, each of which has one condition for an argument at most.
fn alternatives(rule: &SeccompRule) -> Result<Vec<Vec<Condition>>, Failure> {
    let conditions: Vec<Condition> = rule
        .args
        .iter()
        .map(|arg| Condition {
            index: arg.index,
            operator: arg.op,
            value: arg.value,
            value_two: arg.value_two,
        })
        .collect();
    if let Some(wrong) = conditions.iter().find(|condition| condition.index >= N_ARGUMENTS) {
        return Err(refused(format_args!("a call has no argument {}", wrong.index)));
    }
    if conditions.len() > MAX_CONDITIONS {
        return Err(refused("a rule has too many conditions"));
    }
    let twice = (0..N_ARGUMENTS).any(|index| conditions.iter().filter(|one| one.index == index).count() > 1);
    Ok(if twice {
        // As runc does: a list of values for one argument.
        conditions.into_iter().map(|condition| vec![condition]).collect()
    } else {
        vec![conditions]
    })
}

/// The most conditions in a rule: a document has one for each value of personality(2), which are few.
const MAX_CONDITIONS: usize = 64;

/// All choices for each call of an architecture, in the order of the rules.
fn choices(document: &Seccomp, table: Table) -> Result<BTreeMap<u32, Vec<Choice>>, Failure> {
    let mut found: BTreeMap<u32, Vec<Choice>> = BTreeMap::new();
    for rule in &document.syscalls {
        let result = result(rule.action, rule.errno_ret)?;
        let alternatives = alternatives(rule)?;
        for call in rule.names.iter().flat_map(|name| table.calls(name)) {
            let Call { number, selector } = call;
            let of_number = found.entry(number).or_default();
            match selector {
                None => of_number.extend(
                    alternatives.iter().map(|conditions| Choice { conditions: conditions.clone(), result }),
                ),
                // Its own arguments lie in memory, where a filter cannot look: what may be forbidden
                // by them is, and nothing is allowed by them.
                Some(selector) => {
                    let permits = matches!(rule.action, SeccompAction::Allow | SeccompAction::Log);
                    if rule.args.is_empty() || !permits {
                        of_number.push(Choice { conditions: vec![selector], result });
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Compiles for the architectures of `tables`.
fn instructions(document: &Seccomp, tables: Vec<Table>) -> Result<Vec<Instruction>, Failure> {
    if document.syscalls.len() > MAX_SECCOMP_RULES {
        return Err(refused("it has too many rules"));
    }
    let default = result(document.default_action, document.default_errno_ret)?;
    let mut program = vec![load(ARCHITECTURE)];
    for table in tables {
        let mut block = vec![load(NUMBER)];
        if table == Table::X86_64 {
            // x32, but for -1, which is nobody's number.
            block.push(jump(Compare::Equal, u32::MAX, 2, 0));
            block.push(jump(Compare::AtLeast, X32_BIT, 0, 1));
            block.push(give(KILL_PROCESS));
        }
        let choices = choices(document, table)?;
        search(&segments(&choices), (table.width(), default), &mut block)?;
        program.push(jump(Compare::Equal, table.audit(), 1, 0));
        program.push(skip(block.len())?);
        program.extend(block);
        if program.len() > MAX_INSTRUCTIONS {
            return Err(refused("it is too long"));
        }
    }
    program.push(give(KILL_PROCESS));
    if program.len() > MAX_INSTRUCTIONS {
        return Err(refused("it is too long"));
    }
    Ok(program)
}

/// `__X32_SYSCALL_BIT`, asm/unistd.h of x86.
const X32_BIT: u32 = 0x4000_0000;

/// Ranges of numbers to which the same happens: the first number of each, and its choices.
fn segments(choices: &BTreeMap<u32, Vec<Choice>>) -> Vec<(u32, &[Choice])> {
    let mut found: Vec<(u32, &[Choice])> = vec![(0, &[])];
    let mut add = |start: u32, choices| match found.last_mut() {
        Some(last) if last.0 == start => last.1 = choices,
        Some(last) if last.1 == choices => {}
        _ => found.push((start, choices)),
    };
    for (number, choices) in choices {
        add(*number, choices.as_slice());
        if !choices.is_empty()
            && let Some(next) = number.checked_add(1)
        {
            add(next, &[]);
        }
    }
    // Neighbours that were separated by an empty range of no length.
    let mut merged: Vec<(u32, &[Choice])> = Vec::new();
    for segment in found {
        if merged.last().is_none_or(|last| last.1 != segment.1) {
            merged.push(segment);
        }
    }
    merged
}

/// Searches the number, which is loaded, among `segments`, of which there is at least one.
fn search(
    segments: &[(u32, &[Choice])],
    (width, default): (Width, u32),
    program: &mut Vec<Instruction>,
) -> Result<(), Failure> {
    if let [(_, choices)] = segments {
        return decide(choices, (width, default), program);
    }
    let (lower, upper) = segments.split_at(segments.len() / 2);
    let mut block = Vec::new();
    search(lower, (width, default), &mut block)?;
    let Some((start, _)) = upper.first() else { return Ok(()) };
    program.push(jump(Compare::AtLeast, *start, 0, 1));
    program.push(skip(block.len())?);
    program.extend(block);
    search(upper, (width, default), program)
}

/// Tries the choices, in their order.
fn decide(
    choices: &[Choice],
    (width, default): (Width, u32),
    program: &mut Vec<Instruction>,
) -> Result<(), Failure> {
    for choice in choices {
        let parts: Vec<Vec<Step>> =
            choice.conditions.iter().map(|condition| steps(condition, width)).collect();
        // What is left of the choice behind a condition, its result included.
        let mut left: usize = parts.iter().map(Vec::len).sum::<usize>() + 1;
        for part in parts {
            for (at, step) in part.iter().enumerate() {
                left -= 1;
                let behind = part.len() - at - 1;
                let target = |target: Target| match target {
                    Target::Next => Ok(0),
                    Target::Holds => u8::try_from(behind),
                    Target::Fails => u8::try_from(left),
                };
                let distance = |to: Target| target(to).map_err(|_| refused("a rule is too long"));
                program.push(match step {
                    Step::Load(offset) => load(*offset),
                    Step::And(mask) => and(*mask),
                    Step::Jump(compare, value, yes, no) => {
                        jump(*compare, *value, distance(*yes)?, distance(*no)?)
                    }
                });
            }
        }
        program.push(give(choice.result));
        if choice.conditions.is_empty() {
            return Ok(());
        }
        if program.len() > MAX_INSTRUCTIONS {
            return Err(refused("it is too long"));
        }
    }
    program.push(give(default));
    Ok(())
}

/// Where a jump within a choice leads.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// To the next instruction.
    Next,
    /// Behind the condition.
    Holds,
    /// Behind the choice.
    Fails,
}

/// An instruction of a condition.
#[derive(Clone, Copy, Debug)]
enum Step {
    Load(u32),
    And(u32),
    Jump(Compare, u32, Target, Target),
}

/// The instructions that test a condition: the kernel compares words of 32 bits, the upper one comes first.
fn steps(condition: &Condition, width: Width) -> Vec<Step> {
    use Compare::{AtLeast, Equal, More};
    use Step::{And, Jump, Load};
    use Target::{Fails, Holds, Next};
    // struct seccomp_data of linux/seccomp.h; all our machines have the lower word first.
    let low = ARGUMENTS + 8 * condition.index;
    let (low, high) = (Load(low), Load(low + 4));
    let (v_high, v_low) = halves(condition.value);
    let (two_high, two_low) = halves(condition.value_two);
    let (upper, lower) = match condition.operator {
        SeccompOperator::Equal => {
            (vec![high, Jump(Equal, v_high, Next, Fails)], vec![low, Jump(Equal, v_low, Next, Fails)])
        }
        SeccompOperator::NotEqual => {
            (vec![high, Jump(Equal, v_high, Next, Holds)], vec![low, Jump(Equal, v_low, Fails, Next)])
        }
        SeccompOperator::Greater | SeccompOperator::GreaterOrEqual => {
            let compare = if condition.operator == SeccompOperator::Greater { More } else { AtLeast };
            let upper = vec![high, Jump(More, v_high, Holds, Next), Jump(Equal, v_high, Next, Fails)];
            (upper, vec![low, Jump(compare, v_low, Next, Fails)])
        }
        SeccompOperator::Less | SeccompOperator::LessOrEqual => {
            let compare = if condition.operator == SeccompOperator::Less { AtLeast } else { More };
            let upper = vec![high, Jump(More, v_high, Fails, Next), Jump(Equal, v_high, Next, Holds)];
            (upper, vec![low, Jump(compare, v_low, Fails, Next)])
        }
        SeccompOperator::MaskedEqual => (
            vec![high, And(v_high), Jump(Equal, two_high, Next, Fails)],
            vec![low, And(v_low), Jump(Equal, two_low, Next, Fails)],
        ),
    };
    match width {
        // As libseccomp does. A program of 64 bits that makes such a call has the upper words as it likes, and
        // the call does not see them: they must not decide.
        Width::Bits32 => lower,
        Width::Bits64 => [upper, lower].concat(),
    }
}

fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// A comparison with the accumulator on its left; linux/filter.h.
#[derive(Clone, Copy, Debug)]
enum Compare {
    Equal,
    More,
    AtLeast,
}

fn load(offset: u32) -> Instruction {
    // BPF_LD 0x00 | BPF_W 0x00 | BPF_ABS 0x20
    Instruction { code: 0x20, jump_true: 0, jump_false: 0, value: offset }
}

fn and(mask: u32) -> Instruction {
    // BPF_ALU 0x04 | BPF_AND 0x50 | BPF_K 0x00
    Instruction { code: 0x54, jump_true: 0, jump_false: 0, value: mask }
}

fn give(result: u32) -> Instruction {
    // BPF_RET 0x06 | BPF_K 0x00
    Instruction { code: 0x06, jump_true: 0, jump_false: 0, value: result }
}

fn jump(compare: Compare, value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    // BPF_JMP 0x05 | BPF_JEQ 0x10, BPF_JGT 0x20, BPF_JGE 0x30 | BPF_K 0x00
    let code = match compare {
        Compare::Equal => 0x15,
        Compare::More => 0x25,
        Compare::AtLeast => 0x35,
    };
    Instruction { code, jump_true, jump_false, value }
}

/// Jumps over `n_instructions`.
fn skip(n_instructions: usize) -> Result<Instruction, Failure> {
    let value = u32::try_from(n_instructions).map_err(|_| refused("it is too long"))?;
    // BPF_JMP 0x05 | BPF_JA 0x00
    Ok(Instruction { code: 0x05, jump_true: 0, jump_false: 0, value })
}
