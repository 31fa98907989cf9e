//! Programs in ring 3, as `PROGRAM` of the machine: their output, their status, and what happens to files that are no
//! programs.

use std::{fs, path::PathBuf};

use boot::{capture::Captured, initrd::Root, outcome::End};
use libtest_mimic::Failed;

use super::{Case, Need, Scratch, ensure, tiny_elf};
use crate::bench;

/// The distribution's static busybox.
pub(super) const BUSYBOX: &str = "/bin/busybox";
const NEEDS_BUSYBOX: &[Need] = &[Need::Busybox];

pub(super) fn cases() -> Vec<Case> {
    let busybox = |name, run| Case::needing(name, NEEDS_BUSYBOX, run);
    vec![
        Case::new("programs::demonstration_keeps_its_promises", demonstration),
        Case::new("programs::guest_bench_measures_every_row", measurement),
        Case::new("programs::missing_program_is_named", missing_program),
        Case::new("programs::text_is_no_program", text),
        Case::new("programs::null_write_exits_139_and_says_where", || {
            dies(tiny_elf::NULL_WRITE, 139)
        }),
        Case::new("programs::null_jump_exits_139", || dies(tiny_elf::NULL_JUMP, 139)),
        Case::new("programs::reading_the_kernel_exits_139", || {
            dies(tiny_elf::KERNEL_READ, 139)
        }),
        Case::new("programs::division_by_zero_exits_136", || {
            dies(tiny_elf::DIVIDE_BY_ZERO, 136)
        }),
        Case::new("programs::undefined_instruction_exits_132", || {
            dies(tiny_elf::UNDEFINED, 132)
        }),
        Case::new("programs::privileged_instruction_exits_139", || {
            dies(tiny_elf::PRIVILEGED, 139)
        }),
        Case::new("programs::breakpoint_exits_133", || {
            dies(tiny_elf::BREAKPOINT, 133)
        }),
        Case::new("programs::kernel_goes_on_after_a_fault", goes_on),
        busybox("programs::busybox_echo_prints_hello", || {
            prints(&["echo", "hello"], b"", b"hello\n")
        }),
        busybox(
            "programs::busybox_echo_keeps_every_argument",
            echo_keeps_arguments,
        ),
        busybox("programs::busybox_true_and_false_differ", true_and_false),
        busybox("programs::busybox_uname_says_what_runs", uname),
        busybox("programs::busybox_sleep_sleeps", || ends_with(&["sleep", "1"], 0)),
        busybox("programs::busybox_cat_returns_every_byte", cat_returns_every_byte),
        busybox("programs::busybox_cat_sees_an_empty_input", || {
            prints(&["cat"], b"", b"")
        }),
        busybox("programs::busybox_sh_runs_pipelines_and_subshells", shell_command),
        busybox("programs::busybox_sh_reads_a_script_from_stdin", shell_script),
        busybox("programs::truncated_elf_is_refused", || {
            refused("truncated", |elf| elf.truncate(1000))
        }),
        busybox("programs::half_an_elf_header_is_refused", || {
            refused("header", |elf| elf.truncate(40))
        }),
        busybox("programs::elf_of_another_machine_is_refused", || {
            refused("aarch64", |elf| elf[18] = 183)
        }),
        busybox("programs::elf_with_wild_program_headers_is_refused", || {
            refused("headers", |elf| elf[32..40].copy_from_slice(&[0xff; 8]))
        }),
    ]
}

/// A root that holds busybox.
pub(super) fn with_busybox() -> Root {
    Root {
        programs: vec![PathBuf::from(BUSYBOX)],
        initramfs: None,
    }
}

/// Runs `argv` as the machine's program.
pub(super) fn run(root: &Root, argv: &[&str], input: &[u8]) -> Result<Captured, Failed> {
    let mut machine = bench::machine_with(root)?;
    machine.argv = argv.iter().map(Into::into).collect();
    machine.environment = vec!["PATH=/bin".into()];
    bench::run(&machine, input)
}

