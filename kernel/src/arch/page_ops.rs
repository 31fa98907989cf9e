//! Zeroing and copying pages: several ways, one chosen at start by measurement.
//!
//! Which is fastest depends on the processor: on hardware `rep stosb` wins, under QEMU's TCG it costs four times as
//! much as plain stores although the processor advertises it. So the processor's word is not asked; each way is timed
//! on a warm page, the choice is logged, and `clear_page=NAME` on the command line forces it.
//!
//! The vector registers are the program's, whose state stays in them while the kernel runs ([`super::fpu`]). The one way
//! that uses a register of them puts its contents back: two instructions a page.

use core::{
    arch::asm,
    fmt,
    mem::MaybeUninit,
    sync::atomic::{AtomicU8, Ordering},
};

use mm::PAGE_SIZE;

use super::cpu::{self, Features};
use crate::drivers::clock;

/// A way to zero and copy pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageOps {
    /// `rep stosb` and `rep movsb`.
    RepByte,
    /// `rep stosq` and `rep movsq`.
    RepQuad,
    /// Eight-byte loads and stores, eight in a row.
    Unrolled,
    /// 32-byte loads and stores through a borrowed vector register, eight in a row. Needs AVX.
    Avx,
}

/// Room for what a borrowed vector register held.
#[repr(align(32))]
struct Borrowed(#[expect(dead_code, reason = "only the processor writes and reads it")] [u8; 32]);

const WORDS: usize = PAGE_SIZE / 8;
/// Words stored in a row.
const UNROLL: usize = 8;
/// Bytes that a round of vector stores covers.
const VECTOR_ROUND: usize = 8 * 32;
/// Times each way is measured; the best counts. The first dozen rounds under an emulator include its translating.
const ROUNDS: usize = 32;

static CHOSEN: AtomicU8 = AtomicU8::new(PageOps::RepQuad as u8);

impl PageOps {
    const ALL: [(Self, &'static str); 4] = [
        (Self::RepByte, "stosb"),
        (Self::RepQuad, "stosq"),
        (Self::Unrolled, "unrolled"),
        (Self::Avx, "avx"),
    ];

    /// Whether this processor can do it.
    #[must_use]
    pub fn is_available(self) -> bool {
        self != Self::Avx || cpu::features().contains(Features::AVX)
    }

    /// Returns the way called `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(ops, _)| *ops)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Returns the way in use.
    #[must_use]
    pub fn chosen() -> Self {
        // Relaxed: the value orders nothing.
        Self::ALL[usize::from(CHOSEN.load(Ordering::Relaxed))].0
    }

    /// Fills a page with zeroes.
    ///
    /// # Safety
    /// `page` must be page aligned and the caller's to write; the way must be [available](Self::is_available).
    pub unsafe fn clear(self, page: *mut u8) {
        match self {
            // SAFETY: the caller owns the page and vouches for AVX; the register gets its contents back.
            Self::Avx => unsafe {
                let mut borrowed = MaybeUninit::<Borrowed>::uninit();
                asm!(
                    "vmovdqa [{borrowed}], ymm0",
                    "vpxor xmm0, xmm0, xmm0",
                    "2:",
                    "vmovdqa [{page}], ymm0",
                    "vmovdqa [{page} + 32], ymm0",
                    "vmovdqa [{page} + 64], ymm0",
                    "vmovdqa [{page} + 96], ymm0",
                    "vmovdqa [{page} + 128], ymm0",
                    "vmovdqa [{page} + 160], ymm0",
                    "vmovdqa [{page} + 192], ymm0",
                    "vmovdqa [{page} + 224], ymm0",
                    "add {page}, {round}",
                    "cmp {page}, {end}",
                    "jne 2b",
                    "vmovdqa ymm0, [{borrowed}]",
                    borrowed = in(reg) borrowed.as_mut_ptr(),
                    round = const VECTOR_ROUND,
                    end = in(reg) page.wrapping_add(PAGE_SIZE),
                    page = inout(reg) page => _,
                    options(nostack)
                );
            },
            // SAFETY: the caller owns the page.
            Self::RepByte => unsafe {
                asm!("rep stosb", inout("rdi") page => _, inout("rcx") PAGE_SIZE => _, in("al") 0_u8,
                    options(nostack, preserves_flags));
            },
            // SAFETY: the caller owns the page.
            Self::RepQuad => unsafe {
                asm!("rep stosq", inout("rdi") page => _, inout("rcx") WORDS => _, in("rax") 0_u64,
                    options(nostack, preserves_flags));
            },
            // SAFETY: the caller owns the page.
            Self::Unrolled => unsafe {
                asm!(
                    "2:",
                    "mov [{page}], {zero}",
                    "mov [{page} + 8], {zero}",
                    "mov [{page} + 16], {zero}",
                    "mov [{page} + 24], {zero}",
                    "mov [{page} + 32], {zero}",
                    "mov [{page} + 40], {zero}",
                    "mov [{page} + 48], {zero}",
                    "mov [{page} + 56], {zero}",
                    "add {page}, 64",
                    "dec {rounds}",
                    "jnz 2b",
                    page = inout(reg) page => _,
                    zero = in(reg) 0_u64,
                    rounds = inout(reg) WORDS / UNROLL => _,
                    options(nostack)
                );
            },
        }
    }

    /// Copies a page.
    ///
    /// # Safety
    /// Both must be page aligned and different; `to` the caller's to write, `from` to read. The way must be
    /// [available](Self::is_available).
    pub unsafe fn copy(self, to: *mut u8, from: *const u8) {
        match self {
            // SAFETY: the caller vouches for both and for AVX; the register gets its contents back.
            Self::Avx => unsafe {
                let mut borrowed = MaybeUninit::<Borrowed>::uninit();
                asm!(
                    "vmovdqa [{borrowed}], ymm0",
                    "2:",
                    "vmovdqa ymm0, [{from}]",
                    "vmovdqa [{to}], ymm0",
                    "vmovdqa ymm0, [{from} + 32]",
                    "vmovdqa [{to} + 32], ymm0",
                    "vmovdqa ymm0, [{from} + 64]",
                    "vmovdqa [{to} + 64], ymm0",
                    "vmovdqa ymm0, [{from} + 96]",
                    "vmovdqa [{to} + 96], ymm0",
                    "vmovdqa ymm0, [{from} + 128]",
                    "vmovdqa [{to} + 128], ymm0",
                    "vmovdqa ymm0, [{from} + 160]",
                    "vmovdqa [{to} + 160], ymm0",
                    "vmovdqa ymm0, [{from} + 192]",
                    "vmovdqa [{to} + 192], ymm0",
                    "vmovdqa ymm0, [{from} + 224]",
                    "vmovdqa [{to} + 224], ymm0",
                    "add {from}, {round}",
                    "add {to}, {round}",
                    "cmp {to}, {end}",
                    "jne 2b",
                    "vmovdqa ymm0, [{borrowed}]",
                    borrowed = in(reg) borrowed.as_mut_ptr(),
                    round = const VECTOR_ROUND,
                    end = in(reg) to.wrapping_add(PAGE_SIZE),
                    from = inout(reg) from => _,
                    to = inout(reg) to => _,
                    options(nostack)
                );
            },
            // SAFETY: the caller vouches for both.
            Self::RepByte => unsafe {
                asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") PAGE_SIZE => _,
                    options(nostack, preserves_flags));
            },
            // SAFETY: the caller vouches for both.
            Self::RepQuad => unsafe {
                asm!("rep movsq", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") WORDS => _,
                    options(nostack, preserves_flags));
            },
            // SAFETY: the caller vouches for both.
            Self::Unrolled => unsafe {
                asm!(
                    "2:",
                    "mov {a}, [{from}]",
                    "mov {b}, [{from} + 8]",
                    "mov {c}, [{from} + 16]",
                    "mov {d}, [{from} + 24]",
                    "mov [{to}], {a}",
                    "mov [{to} + 8], {b}",
                    "mov [{to} + 16], {c}",
                    "mov [{to} + 24], {d}",
                    "mov {a}, [{from} + 32]",
                    "mov {b}, [{from} + 40]",
                    "mov {c}, [{from} + 48]",
                    "mov {d}, [{from} + 56]",
                    "mov [{to} + 32], {a}",
                    "mov [{to} + 40], {b}",
                    "mov [{to} + 48], {c}",
                    "mov [{to} + 56], {d}",
                    "add {from}, 64",
                    "add {to}, 64",
                    "dec {rounds}",
                    "jnz 2b",
                    from = inout(reg) from => _,
                    to = inout(reg) to => _,
                    rounds = inout(reg) WORDS / UNROLL => _,
                    a = out(reg) _,
                    b = out(reg) _,
                    c = out(reg) _,
                    d = out(reg) _,
                    options(nostack)
                );
            },
        }
    }

    /// Times the clearing of `page`: counter steps of the best round.
    ///
    /// # Safety
    /// As [`clear`](Self::clear).
    unsafe fn time(self, page: *mut u8) -> u64 {
        let mut best = u64::MAX;
        for _ in 0..ROUNDS {
            let start = clock::ticks();
            // SAFETY: the caller owns the page.
            unsafe { self.clear(page) };
            best = best.min(clock::ticks() - start);
        }
        best
    }
}

/// Chooses how pages are zeroed and copied: as `forced` says, else the fastest on `page`.
///
/// # Safety
/// `page` must be page aligned and the caller's to write.
pub unsafe fn choose(forced: Option<PageOps>, page: *mut u8) {
    let timed = PageOps::ALL.map(|(ops, name)| {
        // SAFETY: the caller owns the page, and the way is available.
        let ticks = ops.is_available().then(|| unsafe { ops.time(page) });
        (ops, name, ticks.map(clock::ticks_to_nanos))
    });
    let fastest = timed
        .iter()
        .filter(|(.., nanos)| nanos.is_some())
        .min_by_key(|(.., nanos)| *nanos)
        .map_or(PageOps::RepQuad, |(ops, ..)| *ops);
    let forced = forced.filter(|ops| {
        if !ops.is_available() {
            crate::log::warn!("page_ops: this processor has no {}", ops.name());
        }
        ops.is_available()
    });
    let chosen = forced.unwrap_or(fastest);
    CHOSEN.store(chosen as u8, Ordering::Relaxed);
    let times = fmt::from_fn(|f| {
        timed
            .iter()
            .filter_map(|(_, name, nanos)| Some((name, (*nanos)?)))
            .try_for_each(|(name, nanos)| write!(f, " {name} {nanos} ns,"))
    });
    crate::log::info!(
        "page_ops: {} ({}):{times} a page",
        chosen.name(),
        if forced.is_some() { "forced" } else { "fastest" },
    );
}
