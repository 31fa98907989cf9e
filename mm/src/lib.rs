//! The memory manager of Cleave: transparent huge pages that are mapped by 2 MiB and 4 KiB entries at once.
//!
//! No `alloc`, no globals, no assembly, no printing: one source that runs in the kernel and, on a simulated machine, on
//! the host. Everything is reached through [`Memory`], made from a [`Platform`].
//!
//! # The floors
//! A file may use its own floor where that is said, and any floor below; never one above.
//! ```text
//! F9 report     kpageflags kpagecount pagemap smaps · check            accepts any page, takes no sleeping lock of its own
//! F8 policy     deferred_split · migrate · mempolicy
//! F7 actions    fault (anonymous, huge, zero pages, copy-on-write) · fork · mapping (mmap, munmap, brk) · numa · mremap · mlock · advise · clear_refs · zap · protect · pin · gup_fast · split_pmd · split_folio · migration_entry
//! F6 relations  rmap
//! F5 spaces     address_space · vma
//! F4 tables     pgtable: entry, table, cursor, gather
//! F3 frames     memory · settings · buddy · slab · folio (lock, lru, put, deferred queue) · anon_vma · sabotage
//! F2 metadata   page: columns, state, refs, compound, mapcount
//! F1 contract   platform · policy · table · sync · trace · counter · assert
//! F0 units      addr · order · flags · error · node
//! ```
//! Start reading at [`page`], then [`page::mapcount`], [`split_pmd`], [`zap`].
#![no_std]

#[cfg(any(test, feature = "sabotage"))]
extern crate std;

pub mod addr;
pub mod address_space;
pub mod advise;
pub mod anon_vma;
mod assert;
pub mod buddy;
pub mod check;
pub mod clear_refs;
pub mod counter;
pub mod deferred_split;
pub mod error;
pub mod fault;
pub mod flags;
pub mod folio;
pub mod fork;
pub mod gup_fast;
pub mod mapping;
pub mod memory;
pub mod mempolicy;
pub mod migrate;
mod migration_entry;
pub mod mlock;
pub mod mremap;
pub mod node;
pub mod numa;
pub mod order;
pub mod page;
pub mod pgtable;
pub mod pin;
pub mod platform;
pub mod policy;
pub mod protect;
pub mod report;
pub mod rmap;
pub mod sabotage;
pub mod settings;
pub mod slab;
pub mod split_folio;
pub mod split_pmd;
pub mod sync;
pub mod table;
#[cfg(test)]
mod testing;
pub mod trace;
pub mod vma;
pub mod zap;

pub use addr::{
    ENTRIES, HPAGE_PAGES, PAGE_BYTES, PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, Pfn, PfnRange, PhysAddr, USER_END,
    VirtAddr, VirtRange,
};
pub use address_space::{AddressSpace, Limit, MmRef, VmKind};
pub use advise::Advice;
pub use clear_refs::ClearRefs;
pub use counter::Counter;
pub use error::{AllocError, Errno, MapError, SegvReason, VmFault};
pub use fault::{Access, FaultInfo};
pub use flags::{AllocFlags, PageFlags, Prot, VmaFlags};
pub use mapping::{MapRequest, Place};
pub use memory::Memory;
pub use migrate::{MigrateError, MigrateMode};
pub use mlock::Locking;
pub use mremap::{Destination, Remains, Remap};
pub use node::{MAX_NODES, NodeId, NodeMap, NodeMask};
pub use order::{Order, PMD_ORDER};
pub use platform::{CpuId, CpuMask, MAX_CPUS, Nanos, Platform, Stride, WaitKey};
pub use policy::{Mode, Placement, Policy, PolicyFlags};
pub use settings::{ThpMode, ZeroReads};
pub use vma::VmaInfo;
