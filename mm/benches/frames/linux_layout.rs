//! A frame allocator with Linux's data layout, as the yardstick: 64-byte page records, lists through the records,
//! one zone lock, per-CPU lists in front of it, one atomic counter per subpage.
//!
//! It models what the layout costs, written from the description of the structures (v4.5 to v6.1), not from their
//! code. Where versions differ it takes what is fastest: orders 1 to 3 and huge pages have per-CPU lists too (since v5.13), no interrupts
//! are switched off, no memory cgroup is charged.

use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};

use spin::Mutex;

/// Orders 0 to 10.
const ORDERS: usize = 11;
/// The order of a huge page.
pub(crate) const HUGE: usize = 9;
/// Pages moved at once between a per-CPU list and the zone.
const BATCH: u32 = 63;
/// Length of a per-CPU list at which a batch goes back.
const HIGH: u32 = 6 * BATCH;
/// The same for huge pages.
const HUGE_BATCH: u32 = 8;
const HUGE_HIGH: u32 = 16;

const PG_BUDDY: u64 = 1;

/// The 64 bytes of one frame.
#[repr(C, align(64))]
pub(crate) struct Record {
    flags: AtomicU64,
    next: AtomicPtr<Record>,
    prev: AtomicPtr<Record>,
    mapping: AtomicU64,
    index: AtomicU64,
    /// Order of a free block.
    private: AtomicU64,
    pub(crate) mapcount: AtomicI32,
    pub(crate) refcount: AtomicI32,
    memcg: AtomicU64,
}

const _: () = assert!(size_of::<Record>() == 64);

type Link = *mut Record;

/// A list head: first record, or null.
#[derive(Default)]
struct List {
    first: AtomicPtr<Record>,
    len: AtomicU32,
}

/// The record behind a link.
fn at<'a>(link: Link) -> &'a Record {
    // SAFETY: links are only ever made from the boxed array of records, which outlives every use inside `Zone`.
    unsafe { &*link }
}

impl List {
    fn push(&self, page: Link) {
        let first = self.first.load(Relaxed);
        at(page).next.store(first, Relaxed);
        at(page).prev.store(core::ptr::null_mut(), Relaxed);
        if !first.is_null() {
            at(first).prev.store(page, Relaxed);
        }
        self.first.store(page, Relaxed);
        self.len.store(self.len.load(Relaxed) + 1, Relaxed);
    }

    fn remove(&self, page: Link) {
        let (next, prev) = (at(page).next.load(Relaxed), at(page).prev.load(Relaxed));
        if prev.is_null() {
            self.first.store(next, Relaxed);
        } else {
            at(prev).next.store(next, Relaxed);
        }
        if !next.is_null() {
            at(next).prev.store(prev, Relaxed);
        }
        self.len.store(self.len.load(Relaxed) - 1, Relaxed);
    }

    fn pop(&self) -> Option<Link> {
        let page = self.first.load(Relaxed);
        if page.is_null() {
            return None;
        }
        self.remove(page);
        Some(page)
    }
}

/// Which of a CPU's lists holds blocks of this order, if one does.
fn cached(order: usize) -> Option<usize> {
    match order {
        0..=3 => Some(order),
        HUGE => Some(4),
        _ => None,
    }
}

/// How many blocks of an order move at once, and at how many a list gives a batch back.
fn batch(order: usize) -> (u32, u32) {
    if order == HUGE {
        (HUGE_BATCH, HUGE_HIGH)
    } else {
        (BATCH >> order, HIGH >> order)
    }
}

/// One CPU's lists, by order 0 and 9, and its event counters.
#[derive(Default)]
struct CpuLists {
    /// Orders 0 to 3, and 9.
    lists: [List; 5],
    allocated: u64,
    freed: u64,
}

/// The allocator.
pub(crate) struct Zone {
    records: Box<[Record]>,
    free: Mutex<[List; ORDERS]>,
    cpus: [Mutex<CpuLists>; 2],
}

