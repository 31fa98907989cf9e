//! F3: all memory of one machine: page array, nodes, zones, per-CPU data, object caches.
//!
//! ```text
//!   Memory<P> ── platform: P
//!      ├── pages: PageArray ─────────┐
//!      ├── per-CPU: counters, magazine ──┤ in metadata frames that the platform sets aside at boot
//!      ├── nodes[]: zones, LRU lists, deferred split queue
//!      └── caches: the slabs of each object type
//! ```
//! There is no global: tests run many machines side by side. Operations are methods of `Memory<P>`, spread over the
//! modules of the floors above.

use core::ptr::NonNull;

use crate::{
    addr::{PAGE_SIZE, Pfn, PfnRange},
    buddy::{Cache, Zone, ZoneKind},
    counter::{Counter, CpuCounters},
    flags::{AllocFlags, PageFlags},
    folio::{DeferredQueue, LruLists},
    node::{MAX_NODES, NodeId, NodeMap, NodeMask},
    page::{PageArray, PageState, compound::BadPage},
    platform::Platform,
    settings::Settings,
    slab::Caches,
    sync::{AtomicU32, AtomicU64, SpinLock},
};

/// What is near each other: some zones, and the queues of the pages in them.
pub struct Node {
    zones: [Zone; ZoneKind::ALL.len()],
    lru: SpinLock<LruLists>,
    deferred: SpinLock<DeferredQueue>,
}

impl Node {
    fn new(range: PfnRange) -> Self {
        Self {
            zones: ZoneKind::ALL.map(|kind| Zone::new(kind, range)),
            lru: SpinLock::new(LruLists::new()),
            deferred: SpinLock::new(DeferredQueue::new()),
        }
    }

    /// Its zones, lowest first.
    #[must_use]
    pub fn zones(&self) -> &[Zone] {
        &self.zones
    }

    pub(crate) fn lru(&self) -> &SpinLock<LruLists> {
        &self.lru
    }

    pub(crate) fn deferred(&self) -> &SpinLock<DeferredQueue> {
        &self.deferred
    }
}

/// One CPU's own data. All-zero bytes are a valid value. On cache lines of its own.
#[repr(C, align(128))]
pub struct PerCpu {
    counters: CpuCounters,
    cache: Cache,
}

impl PerCpu {
    pub(crate) fn counters(&self) -> &CpuCounters {
        &self.counters
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }
}

/// Where the zero pages are.
pub(crate) struct ZeroPages {
    /// The 4 KiB one, in the metadata: like the kernel's image it is there from the start and for ever.
    small: Pfn,
    /// The 2 MiB one; 0: there is none.
    huge: AtomicU32,
}

impl ZeroPages {
    const fn new(small: Pfn) -> Self {
        Self {
            small,
            huge: AtomicU32::new(0),
        }
    }

    /// The 4 KiB one.
    pub(crate) fn small(&self) -> Pfn {
        self.small
    }

    /// The 2 MiB one.
    pub(crate) fn huge(&self) -> Option<Pfn> {
        Some(self.huge.load_acquire())
            .filter(|&pfn| pfn != 0)
            .map(Pfn::new)
    }

    /// Makes `fresh` the 2 MiB one, or returns the one that is there.
    pub(crate) fn offer_huge(&self, fresh: Pfn) -> Result<(), Pfn> {
        self.huge
            .compare_exchange_acqrel(0, fresh.raw())
            .map(drop)
            .map_err(Pfn::new)
    }

    /// There is no 2 MiB one any more.
    pub(crate) fn forget_huge(&self) {
        self.huge.store_release(0);
    }
}