/// Expects an orderly end with `status`.
pub(super) fn ended(captured: &Captured, status: u8) -> Result<(), Failed> {
    let kernel = bench::kernel()?;
    let is_right = captured.end() == End::Orderly(status);
    ensure(is_right, || {
        format!(
            "expected an orderly end with status {status}: {}",
            captured.report(kernel)
        )
    })
}

fn busybox(applet: &[&str], input: &[u8]) -> Result<Captured, Failed> {
    run(&with_busybox(), &[&["/bin/busybox"], applet].concat(), input)
}

fn prints(applet: &[&str], input: &[u8], expected: &[u8]) -> Result<(), Failed> {
    let captured = busybox(applet, input)?;
    ended(&captured, 0)?;
    ensure(captured.stdout == expected, || {
        format!("stdout is {:?}", captured.text())
    })
}

fn ends_with(applet: &[&str], status: u8) -> Result<(), Failed> {
    let captured = busybox(applet, b"")?;
    ended(&captured, status)?;
    ensure(captured.stdout.is_empty(), || {
        format!("stdout is {:?}", captured.text())
    })
}

fn shell_command() -> Result<(), Failed> {
    let script = "echo a | cat; (exit 3); echo $?; echo b c | cat | wc -w; exit 5";
    let captured = busybox(&["sh", "-c", script], b"")?;
    ended(&captured, 5)?;
    ensure(captured.text() == "a\n3\n2\n", || {
        format!("stdout is {:?}", captured.text())
    })
}

/// Reads the script while its commands read nothing of it; substitution, a loop, a signal's status, a missing command.
fn shell_script() -> Result<(), Failed> {
    let script = b"x=$(echo inner | cat)\necho \"<$x>\"\nfor i in 1 2 3; do echo $i; done | cat </dev/null\n\
                   for i in 1 2 3; do echo $i; done | tail -n 1\nsh -c 'kill -9 $$'\necho $?\nnothing-there 2>/dev/null\n\
                   echo $?\necho gone | true\necho end\n";
    prints(&["sh"], script, b"<inner>\n3\n137\n127\nend\n")
}

/// In one trial: a kernel that ran neither would still give one of the two.
fn true_and_false() -> Result<(), Failed> {
    ends_with(&["true"], 0)?;
    ends_with(&["false"], 1)
}

fn demonstration() -> Result<(), Failed> {
    demonstrated(&run(&Root::default(), &["/bin/thp-demo"], b"")?)
}

/// Expects that the demonstration ran: it checks its own promises and says what it counted.
pub(super) fn demonstrated(captured: &Captured) -> Result<(), Failed> {
    ended(captured, 0)?;
    for word in ["AnonHugePages", "thp_split_pmd", "thp_deferred_split_page"] {
        ensure(captured.text().contains(word), || {
            format!("no {word} in:\n{}", captured.text())
        })?;
    }
    Ok(())
}

/// Rows of `guest-bench`.
const BENCH_ROWS: usize = 17;

/// The measuring program gets a number for each row, and leaves the memory in order. What the numbers are is not for a
/// build with debug assertions on a busy computer to say.
fn measurement() -> Result<(), Failed> {
    let captured = bench::run(&bench::machine()?, b"run guest-bench\ncheck\npoweroff 9\n")?;
    ended(&captured, 9)?;
    let text = captured.text();
    let is_row = |line: &&str| {
        let number = line
            .split_whitespace()
            .next()
            .and_then(|word| word.parse::<u64>().ok());
        number.is_some_and(|number| number > 0)
    };
    let rows = text.lines().filter(is_row).count();
    let is_right = rows == BENCH_ROWS && text.contains("all of memory is in order");
    ensure(is_right, || {
        format!("{rows} rows of {BENCH_ROWS}, or the memory is not in order:\n{text}")
    })
}

/// Empty arguments, spaces, commas and quotes travel unchanged.
fn echo_keeps_arguments() -> Result<(), Failed> {
    prints(
        &["echo", "a,b", "", "c  d", "\"e'", "é"],
        b"",
        "a,b  c  d \"e' é\n".as_bytes(),
    )
}