impl Zone {
    /// A zone whose frames are all free. `frames` is a multiple of 1024.
    pub(crate) fn new(frames: u32) -> Self {
        let record = |_| Record {
            flags: AtomicU64::new(0),
            next: AtomicPtr::default(),
            prev: AtomicPtr::default(),
            mapping: AtomicU64::new(0),
            index: AtomicU64::new(0),
            private: AtomicU64::new(0),
            mapcount: AtomicI32::new(-1),
            refcount: AtomicI32::new(0),
            memcg: AtomicU64::new(0),
        };
        let zone = Self {
            records: (0..frames).map(record).collect(),
            free: Mutex::new(Default::default()),
            cpus: Default::default(),
        };
        crate::platform::back_by_huge_pages(&zone.records);
        for pfn in (0..frames).step_by(1 << (ORDERS - 1)) {
            zone.free_one(&zone.free.lock(), pfn, ORDERS - 1);
        }
        zone
    }

    /// The record of a frame.
    pub(crate) fn record(&self, pfn: u32) -> &Record {
        &self.records[pfn as usize]
    }

    fn link(&self, pfn: u32) -> Link {
        core::ptr::from_ref(self.record(pfn)).cast_mut()
    }

    fn pfn(&self, link: Link) -> u32 {
        u32::try_from((link.addr() - self.records.as_ptr().addr()) / size_of::<Record>())
            .expect("inside the array")
    }

    /// Takes a block for CPU `cpu`.
    pub(crate) fn alloc(&self, cpu: usize, order: usize) -> Option<u32> {
        let page = if let Some(nth) = cached(order) {
            let mut lists = self.cpus[cpu].lock();
            lists.allocated += 1 << order;
            let list = &lists.lists[nth];
            if list.len.load(Relaxed) == 0 {
                self.refill(list, order);
            }
            list.pop()?
        } else {
            self.take(&self.free.lock(), order)?
        };
        // What a new page is checked for and given.
        let record = at(page);
        let suspect = record.flags.load(Relaxed) != 0
            || record.mapping.load(Relaxed) != 0
            || record.mapcount.load(Relaxed) != -1
            || record.refcount.load(Relaxed) != 0
            || record.memcg.load(Relaxed) != 0;
        assert!(!suspect, "bad page");
        record.private.store(0, Relaxed);
        record.refcount.store(1, Relaxed);
        Some(self.pfn(page))
    }

    /// Drops the one reference of a block.
    pub(crate) fn put(&self, cpu: usize, pfn: u32, order: usize) {
        let page = self.link(pfn);
        let record = at(page);
        if record.refcount.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) != 1 {
            return;
        }
        let suspect = record.flags.load(Relaxed) != 0
            || record.mapping.load(Relaxed) != 0
            || record.mapcount.load(Relaxed) != -1
            || record.memcg.load(Relaxed) != 0;
        assert!(!suspect, "bad page");
        record.index.store(0, Relaxed);
        let Some(nth) = cached(order) else {
            return self.free_one(&self.free.lock(), pfn, order);
        };
        let mut lists = self.cpus[cpu].lock();
        lists.freed += 1 << order;
        let list = &lists.lists[nth];
        let (batch, high) = batch(order);
        list.push(page);
        if list.len.load(Relaxed) >= high {
            let areas = self.free.lock();
            for page in std::iter::from_fn(|| list.pop()).take(batch as usize) {
                self.free_one(&areas, self.pfn(page), order);
            }
        }
    }

    fn refill(&self, list: &List, order: usize) {
        let areas = self.free.lock();
        let (batch, _) = batch(order);
        for page in std::iter::from_fn(|| self.take(&areas, order)).take(batch as usize) {
            list.push(page);
        }
    }

    fn take(&self, areas: &[List; ORDERS], order: usize) -> Option<Link> {
        let (mut found, page) = (order..ORDERS).find_map(|o| areas[o].pop().map(|page| (o, page)))?;
        at(page).flags.store(0, Relaxed);
        while found > order {
            found -= 1;
            let upper = self.link(self.pfn(page) + (1 << found));
            self.put_on_list(areas, upper, found);
        }
        Some(page)
    }

    fn put_on_list(&self, areas: &[List; ORDERS], page: Link, order: usize) {
        at(page).private.store(order as u64, Relaxed);
        at(page).flags.store(PG_BUDDY, Relaxed);
        areas[order].push(page);
    }

    fn free_one(&self, areas: &[List; ORDERS], mut pfn: u32, mut order: usize) {
        while order < ORDERS - 1 {
            let buddy = pfn ^ (1 << order);
            let Some(record) = self.records.get(buddy as usize) else {
                break;
            };
            if record.flags.load(Relaxed) != PG_BUDDY || record.private.load(Relaxed) != order as u64 {
                break;
            }
            areas[order].remove(self.link(buddy));
            record.flags.store(0, Relaxed);
            record.private.store(0, Relaxed);
            pfn &= buddy;
            order += 1;
        }
        self.put_on_list(areas, self.link(pfn), order);
    }
}

