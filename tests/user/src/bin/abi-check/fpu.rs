//! Vector registers: kept across system calls, timer ticks and switches to others.

use std::{
    arch::asm,
    time::{Duration, Instant},
};

use crate::Verdict;

/// One vector register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C, align(32))]
struct Vector([u64; 4]);

type Registers = [Vector; 16];

/// Keeps patterns in the registers for as long as the argument says (milliseconds). Several such programs at the same
/// time disturb each other if anything is lost.
pub(crate) fn check(words: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    let millis = words.first().and_then(|word| word.parse().ok()).unwrap_or(200);
    let end = Instant::now() + Duration::from_millis(millis);
    let seed = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut rounds = 0_u64;
    let mut lost = 0_u64;
    while Instant::now() < end {
        let before = pattern(seed.wrapping_add(rounds));
        let mut after = Registers::default();
        if std::is_x86_feature_detected!("avx") {
            through_ymm(&before, &mut after);
        } else {
            through_xmm(&before, &mut after);
        }
        let width = if std::is_x86_feature_detected!("avx") {
            4
        } else {
            2
        };
        lost += u64::from((0..16).any(|n| before[n].0[..width] != after[n].0[..width]));
        rounds += 1;
    }
    verdict.holds(
        &format!("vector registers are kept ({lost} of {rounds} rounds lost something)"),
        lost == 0,
    );
    verdict
}

fn pattern(seed: u64) -> Registers {
    std::array::from_fn(|n| {
        Vector(std::array::from_fn(|lane| {
            seed ^ ((n as u64) << 32) ^ (lane as u64 + 1)
        }))
    })
}

/// Loads registers, makes a system call and spins, and stores them again.
macro_rules! through {
    ($name:ident, $move:literal, $register:literal) => {
        fn $name(before: &Registers, after: &mut Registers) {
            // SAFETY: reads and writes the two arrays of 16 vectors; all registers that change are named.
            unsafe {
                asm!(
                    concat!($move, " ", $register, "0, [{before}]"),
                    concat!($move, " ", $register, "1, [{before} + 32]"),
                    concat!($move, " ", $register, "2, [{before} + 64]"),
                    concat!($move, " ", $register, "3, [{before} + 96]"),
                    concat!($move, " ", $register, "4, [{before} + 128]"),
                    concat!($move, " ", $register, "5, [{before} + 160]"),
                    concat!($move, " ", $register, "6, [{before} + 192]"),
                    concat!($move, " ", $register, "7, [{before} + 224]"),
                    concat!($move, " ", $register, "8, [{before} + 256]"),
                    concat!($move, " ", $register, "9, [{before} + 288]"),
                    concat!($move, " ", $register, "10, [{before} + 320]"),
                    concat!($move, " ", $register, "11, [{before} + 352]"),
                    concat!($move, " ", $register, "12, [{before} + 384]"),
                    concat!($move, " ", $register, "13, [{before} + 416]"),
                    concat!($move, " ", $register, "14, [{before} + 448]"),
                    concat!($move, " ", $register, "15, [{before} + 480]"),
                    "syscall",
                    "mov ecx, 100000",
                    "2:",
                    "dec ecx",
                    "jnz 2b",
                    concat!($move, " [{after}], ", $register, "0"),
                    concat!($move, " [{after} + 32], ", $register, "1"),
                    concat!($move, " [{after} + 64], ", $register, "2"),
                    concat!($move, " [{after} + 96], ", $register, "3"),
                    concat!($move, " [{after} + 128], ", $register, "4"),
                    concat!($move, " [{after} + 160], ", $register, "5"),
                    concat!($move, " [{after} + 192], ", $register, "6"),
                    concat!($move, " [{after} + 224], ", $register, "7"),
                    concat!($move, " [{after} + 256], ", $register, "8"),
                    concat!($move, " [{after} + 288], ", $register, "9"),
                    concat!($move, " [{after} + 320], ", $register, "10"),
                    concat!($move, " [{after} + 352], ", $register, "11"),
                    concat!($move, " [{after} + 384], ", $register, "12"),
                    concat!($move, " [{after} + 416], ", $register, "13"),
                    concat!($move, " [{after} + 448], ", $register, "14"),
                    concat!($move, " [{after} + 480], ", $register, "15"),
                    before = in(reg) before.as_ptr(),
                    after = in(reg) after.as_mut_ptr(),
                    inout("rax") libc::SYS_sched_yield => _,
                    out("rcx") _,
                    out("r11") _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                );
            }
        }
    };
}

through!(through_xmm, "movdqu", "xmm");
through!(through_ymm, "vmovdqu", "ymm");
