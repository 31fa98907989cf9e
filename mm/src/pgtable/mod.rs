//! F4: page tables of user address spaces.
//!
//! ```text
//!   PGD ──> PUD ──> PMD table ──┬─ Table ──> PTE table ──> 512 base pages
//!   (root)          (its record:│
//!                    PT_LOCK,   └─ Huge ───> 512 base pages of one folio
//!                    list of deposited PTE tables)
//! ```
//! * **Entries** are decoded into enums before anything is decided ([`entry`]); a new kind of entry cannot be
//!   forgotten.
//! * **Locks**: every table page has its own lock, a bit in its record. The lock of the PMD table guards its PMD
//!   entries and its deposited tables; the lock of a PTE table guards its PTEs. PMD before PTE. Entries of
//!   upper tables are added under the parent's lock and removed only under the mmap lock held for writing.
//! * **Deposit**: a huge PMD mapping comes with a PTE table set aside, so that splitting it later cannot fail (I9).
//! * **Removal**: what is unmapped goes through a [`Gather`]: its frames are freed only after the TLB flush.
//!
//! Only the lower half of the root is ours; the platform fills the upper half for itself.

pub mod cursor;
pub mod entry;
mod gather;
mod table;
mod tree;

pub use cursor::{PmdSlot, Visit};
pub use entry::{MigrationKind, PmdEntry, PteEntry, RawPmd, RawPte};
pub use gather::Gather;
pub use table::PtLock;
pub use tree::PageTables;

pub use crate::table::Table;