/// One page table.
pub(crate) type PageTable = [AtomicU64; 512];

/// An empty page table.
pub(crate) const fn page_table() -> PageTable {
    [const { AtomicU64::new(0) }; 512]
}

const DIRTY_FLAG: u64 = 1 << 4;
const LOCKED_FLAG: u64 = 1;
const WRITABLE: u64 = 2;
const PRESENT: u64 = 0x67;

fn entry_of(pfn: u32) -> u64 {
    u64::from(pfn) << 12 | PRESENT
}

/// A huge page that one process maps by a PMD: what [`Zone::alloc`] gave, made compound.
pub(crate) fn make_huge(zone: &Zone, head: u32) {
    for i in 1..512 {
        // Odd: a tail, and where its head is.
        zone.record(head + i)
            .next
            .store((zone.link(head).addr() + 1) as Link, Relaxed);
    }
    zone.record(head).flags.store(DIRTY_FLAG, Relaxed);
    compound_mapcount(zone, head).store(1, Relaxed);
}

/// Undoes [`make_huge`]: what is left is a block of the allocator's with one reference.
pub(crate) fn unmake_huge(zone: &Zone, head: u32) {
    for i in 0..512 {
        let record = zone.record(head + i);
        record.next.store(core::ptr::null_mut(), Relaxed);
        record.mapcount.store(-1, Relaxed);
        record.flags.store(0, Relaxed);
        record.mapping.store(0, Relaxed);
        record.refcount.store(0, Relaxed);
    }
    compound_mapcount(zone, head).store(0, Relaxed);
    zone.record(head).refcount.store(1, Relaxed);
}

/// The compound mapcount lies in the first tail.
fn compound_mapcount(zone: &Zone, head: u32) -> &AtomicU64 {
    &zone.record(head + 1).memcg
}

/// The record of the compound page that `page` is part of.
fn head_of(page: &Record) -> &Record {
    let link = page.next.load(Relaxed);
    if link.addr() & 1 == 1 {
        at(link.map_addr(|addr| addr - 1))
    } else {
        page
    }
}

/// The PMD split of a page that only one process maps: 512 entries written, 512 counters raised one atomic each, and
/// the compound counter lowered.
pub(crate) fn split_pmd(zone: &Zone, head: u32, table: &PageTable) {
    zone.record(head).refcount.fetch_add(511, Relaxed);
    for (i, entry) in (0..).zip(table) {
        entry.store(entry_of(head + i), Relaxed);
        zone.record(head + i).mapcount.fetch_add(1, Relaxed);
    }
    // The entry that now points to the table is written last.
    compound_mapcount(zone, head).fetch_sub(1, Relaxed);
}

/// Unmaps the 512 PTEs of a huge page, and frees it: each entry taken with an exchange, one counter lowered per page,
/// one reference given back per page once the batch is flushed.
pub(crate) fn zap_ptes(zone: &Zone, table: &PageTable) {
    let mut batch = [0u32; 512];
    for (entry, slot) in table.iter().zip(&mut batch) {
        let old = entry.swap(0, Relaxed);
        let pfn = u32::try_from(old >> 12).expect("a frame number");
        let page = zone.record(pfn);
        let head = head_of(page);
        if old & 0x40 != 0 && head.flags.load(Relaxed) & DIRTY_FLAG == 0 {
            head.flags.fetch_or(DIRTY_FLAG, Relaxed);
        }
        page.mapcount.fetch_sub(1, Relaxed);
        *slot = pfn;
    }
    for pfn in batch {
        let head = head_of(zone.record(pfn));
        if head.refcount.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) == 1 {
            // The destructor looks at every tail before the block is one again.
            let first = zone.pfn(core::ptr::from_ref(head).cast_mut());
            for i in 1..512 {
                let tail = zone.record(first + i);
                assert!(tail.mapcount.load(Relaxed) == -1, "bad page");
                tail.next.store(core::ptr::null_mut(), Relaxed);
            }
            head.flags.store(0, Relaxed);
            head.refcount.store(1, Relaxed);
            zone.put(0, first, HUGE);
        }
    }
}

