//! What the default binary promises to whoever types `cargo run`: messages, exit statuses, streams.

use std::{
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use libtest_mimic::Failed;

use super::{Case, Need, Scratch, ensure, programs::BUSYBOX, tiny_elf};
use crate::bench;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "command_line::too_small_memory_is_refused_before_the_start",
            too_small_memory,
        ),
        Case::new("command_line::bad_values_get_one_clear_line", bad_values),
        Case::new("command_line::unreadable_files_are_named", unreadable_files),
        Case::new("command_line::what_is_no_initramfs_is_refused", no_initramfs),
        Case::new("command_line::missing_qemu_names_the_package", missing_qemu),
        Case::new("command_line::help_names_every_option", help),
        Case::new(
            "command_line::kernel_panic_exits_101_with_a_backtrace",
            kernel_panic,
        ),
        Case::new("command_line::endless_program_exits_124_at_the_timeout", endless),
        Case::new(
            "command_line::without_program_the_demonstration_runs",
            demonstration,
        ),
        Case::needing(
            "command_line::program_output_is_alone_on_stdout",
            &[Need::Busybox],
            program_output,
        ),
        Case::needing("command_line::uefi_runs_the_demonstration", &[Need::Ovmf], uefi),
    ]
}

/// Runs the default binary with nothing on stdin.
pub(super) fn boot(arguments: &[&str]) -> Result<Output, Failed> {
    let mut command = Command::new(bench::binary()?);
    command.args(arguments).stdin(Stdio::null());
    output(&mut command)
}

fn output(command: &mut Command) -> Result<Output, Failed> {
    command
        .output()
        .map_err(|error| format!("cannot start the default binary: {error}").into())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Expects that the command line is refused with status 2 and a message that holds `words`, and nothing on stdout.
fn refused(arguments: &[&str], words: &[&str]) -> Result<(), Failed> {
    let output = boot(arguments)?;
    let message = stderr(&output);
    ensure(output.status.code() == Some(2), || {
        format!("{arguments:?}: {}\n{message}", output.status)
    })?;
    ensure(output.stdout.is_empty(), || {
        format!("{arguments:?} wrote to stdout")
    })?;
    for word in words {
        ensure(message.contains(word), || {
            format!("{arguments:?}: no {word:?} in: {message}")
        })?;
    }
    Ok(())
}

fn too_small_memory() -> Result<(), Failed> {
    refused(&["--memory", "16M"], &["16M", "at least 64M"])
}

fn bad_values() -> Result<(), Failed> {
    refused(&["--memory", "much"], &["'much'", "expected a size"])?;
    refused(&["--smp", "0"], &["'0'", "--smp"])?;
    refused(&["--smp", "two"], &["'two'"])?;
    refused(&["--timeout", "-1"], &["--timeout"])?;
    refused(&["--timeout", "0"], &["above 0"])?;
    refused(&["--accel", "xen"], &["'xen'", "tcg"])?;
    refused(&["--profile", "fast"], &["'fast'", "release"])?;
    refused(&["--log", "loud"], &["'loud'", "debug"])?;
    refused(&["--bogus"], &["--bogus"])?;
    refused(&["program-without-dashes"], &["program-without-dashes"])?;
    refused(&["--icount", "--accel", "kvm"], &["--icount", "tcg"])
}

fn unreadable_files() -> Result<(), Failed> {
    refused(
        &["--exec", "/does/not/exist"],
        &["/does/not/exist", "No such file"],
    )?;
    refused(&["--exec", "/tmp"], &["/tmp", "directory"])?;
    refused(&["--initramfs", "/does/not/exist"], &["/does/not/exist"])
}

fn no_initramfs() -> Result<(), Failed> {
    let scratch = Scratch::new("no-initramfs")?;
    let text = scratch.file("text", b"not an archive")?;
    refused(&["--initramfs", &text], &["not an initramfs", "newc"])?;
    let empty = scratch.file("empty", b"")?;
    refused(&["--initramfs", &empty], &["not an initramfs"])?;
    let damaged = scratch.file("damaged.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xff\xff\xff")?;
    refused(&["--initramfs", &damaged], &["damaged gzip"])
}

/// With a search path that holds cargo and rustc and nothing else.
fn missing_qemu() -> Result<(), Failed> {
    let scratch = Scratch::new("missing-qemu")?;
    for tool in ["cargo", "rustc", "cc"] {
        if let Some(path) = find(tool) {
            symlink(&path, scratch.path().join(tool))
                .map_err(|error| format!("cannot link {tool}: {error}"))?;
        }
    }
    let mut command = Command::new(bench::binary()?);
    command
        .env("PATH", scratch.path())
        .stdin(Stdio::null())
        .args(["--", "/bin/true"]);
    let output = output(&mut command)?;
    let message = stderr(&output);
    ensure(output.status.code() == Some(1), || {
        format!("{}\n{message}", output.status)
    })?;
    ensure(message.contains("qemu-system-x86"), || {
        format!("the package is not named: {message}")
    })
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(tool))
        .find(|file| file.is_file())
}

fn help() -> Result<(), Failed> {
    let output = boot(&["--help"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure(output.status.success(), || output.status.to_string())?;
    let options = [
        "--smp",
        "--memory",
        "--exec",
        "--initramfs",
        "--uefi",
        "--accel",
        "--icount",
        "--append",
    ];
    for option in options.iter().chain(&[
        "--timeout",
        "--log",
        "--gdb",
        "--profile",
        "PROGRAM",
        "124",
        "125",
    ]) {
        ensure(text.contains(option), || {
            format!("{option} is missing in:\n{text}")
        })?;
    }
    Ok(())
}

/// Expects that the default binary, given `arguments`, exits with `status`; returns its stdout and stderr.
fn exits(arguments: &[&str], status: i32) -> Result<(String, String), Failed> {
    let output = boot(arguments)?;
    let (text, message) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr(&output),
    );
    ensure(output.status.code() == Some(status), || {
        format!(
            "{arguments:?}: {}\nstdout:\n{text}\nstderr:\n{message}",
            output.status
        )
    })?;
    Ok((text, message))
}

fn kernel_panic() -> Result<(), Failed> {
    let (_, message) = exits(&["--append", "crash=panic"], 101)?;
    ensure(
        message.contains("backtrace") && message.contains("kernel::"),
        || message,
    )
}

fn endless() -> Result<(), Failed> {
    let scratch = Scratch::new("endless")?;
    let program = scratch.file("endless", &tiny_elf::program(tiny_elf::ENDLESS))?;
    exits(&["--timeout", "8", "--exec", &program, "--", "/bin/endless"], 124).map(drop)
}

fn demonstration() -> Result<(), Failed> {
    let (text, _) = exits(&["--timeout", "90"], 0)?;
    ensure(text.contains("AnonHugePages"), || format!("stdout:\n{text}"))
}

fn program_output() -> Result<(), Failed> {
    let arguments = [
        "--timeout",
        "90",
        "--exec",
        BUSYBOX,
        "--",
        "/bin/busybox",
        "echo",
        "hello",
    ];
    let (text, _) = exits(&arguments, 0)?;
    ensure(text == "hello\n", || format!("stdout is {text:?}"))
}

/// The first time, this builds the boot loader for UEFI.
fn uefi() -> Result<(), Failed> {
    let (text, _) = exits(&["--uefi", "--timeout", "120", "--", "/bin/thp-demo"], 0)?;
    ensure(text.contains("AnonHugePages"), || format!("stdout:\n{text}"))
}
