//! F3: what somebody who runs the machine may choose: when faults use huge pages.
//!
//! Each setting is one word that faults read without a lock: a change holds for the faults that begin after it, and
//! changes nothing that is mapped already.
//!
//! Origin: Linux `transparent_hugepage_flags`. Differs: `always` is the default however little memory there is.

use crate::{flags::VmaFlags, memory::Memory, platform::Platform, sync::AtomicU32};

/// Which areas a fault may give a huge page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ThpMode {
    /// All that did not decline (`MADV_NOHUGEPAGE`).
    Always = 0,
    /// Those that asked for it (`MADV_HUGEPAGE`).
    Madvise = 1,
    /// None.
    Never = 2,
}

impl ThpMode {
    /// All of them, in the order in which Linux shows them.
    pub const ALL: [Self; 3] = [Self::Always, Self::Madvise, Self::Never];

    /// Its name in `/sys/kernel/mm/transparent_hugepage/enabled`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Madvise => "madvise",
            Self::Never => "never",
        }
    }

    /// Whether an area with these flags may have huge pages.
    #[must_use]
    pub const fn allows(self, flags: VmaFlags) -> bool {
        !flags.contains(VmaFlags::NOHUGEPAGE)
            && match self {
                Self::Always => true,
                Self::Madvise => flags.contains(VmaFlags::HUGEPAGE),
                Self::Never => false,
            }
    }
}

/// What reading 2 MiB of memory that was never written finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ZeroReads {
    /// A huge page of its own.
    OwnPage = 0,
    /// The huge zero page, shared by all.
    ZeroPage = 1,
}

/// The settings of one machine.
pub(crate) struct Settings {
    thp: AtomicU32,
    zero_reads: AtomicU32,
}

impl Settings {
    pub(crate) const fn new() -> Self {
        Self {
            thp: AtomicU32::new(ThpMode::Always as u32),
            zero_reads: AtomicU32::new(ZeroReads::ZeroPage as u32),
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Which areas a fault may give a huge page.
    #[must_use]
    pub fn thp_mode(&self) -> ThpMode {
        let stored = self.settings().thp.load_relaxed();
        let is_stored = |mode: &ThpMode| *mode as u32 == stored;
        ThpMode::ALL
            .into_iter()
            .find(is_stored)
            .unwrap_or(ThpMode::Always)
    }

    /// Chooses which areas a fault may give a huge page from now on.
    pub fn set_thp_mode(&self, mode: ThpMode) {
        self.settings().thp.store_relaxed(mode as u32);
    }

    /// What reading memory that was never written finds.
    #[must_use]
    pub fn zero_reads(&self) -> ZeroReads {
        if self.settings().zero_reads.load_relaxed() == ZeroReads::OwnPage as u32 {
            ZeroReads::OwnPage
        } else {
            ZeroReads::ZeroPage
        }
    }

    /// Chooses what reading memory that was never written finds from now on.
    pub fn set_zero_reads(&self, reads: ZeroReads) {
        self.settings().zero_reads.store_relaxed(reads as u32);
    }
}