/// All memory of one machine.
pub struct Memory<P: Platform> {
    platform: P,
    pages: PageArray,
    /// The frames that hold page records, per-CPU data and the zero page. Never the allocator's.
    metadata: PfnRange,
    per_cpu: NonNull<PerCpu>,
    node_map: NodeMap,
    /// One for each number that a node may have; those that are not in the map have no frames.
    nodes: [Node; MAX_NODES],
    /// Node whose deferred queue is looked at first the next time.
    next_deferred: AtomicU32,
    caches: Caches,
    zero: ZeroPages,
    settings: Settings,
    drain: SpinLock<()>,
    bad_pages: AtomicU64,
    #[cfg(feature = "sabotage")]
    broken: crate::sabotage::Switch,
    /// Allocations until one fails; 0: none will. See [`Memory::inject_alloc_failure`].
    #[cfg(feature = "fault-injection")]
    fail_in: AtomicU64,
}

// SAFETY: `per_cpu` points to metadata that belongs to this value alone; everything in it is an atomic, or a magazine,
// which one CPU at a time reaches (see `buddy::magazine`).
unsafe impl<P: Platform + Send> Send for Memory<P> {}
// SAFETY: as above.
unsafe impl<P: Platform + Sync> Sync for Memory<P> {}

impl<P: Platform> Memory<P> {
    /// Bytes that page records, per-CPU data and the zero page take for `frames` frames and `nr_cpus` CPUs.
    #[must_use]
    pub const fn metadata_size(frames: u32, nr_cpus: u32) -> usize {
        Self::zero_page_offset(frames, nr_cpus) + PAGE_SIZE
    }

    /// Where in the metadata the zero page lies: behind everything else. Zeroed it is by contract.
    const fn zero_page_offset(frames: u32, nr_cpus: u32) -> usize {
        (Self::per_cpu_offset(frames) + nr_cpus as usize * size_of::<PerCpu>()).next_multiple_of(PAGE_SIZE)
    }

    const fn per_cpu_offset(frames: u32) -> usize {
        PageArray::size(frames).next_multiple_of(align_of::<PerCpu>())
    }