fn uname() -> Result<(), Failed> {
    let captured = busybox(&["uname", "-m"], b"")?;
    ended(&captured, 0)?;
    ensure(captured.text() == "x86_64\n", || {
        format!("stdout is {:?}", captured.text())
    })
}

/// Every byte value, many times, in no simple order.
fn cat_returns_every_byte() -> Result<(), Failed> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    let input: Vec<u8> = (0..50_000).map(|_| next()).collect();
    let captured = busybox(&["cat"], &input)?;
    ended(&captured, 0)?;
    let difference = input
        .iter()
        .zip(&captured.stdout)
        .position(|(sent, came)| sent != came);
    ensure(captured.stdout == input, || {
        let lengths = (input.len(), captured.stdout.len());
        format!(
            "{} bytes sent, {} came; first difference at {difference:?}",
            lengths.0, lengths.1
        )
    })
}

/// Expects that `program` does not start: status 126 or 127 as a shell would say, and a line that names it.
fn does_not_start(captured: &Captured, program: &str) -> Result<(), Failed> {
    let kernel = bench::kernel()?;
    let is_right = matches!(captured.end(), End::Orderly(126 | 127));
    ensure(is_right, || {
        format!("expected status 126 or 127: {}", captured.report(kernel))
    })?;
    ensure(captured.log.contains(program), || {
        format!("{program} is not named in:\n{}", captured.log)
    })?;
    ensure(captured.stdout.is_empty(), || {
        format!("stdout is {:?}", captured.text())
    })
}

fn missing_program() -> Result<(), Failed> {
    does_not_start(
        &run(&Root::default(), &["/bin/does-not-exist"], b"")?,
        "/bin/does-not-exist",
    )
}

fn text() -> Result<(), Failed> {
    no_program("text", b"just text\n")
}

/// Runs a file with `contents` as a program that must not start.
fn no_program(name: &str, contents: &[u8]) -> Result<(), Failed> {
    let scratch = Scratch::new(name)?;
    let root = Root {
        programs: vec![scratch.file(name, contents)?.into()],
        initramfs: None,
    };
    let program = format!("/bin/{name}");
    does_not_start(&run(&root, &[&program], b"")?, &program)
}

/// The same for busybox after `damage`.
fn refused(name: &str, damage: fn(&mut Vec<u8>)) -> Result<(), Failed> {
    let mut elf = fs::read(BUSYBOX).map_err(|error| format!("cannot read {BUSYBOX}: {error}"))?;
    damage(&mut elf);
    no_program(name, &elf)
}

/// A root with a program of these instructions in /bin/code.
fn with_code(scratch: &Scratch, code: &[u8]) -> Result<Root, Failed> {
    let file = scratch.file("code", &tiny_elf::program(code))?;
    Ok(Root {
        programs: vec![file.into()],
        initramfs: None,
    })
}

/// Expects that a program of these instructions ends with `status`, and that one log line says where.
fn dies(code: &[u8], status: u8) -> Result<(), Failed> {
    let scratch = Scratch::new(&format!("dies-{status}-{}", code.len()))?;
    let captured = run(&with_code(&scratch, code)?, &["/bin/code"], b"")?;
    ended(&captured, status)?;
    // A jump to nowhere happens nowhere in the code.
    let place_is_named = captured.log.contains("0x4000") || code == tiny_elf::NULL_JUMP;
    ensure(place_is_named, || {
        format!("no address in the program is named in:\n{}", captured.log)
    })
}

/// The monitor starts a program that dies, finds memory in order, and starts the next one.
fn goes_on() -> Result<(), Failed> {
    let scratch = Scratch::new("goes-on")?;
    let machine = bench::machine_with(&with_code(&scratch, tiny_elf::NULL_WRITE)?)?;
    let captured = bench::run(
        &machine,
        b"run /bin/code\ncheck\nrun /bin/thp-demo\ncheck\npoweroff 9\n",
    )?;
    ended(&captured, 9)?;
    ensure(captured.log.contains("0x40007a"), || {
        format!("the place is not named in:\n{}", captured.log)
    })
}
