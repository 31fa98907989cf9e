//! What this processor can do, and its control registers.
//!
//! Every protection that the processor has is switched on: no-execute, write protection in ring 0, SMEP (ring 0
//! never executes a program's pages), SMAP (ring 0 never touches them except in [`super::user_copy`]), UMIP (ring 3
//! cannot read descriptor tables). No locks: written once at start, then read only.

use core::{
    arch::{asm, x86_64::__cpuid_count},
    fmt,
};

use spin::Once;

use super::msr::Msr;

bitflags::bitflags! {
    /// Features that the kernel uses where they are there.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u32 {
        /// 1 GiB pages.
        const GIB_PAGES = 1 << 0;
        /// Ring 0 does not execute user pages.
        const SMEP = 1 << 1;
        /// Ring 0 does not touch user pages unless it says so.
        const SMAP = 1 << 2;
        /// Ring 3 does not read descriptor tables.
        const UMIP = 1 << 3;
        /// XSAVE and its state components.
        const XSAVE = 1 << 4;
        /// AVX.
        const AVX = 1 << 5;
        /// Local APIC through registers instead of memory.
        const X2APIC = 1 << 6;
        /// No-execute pages.
        const NX = 1 << 7;
        /// Global pages.
        const PGE = 1 << 8;
    }
}

const FEATURE_NAMES: [(Features, &str); 9] = [
    (Features::NX, "nx"),
    (Features::PGE, "pge"),
    (Features::GIB_PAGES, "1g-pages"),
    (Features::SMEP, "smep"),
    (Features::SMAP, "smap"),
    (Features::UMIP, "umip"),
    (Features::XSAVE, "xsave"),
    (Features::AVX, "avx"),
    (Features::X2APIC, "x2apic"),
];

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;

const CR4_PGE: u64 = 1 << 7;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;

const EFER_SCE: u64 = 1;
const EFER_NXE: u64 = 1 << 11;

const XCR0_X87_SSE: u64 = 3;
const XCR0_AVX: u64 = 4;

static FEATURES: Once<Features> = Once::new();

/// Returns the features of this processor. None before [`init`].
#[must_use]
pub fn features() -> Features {
    FEATURES.get().copied().unwrap_or(Features::empty())
}

/// Asks the processor.
fn detect() -> Features {
    let mut found = Features::empty();
    let mut note = |register: u32, bit: u32, feature| {
        found.set(feature, found.contains(feature) || register >> bit & 1 != 0)
    };
    let basic = __cpuid_count(1, 0);
    note(basic.ecx, 21, Features::X2APIC);
    note(basic.ecx, 26, Features::XSAVE);
    note(basic.ecx, 28, Features::AVX);
    note(basic.edx, 13, Features::PGE);
    let highest = __cpuid_count(0, 0).eax;
    if highest >= 7 {
        let structured = __cpuid_count(7, 0);
        note(structured.ebx, 7, Features::SMEP);
        note(structured.ebx, 20, Features::SMAP);
        note(structured.ecx, 2, Features::UMIP);
    }
    if __cpuid_count(0x8000_0000, 0).eax >= 0x8000_0001 {
        let extended = __cpuid_count(0x8000_0001, 0);
        note(extended.edx, 20, Features::NX);
        note(extended.edx, 26, Features::GIB_PAGES);
    }
    if !found.contains(Features::XSAVE) {
        found.remove(Features::AVX);
    }
    found
}

/// Finds out what the processor can do and switches its protections on. Once per CPU.
pub fn init() {
    let features = *FEATURES.call_once(detect);
    let cr0 = (read_cr0() & !(CR0_EM | CR0_TS)) | CR0_MP | CR0_NE | CR0_WP;
    // SAFETY: only switches protections and floating point on.
    unsafe { asm!("mov cr0, {}", in(reg) cr0, options(nostack, preserves_flags)) };
    let mut cr4 = (read_cr4() & !CR4_FSGSBASE) | CR4_OSFXSR | CR4_OSXMMEXCPT;
    let switches = [
        (Features::PGE, CR4_PGE),
        (Features::UMIP, CR4_UMIP),
        (Features::XSAVE, CR4_OSXSAVE),
        (Features::SMEP, CR4_SMEP),
        (Features::SMAP, CR4_SMAP),
    ];
    for (_, bit) in switches.iter().filter(|(feature, _)| features.contains(*feature)) {
        cr4 |= bit;
    }
    // SAFETY: only switches on what the processor says it has; nothing of ring 3 is mapped yet.
    unsafe { asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags)) };
    let nx = if features.contains(Features::NX) {
        EFER_NXE
    } else {
        0
    };
    // SAFETY: every 64-bit processor has the register.
    let efer = unsafe { Msr::EFER.read() } | EFER_SCE | nx;
    // SAFETY: adds SYSCALL and, where it exists, the no-execute bit.
    unsafe { Msr::EFER.write(efer) };
    if features.contains(Features::XSAVE) {
        let avx = if features.contains(Features::AVX) {
            XCR0_AVX
        } else {
            0
        };
        set_xcr0(XCR0_X87_SSE | avx);
    }
}

/// Returns what the processor calls itself.
#[must_use]
pub fn brand() -> Brand {
    const FIRST: u32 = 0x8000_0002;
    let mut bytes = [0; 48];
    if __cpuid_count(0x8000_0000, 0).eax >= FIRST + 2 {
        for (chunk, leaf) in bytes.chunks_exact_mut(16).zip(FIRST..) {
            let part = __cpuid_count(leaf, 0);
            for (word, value) in chunk
                .chunks_exact_mut(4)
                .zip([part.eax, part.ebx, part.ecx, part.edx])
            {
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    Brand { bytes }
}

/// The processor's name.
#[derive(Clone, Copy, Debug)]
pub struct Brand {
    bytes: [u8; 48],
}

impl fmt::Display for Brand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        write!(f, "{}", text.trim_ascii().escape_ascii())
    }
}

fn read_cr0() -> u64 {
    let value;
    // SAFETY: reads a control register.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

fn read_cr4() -> u64 {
    let value;
    // SAFETY: reads a control register.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Returns the address whose access faulted last.
#[must_use]
pub fn read_cr2() -> u64 {
    let value;
    // SAFETY: reads a control register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Returns the physical address of the page table in use.
#[must_use]
pub fn read_cr3() -> u64 {
    let value: u64;
    // SAFETY: reads a control register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value & 0x000f_ffff_ffff_f000
}

/// Switches to another page table.
///
/// # Safety
/// `root` must be a top-level table that maps the kernel as the current one does.
pub unsafe fn write_cr3(root: mm::PhysAddr) {
    // SAFETY: the caller vouches for the table.
    unsafe { asm!("mov cr3, {}", in(reg) root.as_u64(), options(nostack, preserves_flags)) };
}

fn set_xcr0(value: u64) {
    #[expect(clippy::cast_possible_truncation, reason = "the low half; the high one is 0")]
    let low = value as u32;
    // SAFETY: OSXSAVE is on, and the components exist.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("edx") 0, in("eax") low, options(nomem, nostack, preserves_flags))
    };
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = FEATURE_NAMES
            .iter()
            .filter(|(feature, _)| self.contains(*feature))
            .map(|(_, name)| name);
        names
            .enumerate()
            .try_for_each(|(index, name)| write!(f, "{}{name}", if index == 0 { "" } else { " " }))
    }
}
