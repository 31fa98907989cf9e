//! Bad ends. A shell would see the status in the list.

use std::{arch::asm, hint::black_box, ptr::with_exposed_provenance_mut, time::Duration};

use user::mapping::Mapping;

use crate::Verdict;

/// Ends in the way the argument says; a way that did not end the program is a broken promise.
pub(crate) fn end(words: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    let way = words.first().map_or("", String::as_str);
    match way {
        "status" => std::process::exit(words.get(1).and_then(|word| word.parse().ok()).unwrap_or(0)),
        // 139
        "null-read" => read(0),
        "null-write" => write(0),
        "kernel-read" => read(0xffff_8880_0000_1000),
        "non-canonical-read" => read(0x8000_0000_0000_0000),
        "past-user-space" => read(0x7fff_ffff_f000),
        "text-write" => write((end as *const ()).addr()),
        "null-jump" => jump(0),
        "kernel-jump" => jump(0xffff_ffff_8000_0000),
        "data-jump" => jump_into_data(),
        "stack-overflow" => drop(black_box(sink(1))),
        "privileged" => privileged(),
        // 136, 132, 133
        "divide" => divide(),
        "illegal" => illegal(),
        "breakpoint" => breakpoint(),
        // 137, where nothing else is there to be given up
        "eat-memory" => eat_memory(),
        // 0
        "hold-memory" => {
            hold_memory(words.get(1).and_then(|word| word.parse().ok()).unwrap_or(0));
            std::process::exit(0)
        }
        // 134
        "abort" => std::process::abort(),
        "panic" => panic!("asked to panic"),
        // 143
        "terminate" => raise(libc::SIGTERM),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "sleep" => std::thread::sleep(Duration::from_secs(1000)),
        _ => verdict.holds(&format!("`{way}` is a way to end"), false),
    }
    verdict.holds("the program has ended", false);
    verdict
}

fn read(address: usize) {
    // SAFETY: not sound, on purpose: it must fault.
    let value = unsafe { with_exposed_provenance_mut::<u8>(address).read_volatile() };
    println!("read {value:#x} at {address:#x}");
}

fn write(address: usize) {
    // SAFETY: as above.
    unsafe { with_exposed_provenance_mut::<u8>(address).write_volatile(1) };
}

fn jump(address: usize) {
    // SAFETY: as above.
    unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) };
}

fn jump_into_data() {
    const RET: u8 = 0xc3;
    if let Ok(page) = Mapping::anywhere(4096) {
        page.write(0, RET);
        jump(page.addr());
    }
}

/// Takes memory until there is none; leaves it to `drop` if the kernel says so before.
fn eat_memory() {
    let mut pieces = Vec::new();
    while let Ok(piece) = Mapping::anywhere(16 << 20) {
        piece.touch();
        pieces.push(piece);
    }
}

/// Takes memory until only `left_kb` are free, and keeps it for three seconds.
fn hold_memory(left_kb: u64) {
    const STEP: usize = 64 << 10;
    let mut pieces = Vec::new();
    while user::proc::meminfo_kb("MemFree").is_ok_and(|free| free > left_kb)
        && let Ok(piece) = Mapping::anywhere(STEP)
    {
        piece.touch();
        pieces.push(piece);
    }
    std::thread::sleep(Duration::from_secs(3));
}

#[expect(unconditional_recursion, reason = "the end of the stack is what it is for")]
fn sink(depth: u64) -> u64 {
    let room = black_box([depth; 512]);
    sink(depth + 1) + room[0]
}

fn privileged() {
    // SAFETY: as above.
    unsafe { asm!("hlt") };
}

fn divide() {
    // SAFETY: as above.
    unsafe { asm!("div {zero:e}", zero = in(reg) 0_u32, inout("eax") 1_u32 => _, inout("edx") 0_u32 => _) };
}

fn illegal() {
    // SAFETY: as above.
    unsafe { asm!("ud2") };
}

fn breakpoint() {
    // SAFETY: as above.
    unsafe { asm!("int3") };
}

fn raise(signal: i32) {
    // SAFETY: only sends a signal to this program.
    unsafe { libc::raise(signal) };
}
