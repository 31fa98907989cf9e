//! Breaks one rule at a time, so that tests can show that the checker notices. Only with feature `sabotage`.

use super::Rule;
use crate::{
    addr::{Pfn, VirtAddr},
    address_space::AddressSpace,
    anon_vma::AnonVma,
    counter::Counter,
    flags::{PageFlags, Prot},
    memory::Memory,
    order::Order,
    page::PageState,
    pgtable::{PmdEntry, PmdSlot, PteEntry, cursor::Level},
    platform::Platform,
};

/// Something that must never happen, done on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// The record of the page gets a reference that nobody holds.
    Reference(Pfn),
    /// The page's own mapcount goes up without an entry.
    Mapcount(Pfn),
    /// The PMD mapcount of the huge page goes up by so many, its total by so many.
    CompoundMapcounts(Pfn, u32, u32),
    /// The huge page claims to be double mapped, its subpages' counters in agreement.
    DoubleMap(Pfn),
    /// A tail leads to another head.
    TailLink(Pfn, Pfn),
    /// Flags are set that should not be.
    SetFlags(Pfn, PageFlags),
    /// Flags are cleared that should be set.
    ClearFlags(Pfn, PageFlags),
    /// A huge page that is partly unmapped leaves the deferred split queue.
    Unqueue(Pfn),
    /// The page's linear index changes.
    Index(Pfn),
    /// The page's own mapping word is written.
    Mapping(Pfn),
    /// A pin is counted that has no reference.
    Pin(Pfn),
    /// A page that two entries map is marked as one process's alone.
    Share(Pfn),
    /// A counter goes up.
    Count(Counter),
    /// A deposited table is used up although its huge mapping is still there.
    Withdraw(VirtAddr),
    /// The huge entry stays invalidated.
    Invalidate(VirtAddr),
    /// The PTE allows writing.
    MakeWritable(VirtAddr),
    /// The resident pages of the space are one too many.
    Rss,
    /// The tables of the space are one too many.
    Tables,
    /// The size of the space's areas is one page too large.
    TotalVm,
    /// The tree of areas remembers a wrong height.
    AreaTree,
    /// A block of one page is freed twice.
    FreeTwice,
    /// A used page loses its last reference and is not freed.
    Lose,
    /// Two free buddies are not merged.
    Unmerge,
    /// An object of a slab is forgotten.
    LeakObject,
}

