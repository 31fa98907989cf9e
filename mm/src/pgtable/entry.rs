//! Page-table entries: raw bits and what they mean.
//!
//! | form | P (0) | PS (7) | PROTNONE (8) | MIGRATION (10) | bits 12-51 | decoded |
//! |---|---|---|---|---|---|---|
//! | all zero | 0 | 0 | 0 | 0 | 0 | `None` |
//! | table (PMD only) | 1 | 0 | - | 0 | table | `Table` |
//! | base page (PTE only) | 1 | - | - | 0 | frame | `Present` |
//! | base page, no access | 0 | - | 1 | 0 | frame | `Present`, prot empty |
//! | huge page (PMD only) | 1 | 1 | - | 0 | first frame | `Huge`, valid |
//! | huge page, no access | 0 | 1 | 1 | 0 | first frame | `Huge`, valid, prot empty |
//! | huge page, invalidated | 0 | 1 | 0 | 0 | first frame | `Huge`, not valid: being split or changed |
//! | migration | 0 | 0 | 0 | 1 | first frame of the page that moves | `Migration`, kind in bits 52-53 |
//!
//! In every form: W is bit 1, U bit 2, A bit 5, D bit 6, soft-dirty bit 9, NX bit 63. The invalidated form keeps PS, so
//! that no walker takes a PMD that is being split for a table or for nothing (Linux f72e7dcdd252 is the story of
//! getting that wrong).

use crate::{
    addr::{PAGE_SHIFT, Pfn},
    flags::Prot,
};

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
/// The hardware's global bit; it means nothing to the hardware in an entry that is not present.
const PROTNONE: u64 = 1 << 8;
const SOFT_DIRTY: u64 = 1 << 9;
const MIGRATION: u64 = 1 << 10;
const KIND_SHIFT: u32 = 52;
const NX: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What a migration entry allows its mapping to become again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MigrationKind {
    /// Read-only, maybe shared.
    Read = 0,
    /// Read-only, ours alone.
    ReadExclusive = 1,
    /// Writable.
    Write = 2,
}

/// Marks that hardware and kernel keep in an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Marks {
    /// Used since last cleared.
    pub accessed: bool,
    /// Written since last cleared.
    pub dirty: bool,
    /// Written since `clear_refs` asked.
    pub soft_dirty: bool,
}

impl Marks {
    /// What a write leaves behind.
    pub const WRITTEN: Self = Self {
        accessed: true,
        dirty: true,
        soft_dirty: true,
    };
    /// What a read leaves behind.
    pub const READ: Self = Self {
        accessed: true,
        dirty: false,
        soft_dirty: false,
    };

    /// What the kernel leaves when it reads for a program: nothing was written.
    pub const ACCESSED: Self = Self {
        accessed: true,
        dirty: false,
        soft_dirty: false,
    };

    /// Whether it has all marks of `other`.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        other.bits() & !self.bits() == 0
    }

    /// The same, not accessed lately.
    #[must_use]
    pub const fn old(self) -> Self {
        Self {
            accessed: false,
            ..self
        }
    }

    /// The marks that either has.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self::of(self.bits() | other.bits())
    }

    const fn bits(self) -> u64 {
        let mut bits = 0;
        if self.accessed {
            bits |= A;
        }
        if self.dirty {
            bits |= D;
        }
        if self.soft_dirty {
            bits |= SOFT_DIRTY;
        }
        bits
    }

    pub(super) const fn of(raw: u64) -> Self {
        Self {
            accessed: raw & A != 0,
            dirty: raw & D != 0,
            soft_dirty: raw & SOFT_DIRTY != 0,
        }
    }
}

/// A PTE, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PteEntry {
    /// Nothing.
    None,
    /// A base page; `prot` empty: mapped without access.
    Present {
        /// The frame.
        pfn: Pfn,
        /// What the hardware allows.
        prot: Prot,
        /// Accessed, dirty.
        marks: Marks,
    },
    /// The page is being moved; whoever faults waits.
    Migration {
        /// The page that moves.
        pfn: Pfn,
        /// What it comes back as.
        kind: MigrationKind,
        /// Accessed, dirty.
        marks: Marks,
    },
}

/// A PMD entry, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PmdEntry {
    /// Nothing.
    None,
    /// A table of PTEs.
    Table(Pfn),
    /// A huge page.
    Huge {
        /// Its first frame.
        pfn: Pfn,
        /// What the hardware allows.
        prot: Prot,
        /// Accessed, dirty.
        marks: Marks,
        /// False while the entry is being split or changed: the hardware does not see it.
        valid: bool,
    },
    /// The huge page is being moved.
    Migration {
        /// First frame of the page that moves.
        pfn: Pfn,
        /// What it comes back as.
        kind: MigrationKind,
        /// Accessed, dirty.
        marks: Marks,
    },
}

