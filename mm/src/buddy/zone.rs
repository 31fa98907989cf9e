//! A zone: a range of frames that devices of some age can reach, with its own free lists, lock and watermarks.

use super::{free_area::FreeAreas, magazine::Magazine, watermark::Watermarks};
use crate::{
    addr::{Pfn, PfnRange},
    flags::AllocFlags,
    memory::Memory,
    order::Order,
    page::PageList,
    platform::Platform,
    sync::{AtomicU32, SpinLock},
};

/// Which zone. The names and limits are Linux's on x86_64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZoneKind {
    /// Below 16 MiB.
    Dma,
    /// Below 4 GiB.
    Dma32,
    /// The rest.
    Normal,
}

impl ZoneKind {
    /// All zones, lowest first.
    pub const ALL: [Self; 3] = [Self::Dma, Self::Dma32, Self::Normal];

    /// The name in `/proc/buddyinfo`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dma => "DMA",
            Self::Dma32 => "DMA32",
            Self::Normal => "Normal",
        }
    }

    /// Frames of a node that belong to the zone.
    pub(crate) fn range(self, node: PfnRange) -> PfnRange {
        const DMA_END: u32 = 16 << 8;
        const DMA32_END: u32 = 4 << 18;
        let (start, end) = match self {
            Self::Dma => (0, DMA_END),
            Self::Dma32 => (DMA_END, DMA32_END),
            Self::Normal => (DMA32_END, u32::MAX),
        };
        let clip = |pfn| Pfn::new(pfn).clamp(node.start(), node.end());
        let (start, end) = (clip(start), clip(end));
        PfnRange::new(start, end).unwrap_or_else(|| unreachable!("clipping keeps the order"))
    }
}

/// Pages that a refill brings at once: enough to make the zone lock rare, few enough not to hoard.
const REFILL: Order = match Order::new(6) {
    Some(order) => order,
    None => unreachable!(),
};

/// A zone of one node.
pub struct Zone {
    kind: ZoneKind,
    range: PfnRange,
    free: SpinLock<FreeAreas>,
    /// Copy of the lists' page count for readers without the lock.
    nr_free: AtomicU32,
    nr_managed: AtomicU32,
    watermarks: Watermarks,
}

impl Zone {
    /// The part of a node that is of this kind.
    pub(crate) fn new(kind: ZoneKind, node: PfnRange) -> Self {
        Self {
            kind,
            range: kind.range(node),
            free: SpinLock::new(FreeAreas::new()),
            nr_free: AtomicU32::new(0),
            nr_managed: AtomicU32::new(0),
            watermarks: Watermarks::new(),
        }
    }

    /// Which zone this is.
    #[must_use]
    pub fn kind(&self) -> ZoneKind {
        self.kind
    }

    /// Its frames, holes included.
    #[must_use]
    pub fn range(&self) -> PfnRange {
        self.range
    }

    /// Free base pages on its lists.
    #[must_use]
    pub fn nr_free(&self) -> u32 {
        self.nr_free.load_relaxed()
    }

    /// Base pages given to it.
    #[must_use]
    pub fn nr_managed(&self) -> u32 {
        self.nr_managed.load_relaxed()
    }

    /// Its limits.
    #[must_use]
    pub fn watermarks(&self) -> &Watermarks {
        &self.watermarks
    }

    pub(super) fn add_managed(&self, nr: u32) {
        self.nr_managed.fetch_add_relaxed(nr);
    }

    /// Free blocks of each order, counted under the zone lock.
    pub fn blocks<P: Platform>(&self, mem: &Memory<P>) -> [u64; Order::COUNT] {
        self.free.lock(mem.platform()).blocks()
    }

    /// Shows `visit` the list of free blocks of each order, under the zone lock.
    pub(crate) fn for_each_list<P: Platform>(
        &self,
        mem: &Memory<P>,
        visit: &mut dyn FnMut(Order, &PageList),
    ) {
        let free = self.free.lock(mem.platform());
        for order in Order::all() {
            visit(order, free.list(order));
        }
    }

    pub(super) fn free<P: Platform>(&self, mem: &Memory<P>, pfn: Pfn, order: Order) {
        self.free_batch(mem, &[pfn.raw()], order);
    }

    /// Frees many blocks of one order under one hold of the lock. Those that lie one behind the other, lowest first, go
    /// in as few blocks as they make.
    pub(super) fn free_batch<P: Platform>(&self, mem: &Memory<P>, pfns: &[u32], order: Order) {
        let mut free = self.free.lock(mem.platform());
        for run in pfns.chunk_by(|&a, &b| a.checked_add(order.nr_pages()) == Some(b)) {
            let mut pfn = Pfn::new(run[0]);
            let mut left = order.nr_pages() * u32::try_from(run.len()).unwrap_or(1);
            while left > 0 {
                let block = pfn.largest_block(left);
                free.free(mem.pages(), self.range, pfn, block);
                left -= block.nr_pages();
                // Behind the last frame there may be no number.
                pfn = if left > 0 {
                    pfn.offset(block.nr_pages())
                } else {
                    pfn
                };
            }
        }
        self.nr_free.store_relaxed(free.nr_free());
    }

    pub(super) fn alloc<P: Platform>(&self, mem: &Memory<P>, order: Order, flags: AllocFlags) -> Option<Pfn> {
        if !self.watermarks.allow(self.nr_free(), order.nr_pages(), flags) {
            return None;
        }
        let mut free = self.free.lock(mem.platform());
        let pfn = free.alloc(mem.pages(), order)?;
        self.nr_free.store_relaxed(free.nr_free());
        Some(pfn)
    }

    /// Puts at least one block of `order` into the magazine, which holds none; returns whether it could.
    ///
    /// Takes whole runs: one list operation brings up to [`REFILL`] pages.
    pub(super) fn refill<P: Platform>(
        &self,
        mem: &Memory<P>,
        magazine: &mut Magazine<'_>,
        order: Order,
        flags: AllocFlags,
    ) -> bool {
        let mut free = self.free.lock(mem.platform());
        let mut want = REFILL.nr_pages().max(order.nr_pages());
        while let Some(run) = Order::at_most(want).filter(|&most| most >= order) {
            let run = free.best_run(order, run).unwrap_or(order);
            // Close to the limit, what is allowed is one block, for this very request.
            let run = if self.watermarks.allow(free.nr_free(), run.nr_pages(), flags) {
                run
            } else {
                order
            };
            if !self.watermarks.allow(free.nr_free(), run.nr_pages(), flags) {
                break;
            }
            let Some(first) = free.alloc(mem.pages(), run) else {
                break;
            };
            magazine.push_run(order, first, run.nr_pages() / order.nr_pages());
            want -= run.nr_pages();
        }
        self.nr_free.store_relaxed(free.nr_free());
        !magazine.held(order).is_empty()
    }
}
