//! Zeroing and copying pages: several ways, one chosen at start by measurement.
//!
//! Which is fastest depends on the processor: on hardware `rep stosb` wins, under QEMU's TCG it costs four times as
//! much as plain stores although the processor advertises it. So the processor's word is not asked; each way is timed
//! on a warm page, the choice is logged, and `clear_page=NAME` on the command line forces it.
//! The kernel has no vector registers of its own, so none are used here.

use core::{
    arch::asm,
    sync::atomic::{AtomicU8, Ordering},
};

use mm::PAGE_SIZE;

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
}

const WORDS: usize = PAGE_SIZE / 8;
/// Words stored in a row.
const UNROLL: usize = 8;
/// Times each way is measured; the best counts. The first dozen rounds under an emulator include its translating.
const ROUNDS: usize = 32;

static CHOSEN: AtomicU8 = AtomicU8::new(PageOps::RepQuad as u8);

impl PageOps {
    const ALL: [(Self, &'static str); 3] = [
        (Self::RepByte, "stosb"),
        (Self::RepQuad, "stosq"),
        (Self::Unrolled, "unrolled"),
    ];

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
    /// `page` must be page aligned and the caller's to write.
    pub unsafe fn clear(self, page: *mut u8) {
        match self {
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
    /// Both must be page aligned and different; `to` the caller's to write, `from` to read.
    pub unsafe fn copy(self, to: *mut u8, from: *const u8) {
        match self {
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
        // SAFETY: the caller owns the page.
        let ticks = unsafe { ops.time(page) };
        (ops, name, clock::ticks_to_nanos(ticks))
    });
    let fastest = timed
        .iter()
        .min_by_key(|(_, _, nanos)| *nanos)
        .map_or(PageOps::RepQuad, |(ops, _, _)| *ops);
    let chosen = forced.unwrap_or(fastest);
    CHOSEN.store(chosen as u8, Ordering::Relaxed);
    let [a, b, c] = timed;
    crate::log::info!(
        "page_ops: {} ({}): {} {} ns, {} {} ns, {} {} ns a page",
        chosen.name(),
        if forced.is_some() { "forced" } else { "fastest" },
        a.1,
        a.2,
        b.1,
        b.2,
        c.1,
        c.2
    );
}