/// A PTE's bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct RawPte(pub u64);

/// A PMD entry's bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct RawPmd(pub u64);

fn frame_bits(pfn: Pfn) -> u64 {
    u64::from(pfn.raw()) << PAGE_SHIFT
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "entries are made from 32-bit frame numbers"
)]
const fn frame_of(raw: u64) -> Pfn {
    Pfn::new(((raw & FRAME) >> PAGE_SHIFT) as u32)
}

/// Presence and rights. User memory only: the supervisor has the direct map.
const fn prot_bits(prot: Prot) -> u64 {
    let nx = if prot.contains(Prot::EXEC) { 0 } else { NX };
    let w = if prot.contains(Prot::WRITE) { W } else { 0 };
    let presence = if prot.is_empty() { PROTNONE } else { P };
    presence | U | w | nx
}

const fn prot_of(raw: u64) -> Prot {
    if raw & P == 0 {
        return Prot::empty();
    }
    let w = if raw & W != 0 { Prot::WRITE } else { Prot::empty() };
    let x = if raw & NX == 0 { Prot::EXEC } else { Prot::empty() };
    Prot::READ.union(w).union(x)
}

const fn kind_of(raw: u64) -> MigrationKind {
    match raw >> KIND_SHIFT & 3 {
        0 => MigrationKind::Read,
        1 => MigrationKind::ReadExclusive,
        _ => MigrationKind::Write,
    }
}

fn migration_bits(pfn: Pfn, kind: MigrationKind, marks: Marks) -> u64 {
    MIGRATION | frame_bits(pfn) | (kind as u64) << KIND_SHIFT | marks.bits()
}

const MARKS: u64 = A | D | SOFT_DIRTY;

impl RawPte {
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// For a locked "and" that takes the right to write.
    pub(crate) const ALL_BUT_WRITE: u64 = !W;

    /// The bits without marks.
    pub(crate) const fn without_marks(self) -> u64 {
        self.0 & !MARKS
    }

    /// The same with the marks of another entry besides.
    pub(crate) const fn with_marks_of(self, other: Self) -> Self {
        Self(self.0 | other.0 & MARKS)
    }

    /// The entry that maps the next frame in the same way.
    pub(crate) const fn of_next_frame(self) -> Self {
        Self(self.0 + (1 << PAGE_SHIFT))
    }

    /// Whether the hardware may set the dirty bit at any moment.
    pub(crate) const fn may_get_dirty(self) -> bool {
        self.0 & (P | W | D) == P | W
    }

    /// The frame of the page that it maps; `None` if it maps none.
    pub(crate) const fn frame(self) -> Option<Pfn> {
        if self.0 & (P | PROTNONE) != 0 {
            Some(frame_of(self.0))
        } else {
            None
        }
    }

    /// Whether the hardware allows writing.
    pub(crate) const fn is_writable(self) -> bool {
        self.0 & W != 0
    }

    /// Whether it was written through.
    pub(crate) const fn is_dirty(self) -> bool {
        self.0 & D != 0
    }

    /// A migration entry for the page that a present entry maps, with its marks.
    pub(crate) const fn moving(self, kind: MigrationKind) -> Self {
        Self(MIGRATION | self.0 & (FRAME | MARKS) | (kind as u64) << KIND_SHIFT)
    }

    /// The same, read-only.
    pub(crate) const fn read_only(self) -> Self {
        Self(self.0 & !W)
    }

    /// The same, not accessed lately.
    pub(crate) const fn old(self) -> Self {
        Self(self.0 & !A)
    }

    /// Says what the bits mean.
    #[must_use]
    pub fn decode(self) -> PteEntry {
        let raw = self.0;
        let marks = Marks::of(raw);
        if raw & (P | PROTNONE) != 0 {
            PteEntry::Present {
                pfn: frame_of(raw),
                prot: prot_of(raw),
                marks,
            }
        } else if raw & MIGRATION != 0 {
            PteEntry::Migration {
                pfn: frame_of(raw),
                kind: kind_of(raw),
                marks,
            }
        } else {
            PteEntry::None
        }
    }
}

impl PteEntry {
    /// Returns the bits.
    #[must_use]
    pub fn encode(self) -> RawPte {
        RawPte(match self {
            Self::None => 0,
            Self::Present { pfn, prot, marks } => prot_bits(prot) | frame_bits(pfn) | marks.bits(),
            Self::Migration { pfn, kind, marks } => migration_bits(pfn, kind, marks),
        })
    }
}