impl Damage {
    /// The rule that the checker must find broken.
    #[must_use]
    pub fn rule(self) -> Rule {
        match self {
            Self::Reference(_) => Rule::References,
            Self::Mapcount(_) => Rule::Mapcount,
            Self::CompoundMapcounts(_, 0, _) => Rule::TotalMapcount,
            Self::CompoundMapcounts(..) => Rule::Mapcount,
            Self::DoubleMap(_) => Rule::DoubleMap,
            Self::TailLink(..) => Rule::CompoundLinks,
            Self::SetFlags(_, PageFlags::QUEUED) => Rule::DeferredQueue,
            Self::SetFlags(_, PageFlags::HWPOISON) => Rule::BadPage,
            Self::SetFlags(..) => Rule::FreeRecord,
            Self::ClearFlags(_, PageFlags::LRU) => Rule::Lru,
            Self::Unqueue(_) => Rule::DeferredQueue,
            Self::ClearFlags(..) => Rule::Table,
            Self::Index(_) => Rule::Relation,
            Self::Mapping(_) => Rule::TailMapping,
            Self::Pin(_) => Rule::Pins,
            Self::Share(_) => Rule::Exclusive,
            Self::Count(counter) => Rule::Count(counter),
            Self::Withdraw(_) => Rule::DepositedTables,
            Self::Invalidate(_) => Rule::TransientEntry,
            Self::MakeWritable(_) => Rule::EntryRights,
            Self::Rss => Rule::Rss,
            Self::Tables => Rule::SpaceTables,
            Self::TotalVm => Rule::Areas,
            Self::AreaTree => Rule::AreaTree,
            Self::FreeTwice => Rule::FreeListed,
            Self::Lose => Rule::Lost,
            Self::Unmerge => Rule::FreeMerged,
            Self::LeakObject => Rule::SlabObjects,
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Does `damage`. The machine is of no use afterwards, but to the checker.
    ///
    /// # Panics
    /// If what is to be damaged is not there.
    pub fn sabotage(&self, space: &AddressSpace, damage: Damage) {
        match damage {
            Damage::Reference(pfn) => {
                let page = self.pages().page(pfn);
                if page.refs_hint() == 0 {
                    page.ref_init()
                } else {
                    page.ref_add(1)
                }
            }
            Damage::Mapcount(pfn) => _ = self.pages().page(pfn).map_small(),
            Damage::CompoundMapcounts(head, entire, total) => self.miscount(head, entire, total),
            Damage::DoubleMap(head) => self.claim_double_map(head),
            Damage::TailLink(tail, head) => self
                .pages()
                .page(tail)
                .set_private_state(PageState::new_tail(head)),
            Damage::SetFlags(pfn, flags) => _ = self.pages().page(pfn).set_flags(flags),
            Damage::ClearFlags(pfn, flags) => _ = self.pages().page(pfn).clear_flags(flags),
            Damage::Unqueue(pfn) => self.unqueue_deferred_split(self.pages().page(pfn)),
            Damage::Index(pfn) => {
                let page = self.pages().page(pfn);
                page.set_index(page.index() + 1);
            }
            Damage::Mapping(pfn) => {
                let page = self.pages().page(pfn);
                page.set_identity(page.own_mapping() | 0x1000, page.index());
            }
            Damage::Pin(pfn) => self.pages().page(pfn).pin_add(),
            Damage::Share(pfn) => _ = self.pages().page(pfn).set_flags(PageFlags::EXCLUSIVE),
            Damage::Count(counter) => self.add(counter, 1),
            Damage::Withdraw(addr) => {
                let slot = self.damaged_slot(space, addr);
                let table = self.withdraw_table(&self.lock_table(slot.table));
                space.tables().count(-1);
                self.free_table(table);
            }
            Damage::Invalidate(addr) => {
                let slot = self.damaged_slot(space, addr);
                let _ = self.invalidate_pmd(space, &self.lock_table(slot.table), slot);
            }
            Damage::MakeWritable(addr) => self.make_writable(space, addr),
            Damage::Rss => space.add_rss(1),
            Damage::Tables => space.tables().count(1),
            Damage::TotalVm => space.add_vm(crate::flags::VmaFlags::empty(), 1),
            Damage::AreaTree => space.areas().misremember(),
            Damage::FreeTwice => self.free_twice(),
            Damage::Lose => {
                let pfn = self
                    .alloc_pages(Order::ZERO, crate::flags::AllocFlags::empty())
                    .expect("memory is there");
                let _ = self.pages().page(pfn).ref_sub_and_test(1);
            }
            Damage::Unmerge => self.unmerge(),
            Damage::LeakObject => {
                let _ = self.alloc_object(AnonVma::new()).expect("memory is there");
            }
        }
    }

    fn damaged_slot(&self, space: &AddressSpace, addr: VirtAddr) -> PmdSlot {
        self.pmd_slot(space.tables(), addr)
            .expect("the address has a PMD table")
    }

    fn miscount(&self, head: Pfn, entire: u32, total: u32) {
        let tail = self.pages().page(head.offset(1));
        tail.set_index(tail.index() + u64::from(entire) + (u64::from(total - entire) << 32));
    }

    fn claim_double_map(&self, head: Pfn) {
        self.pages().page(head.offset(1)).set_flags(PageFlags::DOUBLE_MAP);
        for i in 0..crate::addr::HPAGE_PAGES {
            let _ = self.pages().page(head.offset(i)).map_small();
        }
    }

    fn make_writable(&self, space: &AddressSpace, addr: VirtAddr) {
        let slot = self.damaged_slot(space, addr);
        let PmdEntry::Table(table) = self.table(slot.table).pmd(slot.index) else {
            panic!("no table of PTEs at {addr:?}")
        };
        let ptes = self.lock_table(table);
        let index = Level::Pte.index(addr);
        let PteEntry::Present { pfn, prot, marks } = ptes.pte(index) else {
            panic!("no page at {addr:?}")
        };
        ptes.set_pte(
            index,
            PteEntry::Present {
                pfn,
                prot: prot | Prot::WRITE,
                marks,
            },
        );
    }

    fn free_twice(&self) {
        let pfn = self
            .alloc_pages(Order::ZERO, crate::flags::AllocFlags::empty())
            .expect("memory is there");
        self.free_pages(pfn, Order::ZERO);
        self.free_block(pfn, Order::ZERO);
    }

    /// Hides a free page from its buddy while that one is freed.
    fn unmerge(&self) {
        let one = Order::new(1).expect("an order");
        let pfn = self
            .alloc_pages(one, crate::flags::AllocFlags::empty())
            .expect("memory is there");
        let (lower, upper) = (self.pages().page(pfn), self.pages().page(pfn.offset(1)));
        upper.ref_init();
        self.free_pages(lower.pfn(), Order::ZERO);
        self.drain_all_magazines();
        lower.set_private_state(PageState::CLEAR);
        self.free_pages(upper.pfn(), Order::ZERO);
        self.drain_all_magazines();
        lower.set_private_state(PageState::new_buddy(Order::ZERO));
    }
}