/// `fork` of 512 PTEs of a huge page: a zeroed table for the child; per entry one reference, one counter, the right to
/// write taken away, and the child's entry written. Returns the child's table, a frame that holds nothing.
pub(crate) fn fork_ptes(zone: &Zone, table: &PageTable, child: &PageTable) -> Option<u32> {
    let frame = zone.alloc(0, 0)?;
    child.iter().for_each(|entry| entry.store(0, Relaxed));
    for (entry, copy) in table.iter().zip(child) {
        let old = entry.load(Relaxed);
        let page = zone.record(u32::try_from(old >> 12).expect("a frame number"));
        head_of(page).refcount.fetch_add(1, Relaxed);
        page.mapcount.fetch_add(1, Relaxed);
        entry.fetch_and(!WRITABLE, Relaxed);
        copy.store(old & !WRITABLE, Relaxed);
    }
    Some(frame)
}

/// Splits a huge page that one process maps by `table`'s PMD into base pages, the others' references given back:
/// - the PMD becomes 512 entries that say "being moved"; per page a counter up, a counter down, a reference down;
/// - the references are frozen; per tail: flags, link, reference, and its place on the LRU list;
/// - per page: a reference up, a counter up, the entry back; then its lock and the split's reference given back.
pub(crate) fn split_folio(zone: &Zone, head: u32, table: &PageTable) {
    const MOVING: u64 = 0x3e;
    let first = zone.record(head);
    first.refcount.fetch_add(512, Relaxed);
    for (i, entry) in (0..).zip(table) {
        entry.store(u64::from(head + i) << 12 | MOVING, Relaxed);
        zone.record(head + i).mapcount.fetch_add(1, Relaxed);
    }
    compound_mapcount(zone, head).fetch_sub(1, Relaxed);
    for i in 0..512 {
        zone.record(head + i).mapcount.fetch_sub(1, Relaxed);
        first.refcount.fetch_sub(1, Relaxed);
    }
    let frozen = first.refcount.compare_exchange(1, 0, Relaxed, Relaxed);
    assert_eq!(frozen, Ok(1), "nobody else has a reference");
    let flags = first.flags.load(Relaxed) | LOCKED_FLAG;
    for i in (0..512).rev() {
        let page = zone.record(head + i);
        page.flags.store(flags, Relaxed);
        page.mapping.store(1, Relaxed);
        page.index.store(u64::from(i), Relaxed);
        // Its place on the LRU list, behind the head; storing it ends its being a tail.
        page.next.store(core::ptr::null_mut(), Relaxed);
        page.prev.store(zone.link(head), Relaxed);
        page.refcount.store(1, std::sync::atomic::Ordering::Release);
    }
    for (i, entry) in (0..).zip(table) {
        let page = zone.record(head + i);
        page.refcount.fetch_add(1, Relaxed);
        page.mapcount.fetch_add(1, Relaxed);
        entry.store(entry_of(head + i), Relaxed);
    }
    for i in 0..512 {
        let page = zone.record(head + i);
        page.flags
            .fetch_and(!LOCKED_FLAG, std::sync::atomic::Ordering::Release);
        let last = page.refcount.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) == 1;
        assert!(!last, "an entry has a reference");
    }
}

/// The yardstick of `fork` for a PMD-mapped huge page: a page-table page out of the per-CPU cache, not zeroed, two PMDs
/// stored, two locked adds. Returns the page-table page.
pub(crate) fn fork_pmd(zone: &Zone, head: u32, parent: &AtomicU64, child: &AtomicU64) -> Option<u32> {
    let frame = zone.alloc(0, 0)?;
    parent.store(entry_of(head) & !WRITABLE, Relaxed);
    child.store(entry_of(head) & !WRITABLE, Relaxed);
    zone.record(head).refcount.fetch_add(1, Relaxed);
    compound_mapcount(zone, head).fetch_add(1, Relaxed);
    Some(frame)
}