impl RawPmd {
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// Says what the bits mean.
    #[must_use]
    pub fn decode(self) -> PmdEntry {
        let raw = self.0;
        let marks = Marks::of(raw);
        if raw & PS != 0 {
            let valid = raw & (P | PROTNONE) != 0;
            // Invalidated: the rights it had and will have again are still in the bits.
            let prot = if valid { prot_of(raw) } else { prot_of(raw | P) };
            PmdEntry::Huge {
                pfn: frame_of(raw),
                prot,
                marks,
                valid,
            }
        } else if raw & P != 0 {
            PmdEntry::Table(frame_of(raw))
        } else if raw & MIGRATION != 0 {
            PmdEntry::Migration {
                pfn: frame_of(raw),
                kind: kind_of(raw),
                marks,
            }
        } else {
            PmdEntry::None
        }
    }
}

impl PmdEntry {
    /// Returns the bits.
    ///
    /// A mapping without access cannot be told from an invalidated one once it is invalidated; it is then decoded as
    /// readable. Whoever invalidates keeps the decoded entry.
    #[must_use]
    pub fn encode(self) -> RawPmd {
        RawPmd(match self {
            Self::None => 0,
            Self::Table(pfn) => P | W | U | frame_bits(pfn),
            Self::Huge {
                pfn,
                prot,
                marks,
                valid,
            } => {
                let presence = if valid { 0 } else { P | PROTNONE };
                (prot_bits(prot) & !presence) | PS | frame_bits(pfn) | marks.bits()
            }
            Self::Migration { pfn, kind, marks } => migration_bits(pfn, kind, marks),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_marks() -> impl Iterator<Item = Marks> {
        (0..8).map(|bits| Marks {
            accessed: bits & 1 != 0,
            dirty: bits & 2 != 0,
            soft_dirty: bits & 4 != 0,
        })
    }

    /// Rights that hardware can tell apart: readable ones, and none at all.
    fn all_prots() -> impl Iterator<Item = Prot> {
        (0..4)
            .map(|bits| Prot::READ | Prot::from_bits_truncate(bits << 1))
            .chain([Prot::empty()])
    }

    const KINDS: [MigrationKind; 3] = [
        MigrationKind::Read,
        MigrationKind::ReadExclusive,
        MigrationKind::Write,
    ];

    #[test]
    fn pte_encoding_is_a_bijection() {
        assert_eq!(RawPte::NONE.decode(), PteEntry::None);
        assert_eq!(PteEntry::None.encode(), RawPte::NONE);
        for pfn in [0, 1, 0x1234_5678, u32::MAX].map(Pfn::new) {
            for marks in all_marks() {
                for prot in all_prots() {
                    let entry = PteEntry::Present { pfn, prot, marks };
                    assert_eq!(entry.encode().decode(), entry);
                }
                for kind in KINDS {
                    let entry = PteEntry::Migration { pfn, kind, marks };
                    assert_eq!(entry.encode().decode(), entry);
                }
            }
        }
    }

    #[test]
    fn pmd_encoding_is_a_bijection() {
        assert_eq!(RawPmd::NONE.decode(), PmdEntry::None);
        for pfn in [0, 0x200, 0x1234_5600].map(Pfn::new) {
            let table = PmdEntry::Table(pfn);
            assert_eq!(table.encode().decode(), table);
            for marks in all_marks() {
                for prot in all_prots() {
                    let entry = PmdEntry::Huge {
                        pfn,
                        prot,
                        marks,
                        valid: true,
                    };
                    assert_eq!(entry.encode().decode(), entry);
                }
                for prot in all_prots().filter(|prot| !prot.is_empty()) {
                    let entry = PmdEntry::Huge {
                        pfn,
                        prot,
                        marks,
                        valid: false,
                    };
                    assert_eq!(entry.encode().decode(), entry);
                }
                for kind in KINDS {
                    let entry = PmdEntry::Migration { pfn, kind, marks };
                    assert_eq!(entry.encode().decode(), entry);
                }
            }
        }
    }

    #[test]
    fn hardware_sees_neither_invalid_nor_inaccessible_nor_migrating_entries() {
        let marks = Marks::default();
        let pfn = Pfn::new(0x400);
        let invalid = PmdEntry::Huge {
            pfn,
            prot: Prot::READ | Prot::WRITE,
            marks,
            valid: false,
        };
        let hidden = PmdEntry::Huge {
            pfn,
            prot: Prot::empty(),
            marks,
            valid: true,
        };
        let moving = PmdEntry::Migration {
            pfn,
            kind: MigrationKind::Write,
            marks,
        };
        for entry in [invalid, hidden, moving] {
            assert_eq!(entry.encode().0 & P, 0, "{entry:?}");
        }
        assert_ne!(
            invalid.encode().0 & PS,
            0,
            "an invalid huge entry must not look like a table"
        );
    }
}