    /// Starts managing the memory of `platform`. Every frame begins as a hole; see [`Memory::add_memory`].
    ///
    /// # Safety
    /// `metadata` must be the first of enough frames of the platform's window for [`Memory::metadata_size`] bytes;
    /// they must be zeroed and belong to nobody else, ever.
    #[must_use]
    pub unsafe fn new(platform: P, metadata: Pfn) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self::with_nodes(platform, metadata, NodeMap::ONE) }
    }

    /// [`Memory::new`], with the frames in several nodes.
    ///
    /// # Safety
    /// As [`Memory::new`].
    #[must_use]
    pub unsafe fn with_nodes(platform: P, metadata: Pfn, node_map: NodeMap) -> Self {
        let frames = platform.frames();
        let behind = |bytes: usize| {
            metadata.offset(
                u32::try_from(bytes / PAGE_SIZE).unwrap_or_else(|_| unreachable!("below 2^32 frames")),
            )
        };
        let zero_page = behind(Self::zero_page_offset(frames, platform.nr_cpus()));
        let metadata_end = behind(Self::metadata_size(frames, platform.nr_cpus()));
        let start = NonNull::new(platform.frame_ptr(metadata))
            .unwrap_or_else(|| unreachable!("the window does not start at null"));
        // SAFETY: the caller vouches for the memory; a frame is aligned to more than 64 bytes.
        let pages = unsafe { PageArray::new(start, frames) };
        // SAFETY: the per-CPU data lie behind the records, inside the same metadata.
        let per_cpu = unsafe { start.add(Self::per_cpu_offset(frames)) }.cast();
        for pfn in 0..frames {
            pages
                .page(Pfn::new(pfn))
                .set_private_state(PageState::of(PageFlags::NOPAGE));
        }
        // Those who reach it through an entry take references like to any other page; it keeps this one for ever.
        pages.page(zero_page).ref_init();
        let node_at = |n: usize| {
            let node = u32::try_from(n).ok().and_then(NodeId::new);
            Node::new(node_map.range(node.unwrap_or(NodeId::FIRST), frames))
        };
        Self {
            platform,
            pages,
            metadata: PfnRange::new(metadata, metadata_end)
                .unwrap_or_else(|| unreachable!("the end comes last")),
            per_cpu,
            node_map,
            nodes: core::array::from_fn(node_at),
            next_deferred: AtomicU32::new(0),
            caches: Caches::new(),
            zero: ZeroPages::new(zero_page),
            settings: Settings::new(),
            drain: SpinLock::new(()),
            bad_pages: AtomicU64::new(0),
            #[cfg(feature = "sabotage")]
            broken: crate::sabotage::Switch::new(),
            #[cfg(feature = "fault-injection")]
            fail_in: AtomicU64::new(0),
        }
    }

    /// Says that there is memory at `range`. It is reserved until [released](Memory::release) to the allocator.
    ///
    /// # Panics
    /// If part of the range is past the array or was added before.
    pub fn add_memory(&self, range: PfnRange) {
        for pfn in range.iter() {
            let page = self.pages.page(pfn);
            assert!(
                page.state() == PageState::of(PageFlags::NOPAGE),
                "{page:?}: added twice"
            );
            page.set_private_state(PageState::of(PageFlags::RESERVED));
        }
    }

    /// The machine.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// The page records.
    pub fn pages(&self) -> &PageArray {
        &self.pages
    }

    /// The frames that hold what `mm` itself knows.
    pub(crate) fn metadata(&self) -> PfnRange {
        self.metadata
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes[..self.nr_nodes() as usize]
    }

    /// How many nodes there are.
    #[must_use]
    pub fn nr_nodes(&self) -> u32 {
        self.node_map.nr()
    }

    /// The numbers of the nodes.
    #[must_use]
    pub fn nodes_online(&self) -> NodeMask {
        self.node_map.nodes()
    }

    /// The numbers of the nodes that have memory which programs can get.
    #[must_use]
    pub fn nodes_with_memory(&self) -> NodeMask {
        let has_some = |&node: &NodeId| self.node(node).zones.iter().any(|zone| zone.nr_managed() > 0);
        let nodes = self.nodes_online().iter().filter(has_some);
        nodes.fold(NodeMask::EMPTY, |mask, node| mask.with(node))
    }

    /// The node nearest to the running CPU: the first, as on a Linux whose nodes are fake.
    #[must_use]
    pub fn local_node(&self) -> NodeId {
        NodeId::FIRST
    }

    /// The number of the node that a frame belongs to.
    #[must_use]
    pub fn node_id(&self, pfn: Pfn) -> NodeId {
        self.node_map.node_of(pfn)
    }

    /// The frames of a node, holes included.
    #[must_use]
    pub fn node_range(&self, node: NodeId) -> PfnRange {
        self.node_map.range(node, self.platform.frames())
    }

    /// A node by its number; one without memory if the machine has no such node.
    pub(crate) fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node.index()]
    }

    /// The node that a frame belongs to.
    pub(crate) fn node_of(&self, pfn: Pfn) -> &Node {
        self.node(self.node_id(pfn))
    }

    /// All nodes, each time beginning with another one.
    pub(crate) fn nodes_in_turn(&self) -> impl Iterator<Item = NodeId> {
        let nr = self.nr_nodes();
        // Relaxed: it only has to change.
        let first = self.next_deferred.fetch_add_relaxed(1);
        (0..nr).filter_map(move |i| NodeId::new((first.wrapping_add(i)) % nr))
    }

    /// All zones of all nodes.
    pub fn zones(&self) -> impl Iterator<Item = &Zone> {
        self.nodes().iter().flat_map(|node| node.zones.iter())
    }

    /// The zone of a frame.
    pub(crate) fn zone_of(&self, pfn: Pfn) -> &Zone {
        let zones = &self.node_of(pfn).zones;
        zones
            .iter()
            .find(|zone| zone.range().contains(pfn))
            .unwrap_or(&zones[0])
    }

    pub(crate) fn set_watermarks(&self) {
        let all = self.nr_managed_pages();
        for zone in self.zones() {
            zone.watermarks().set(zone.nr_managed(), all);
        }
    }

    /// All CPUs' data.
    pub(crate) fn per_cpu_all(&self) -> &[PerCpu] {
        // SAFETY: `new` placed one zeroed, and so valid, value per CPU here; all of it may be shared.
        unsafe { core::slice::from_raw_parts(self.per_cpu.as_ptr(), self.platform.nr_cpus() as usize) }
    }

    /// The running CPU's data.
    pub(crate) fn this_cpu(&self, guard: &P::PreemptGuard) -> &PerCpu {
        &self.per_cpu_all()[self.platform.cpu(guard).index()]
    }

    /// Adds to a counter.
    pub(crate) fn add(&self, counter: Counter, delta: i64) {
        crate::vm_assert!(delta >= 0 || !counter.is_event(), "{counter:?} goes down");
        let preempt = self.platform.preempt_off();
        self.this_cpu(&preempt).counters().add(counter, delta);
    }

    /// Returns a number of `/proc/vmstat`. Exact when nobody is running, never negative.
    #[must_use]
    pub fn count(&self, counter: Counter) -> u64 {
        let sum = self
            .per_cpu_all()
            .iter()
            .fold(0u64, |sum, cpu| sum.wrapping_add(cpu.counters().get(counter)));
        // While others run, a sum may miss the positive half of a pair.
        if sum > u64::MAX / 2 { 0 } else { sum }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Which broken version this is, if any: ask by `sabotage!`.
    #[cfg(feature = "sabotage")]
    pub(crate) fn broken(&self) -> &crate::sabotage::Switch {
        &self.broken
    }

    pub(crate) fn zero_pages(&self) -> &ZeroPages {
        &self.zero
    }

    /// Held by whoever touches other CPUs' magazines.
    pub(crate) fn drain_lock(&self) -> &SpinLock<()> {
        &self.drain
    }

    pub(crate) fn caches(&self) -> &Caches {
        &self.caches
    }

    /// Fills a frame that the caller owns with zeroes.
    pub(crate) fn clear_frame(&self, pfn: Pfn) {
        // SAFETY: the frame is the caller's own and lies in the window.
        unsafe { self.platform.clear_page(self.platform.frame_ptr(pfn)) }
    }

    /// Pages whose record was found corrupt. Anything but 0 is a defect of ours.
    #[must_use]
    pub fn nr_bad_pages(&self) -> u64 {
        self.bad_pages.load_relaxed()
    }

    pub(crate) fn note_bad_page(&self, pfn: Pfn, reason: BadPage) {
        self.bad_pages.fetch_add_relaxed(1);
        if cfg!(all(debug_assertions, not(feature = "bad-page-test"))) {
            panic!("bad page: {reason}: {:?}", self.pages.page(pfn));
        }
    }

    /// Makes the `nth` allocation from now fail, once (1: the very next). `None` cancels. Counted are blocks of frames
    /// and slab objects.
    #[cfg(feature = "fault-injection")]
    pub fn inject_alloc_failure(&self, nth: Option<u64>) {
        self.fail_in.store_relaxed(nth.unwrap_or(0));
    }

    /// Whether an injected failure is still to come.
    #[cfg(feature = "fault-injection")]
    #[must_use]
    pub fn alloc_failure_pending(&self) -> bool {
        self.fail_in.load_relaxed() > 0
    }

    /// Whether this allocation is the one that was chosen to fail. Those on the reserve never are.
    pub(crate) fn allocation_must_fail(&self, flags: AllocFlags) -> bool {
        if flags.contains(AllocFlags::RESERVE) {
            return false;
        }
        #[cfg(feature = "fault-injection")]
        if self.fail_in.load_relaxed() > 0 {
            return self.fail_in.try_update_acqrel(|left| left.checked_sub(1)) == Ok(1);
        }
        self.platform.must_fail()
    }
}
