//! F5: an address space (Linux `mm_struct`): areas, page tables, totals.
//!
//! ```text
//!   AddressSpace ── mmap lock (sleeping, reader-writer)
//!      ├── areas: VmaTree          (W) changed under the lock for writing, (R) read under it
//!      ├── tables: PageTables      the tree, its size, who may hold translations; see `pgtable` for its locks
//!      └── totals: rss, sizes      (A) atomics, changed next to what they count
//! ```
//! Lifetime: [`MmRef`] is a user of the space (Linux `mm_users`); giving back the last one unmaps everything and frees
//! the tables. Nothing else keeps a space alive yet.

use crate::{
    addr::{PAGE_BYTES, Pfn, USER_END, VirtAddr, VirtRange},
    error::AllocError,
    flags::VmaFlags,
    memory::Memory,
    pgtable::PageTables,
    platform::{CpuId, CpuMask, Platform},
    slab::{CacheId, Handle, Link, Object},
    sync::{AtomicU32, AtomicU64, RwLock},
    vma::{Vma, VmaInfo, VmaTree},
};

/// Most areas one space may have (Linux `vm.max_map_count`).
pub const MAX_AREAS: u32 = 65530;
/// Lowest address that a mapping may have without asking for it (Linux `vm.mmap_min_addr`).
pub const MIN_ADDR: u64 = 0x1_0000;
/// How far a stack may grow unless told otherwise.
pub const DEFAULT_STACK_LIMIT: u64 = 8 << 20;

/// What an area is counted as besides the total, in `/proc/PID/status` and `statm`. Each is of one kind, or none.
///
/// Origin: Linux 30bdbb78009e (v4.6): a stack is a stack whatever its rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmKind {
    /// Instructions: executable, not writable.
    Exec,
    /// Stacks: grow down.
    Stack,
    /// Data: writable, and nobody else sees the changes.
    Data,
}

impl VmKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Exec, Self::Stack, Self::Data];

    /// What areas with these flags are counted as.
    #[must_use]
    pub const fn of(flags: VmaFlags) -> Option<Self> {
        if flags.contains(VmaFlags::GROWSDOWN) {
            return Some(Self::Stack);
        }
        let writable = flags.contains(VmaFlags::WRITE);
        match flags.contains(VmaFlags::SHARED) {
            false if writable => Some(Self::Data),
            _ if flags.contains(VmaFlags::EXEC) && !writable => Some(Self::Exec),
            _ => None,
        }
    }
}

/// What a process may not exceed, in bytes; `u64::MAX`: no limit. Who sets it also says when: nothing that is there
/// already goes away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Limit {
    /// All areas together (`RLIMIT_AS`).
    Total,
    /// Areas that are [data](VmKind::Data), and they alone (`RLIMIT_DATA`, since Linux 30bdbb78009e not the stack).
    Data,
    /// What [`Self::Data`] may be raised to. While that is 0, this one holds instead.
    DataCeiling,
    /// A stack that grows (`RLIMIT_STACK`).
    Stack,
    /// Areas that are locked into memory (`RLIMIT_MEMLOCK`).
    Locked,
}

const NR_LIMITS: usize = 5;

/// Limits of a space that nobody limited.
const DEFAULT_LIMITS: [u64; NR_LIMITS] = {
    let mut limits = [u64::MAX; NR_LIMITS];
    limits[Limit::Stack as usize] = DEFAULT_STACK_LIMIT;
    limits
};

/// An address space. See the module's head.
#[derive(Debug)]
pub struct AddressSpace {
    /// Itself: what its areas point back to.
    this: Link<AddressSpace>,
    lock: RwLock,
    tables: PageTables,
    areas: VmaTree,
    nr_areas: AtomicU32,
    total_vm: AtomicU64,
    exec_vm: AtomicU64,
    stack_vm: AtomicU64,
    data_vm: AtomicU64,
    locked_vm: AtomicU64,
    /// How areas that come later are locked into memory. Under the mmap lock.
    future_locking: AtomicU32,
    rss_anon: AtomicU64,
    users: AtomicU32,
    code_start: AtomicU64,
    code_end: AtomicU64,
    brk_start: AtomicU64,
    brk_end: AtomicU64,
    mmap_top: AtomicU64,
    limits: [AtomicU64; NR_LIMITS],
    /// Odd while a fork copies the space: see [`Memory::pin_user_page`].
    forks: AtomicU32,
    /// Most pages that all areas ever spanned, as of the last time that they shrank.
    peak_vm: AtomicU64,
    /// Most resident pages, as of the last time that some went.
    peak_rss: AtomicU64,
}

/// A user of an address space. Dropping one without [`Memory::put_space`] leaks the space.
#[derive(Debug)]
#[must_use = "a user of an address space must be put"]
pub struct MmRef {
    space: Handle<AddressSpace>,
}

impl core::ops::Deref for MmRef {
    type Target = AddressSpace;

    fn deref(&self) -> &AddressSpace {
        &self.space
    }
}

impl Object for AddressSpace {
    const CACHE: CacheId = CacheId::AddressSpace;
}

impl AddressSpace {
    fn new(root: Pfn) -> Self {
        Self {
            this: Link::new(None),
            lock: RwLock::new(),
            tables: PageTables::new(root),
            areas: VmaTree::new(),
            nr_areas: AtomicU32::new(0),
            total_vm: AtomicU64::new(0),
            exec_vm: AtomicU64::new(0),
            stack_vm: AtomicU64::new(0),
            data_vm: AtomicU64::new(0),
            locked_vm: AtomicU64::new(0),
            future_locking: AtomicU32::new(0),
            rss_anon: AtomicU64::new(0),
            users: AtomicU32::new(1),
            code_start: AtomicU64::new(0),
            code_end: AtomicU64::new(0),
            brk_start: AtomicU64::new(0),
            brk_end: AtomicU64::new(0),
            mmap_top: AtomicU64::new(USER_END),
            limits: DEFAULT_LIMITS.map(AtomicU64::new),
            forks: AtomicU32::new(0),
            peak_vm: AtomicU64::new(0),
            peak_rss: AtomicU64::new(0),
        }
    }

    /// The frame of its top-level table. The platform owns entries 256 to 511 of it.
    #[must_use]
    pub fn root(&self) -> Pfn {
        self.tables.root()
    }

    /// Its page tables.
    pub(crate) fn tables(&self) -> &PageTables {
        &self.tables
    }

    /// A handle to itself.
    pub(crate) fn handle(&self) -> Handle<AddressSpace> {
        self.this
            .get()
            .unwrap_or_else(|| unreachable!("set when the space was made"))
    }

    /// The mmap lock.
    pub(crate) fn lock(&self) -> &RwLock {
        &self.lock
    }

    /// A fork begins to copy the space, or has done so. Hold the mmap lock for writing.
    ///
    /// An update, and not a store, so that of a fork and a pin at the same time one sees the other: the fork the pin, or
    /// the pin that [the number](Self::nr_forks) changed.
    pub(crate) fn note_fork(&self) {
        let _ = self.forks.try_update_acqrel(|forks| Some(forks.wrapping_add(1)));
    }

    /// Changes whenever a fork begins or ends; odd in between. An update for the reason told in
    /// [`note_fork`](Self::note_fork).
    pub(crate) fn nr_forks(&self) -> u32 {
        self.forks.fetch_or_acqrel(0)
    }

    /// Its areas. Hold the mmap lock.
    pub(crate) fn areas(&self) -> &VmaTree {
        &self.areas
    }

    /// Notes that `cpu` runs in this space and may hold translations of it.
    pub fn enter(&self, cpu: CpuId) {
        self.tables.enter(cpu);
    }

    /// Notes that `cpu` has dropped all translations of this space.
    pub fn leave(&self, cpu: CpuId) {
        self.tables.leave(cpu);
    }

    /// CPUs that may hold translations.
    #[must_use]
    pub fn cpus(&self) -> CpuMask {
        self.tables.cpus()
    }

    /// Resident anonymous base pages (invariant I13).
    #[must_use]
    pub fn rss_pages(&self) -> u64 {
        self.rss_anon.load_relaxed()
    }

    /// Base pages that all areas span.
    #[must_use]
    pub fn total_vm_pages(&self) -> u64 {
        self.total_vm.load_relaxed()
    }

    /// Base pages that areas of this kind span.
    #[must_use]
    pub fn vm_pages(&self, kind: VmKind) -> u64 {
        self.vm_total(kind).load_relaxed()
    }

    /// Base pages that areas span which are locked into memory.
    #[must_use]
    pub fn locked_pages(&self) -> u64 {
        self.locked_vm.load_relaxed()
    }

    /// The flags by which new areas are locked into memory.
    pub(crate) fn future_locking(&self) -> VmaFlags {
        VmaFlags::from_bits_truncate(self.future_locking.load_relaxed())
    }

    /// Says how new areas are locked into memory. The mmap lock is held for writing.
    pub(crate) fn set_future_locking(&self, flags: VmaFlags) {
        self.future_locking.store_relaxed(flags.bits());
    }

    fn vm_total(&self, kind: VmKind) -> &AtomicU64 {
        match kind {
            VmKind::Exec => &self.exec_vm,
            VmKind::Stack => &self.stack_vm,
            VmKind::Data => &self.data_vm,
        }
    }

    /// Where the program's instructions are, in whole pages; empty until set.
    #[must_use]
    pub fn code_bounds(&self) -> (VirtAddr, VirtAddr) {
        (
            VirtAddr::new_truncate(self.code_start.load_relaxed()),
            VirtAddr::new_truncate(self.code_end.load_relaxed()),
        )
    }

    /// Says where the program's instructions are: from `start` up to, not including, `end`.
    pub fn set_code_bounds(&self, start: VirtAddr, end: VirtAddr) {
        self.code_start.store_relaxed(start.as_u64());
        self.code_end.store_relaxed(end.as_u64());
    }

    /// Bytes in page tables of all levels, deposited ones included.
    #[must_use]
    pub fn pgtable_bytes(&self) -> u64 {
        self.tables.bytes()
    }

    /// Number of areas.
    #[must_use]
    pub fn nr_areas(&self) -> u32 {
        self.nr_areas.load_relaxed()
    }

    /// Addresses that new mappings may have: above [`MIN_ADDR`], below [`Self::set_mmap_top`].
    #[must_use]
    pub(crate) fn mmap_limits(&self) -> VirtRange {
        let top = self.mmap_top.load_relaxed();
        VirtRange::new(VirtAddr::new(MIN_ADDR), VirtAddr::new(top))
            .unwrap_or(VirtRange::page(VirtAddr::new(MIN_ADDR)))
    }

    /// Sets where the search for room begins, downwards: below the stack's reserve. Rounded down to a page.
    pub fn set_mmap_top(&self, top: VirtAddr) {
        let top = top.as_u64().clamp(MIN_ADDR, USER_END);
        self.mmap_top.store_relaxed(top & !(PAGE_BYTES - 1));
    }

    /// How many bytes are allowed.
    #[must_use]
    pub fn limit(&self, limit: Limit) -> u64 {
        self.limits[limit as usize].load_relaxed()
    }

    /// Sets how many bytes are allowed from now on.
    pub fn set_limit(&self, limit: Limit, bytes: u64) {
        self.limits[limit as usize].store_relaxed(bytes);
    }

    /// Whether an area with these flags may come to span `pages` more.
    ///
    /// Origin: Linux `may_expand_vm` (84638335900f, v4.5).
    #[must_use]
    pub(crate) fn may_expand(&self, flags: VmaFlags, pages: u64) -> bool {
        let fits =
            |pages_now: u64, limit| (pages_now + pages).saturating_mul(PAGE_BYTES) <= self.limit(limit);
        if !fits(self.total_vm_pages(), Limit::Total) {
            return false;
        }
        let data = match self.limit(Limit::Data) {
            0 => Limit::DataCeiling,
            _ => Limit::Data,
        };
        VmKind::of(flags) != Some(VmKind::Data) || fits(self.vm_pages(VmKind::Data), data)
    }

    /// Whether an area with these flags may come to span `pages` more as far as locking goes.
    #[must_use]
    pub(crate) fn may_lock_more(&self, flags: VmaFlags, pages: u64) -> bool {
        let locked = (self.locked_pages() + pages).saturating_mul(PAGE_BYTES);
        !flags.contains(VmaFlags::LOCKED) || locked <= self.limit(Limit::Locked)
    }

    /// Most base pages that all areas ever spanned together.
    #[must_use]
    pub fn peak_vm_pages(&self) -> u64 {
        self.peak_vm.load_relaxed().max(self.total_vm_pages())
    }

    /// Says what the peak is, where areas are counted twice in passing.
    pub(crate) fn set_peak_vm(&self, pages: u64) {
        self.peak_vm.store_relaxed(pages);
    }

    /// Most resident base pages since the beginning, or since [`Self::reset_peak_rss`].
    #[must_use]
    pub fn peak_rss_pages(&self) -> u64 {
        self.peak_rss.load_relaxed().max(self.rss_pages())
    }

    /// Lets the peak of resident pages be what is resident now.
    pub fn reset_peak_rss(&self) {
        self.peak_rss.store_relaxed(self.rss_pages());
    }

    /// The heap: from where it began to its current end, both as `brk` sees them (not page aligned at the top).
    #[must_use]
    pub fn brk_bounds(&self) -> (VirtAddr, VirtAddr) {
        (
            VirtAddr::new_truncate(self.brk_start.load_relaxed()),
            VirtAddr::new_truncate(self.brk_end.load_relaxed()),
        )
    }

    /// Says where the heap begins: behind the program.
    pub fn set_brk_base(&self, start: VirtAddr) {
        self.brk_start.store_relaxed(start.as_u64());
        self.brk_end.store_relaxed(start.as_u64());
    }

    pub(crate) fn set_brk_end(&self, end: VirtAddr) {
        self.brk_end.store_relaxed(end.as_u64());
    }

    /// Takes over what `fork` copies besides areas and pages.
    pub(crate) fn inherit(&self, parent: &Self) {
        let pairs = [
            (&self.code_start, &parent.code_start),
            (&self.code_end, &parent.code_end),
            (&self.brk_start, &parent.brk_start),
            (&self.brk_end, &parent.brk_end),
            (&self.mmap_top, &parent.mmap_top),
        ];
        pairs
            .into_iter()
            .chain(self.limits.iter().zip(&parent.limits))
            .for_each(|(ours, theirs)| ours.store_relaxed(theirs.load_relaxed()));
    }

    pub(crate) fn add_rss(&self, pages: i64) {
        if pages < 0 {
            raise(&self.peak_rss, self.rss_pages());
        }
        add(&self.rss_anon, pages);
    }

    /// Counts `pages` more, or fewer, that areas with these flags span.
    pub(crate) fn add_vm(&self, flags: VmaFlags, pages: i64) {
        if pages < 0 {
            raise(&self.peak_vm, self.total_vm_pages());
        }
        add(&self.total_vm, pages);
        if let Some(kind) = VmKind::of(flags) {
            add(self.vm_total(kind), pages);
        }
        if flags.contains(VmaFlags::LOCKED) {
            add(&self.locked_vm, pages);
        }
    }

    /// Whether `more` areas are still allowed.
    pub(crate) fn has_room_for_areas(&self, more: u32) -> bool {
        self.nr_areas() + more <= MAX_AREAS
    }
}

/// Keeps the larger of what was and what is. Two that raise it at once may leave the smaller: a peak is an estimate.
fn raise(peak: &AtomicU64, now: u64) {
    if peak.load_relaxed() < now {
        peak.store_relaxed(now);
    }
}

fn add(total: &AtomicU64, delta: i64) {
    let before = total.fetch_add_relaxed(delta.cast_unsigned());
    crate::vm_assert!(
        before.checked_add_signed(delta).is_some(),
        "a total of an address space went below zero"
    );
}

impl<P: Platform> Memory<P> {
    /// Makes an empty address space with one user. The upper half of its root is zero: the platform fills it in.
    ///
    /// # Errors
    /// No frame for the record or the root; nothing changed.
    pub fn new_space(&self) -> Result<MmRef, AllocError> {
        let root = self.alloc_table()?;
        match self.alloc_object(AddressSpace::new(root)) {
            Ok(space) => {
                space.this.set(Some(space));
                Ok(MmRef { space })
            }
            Err(error) => {
                self.free_table(root);
                Err(error)
            }
        }
    }

    /// Adds a user.
    pub fn get_space(&self, space: &MmRef) -> MmRef {
        space.users.fetch_add_relaxed(1);
        MmRef { space: space.space }
    }

    /// Gives a user back. Returns it if it was the last: the space is then to be torn down by
    /// [`Memory::put_space`](crate::memory::Memory::put_space), which calls this.
    pub(crate) fn drop_user(&self, space: MmRef) -> Option<MmRef> {
        (space.users.fetch_sub_acqrel(1) == 1).then_some(space)
    }

    /// Frees the record and the root of a space that is empty and has no user.
    pub(crate) fn free_space(&self, space: MmRef) {
        crate::vm_assert!(
            space.nr_areas() == 0 && space.rss_pages() == 0,
            "{space:?}: freed but not empty"
        );
        crate::vm_assert!(space.tables.is_bare(), "{space:?}: page tables leaked");
        self.free_table(space.root());
        // SAFETY: the last user is gone and nothing else holds a space.
        unsafe { self.free_object(space.space) }
    }

    /// Adds an area record and puts it into the tree. The mmap lock is held for writing.
    pub(crate) fn insert_area(&self, space: &AddressSpace, vma: Vma) -> Result<Handle<Vma>, AllocError> {
        let (flags, pages) = (vma.flags(), vma.range().nr_pages());
        let vma = self.alloc_object(vma)?;
        space.areas.insert(vma);
        space.nr_areas.fetch_add_relaxed(1);
        space.add_vm(flags, pages.cast_signed());
        Ok(vma)
    }

    /// Takes an area out of the tree and frees its record. The mmap lock is held for writing, its pages are unmapped
    /// or belong to a neighbour now.
    pub(crate) fn remove_area(&self, space: &AddressSpace, vma: Handle<Vma>) {
        space.areas.remove(vma);
        space.nr_areas.fetch_sub_acqrel(1);
        space.add_vm(vma.flags(), -vma.range().nr_pages().cast_signed());
        self.leave_anon_vma(vma);
        // SAFETY: the tree and the anon_vma's list were the only places that led to it, and no
        // reader is in them: both locks were ours for writing.
        unsafe { self.free_object(vma) }
    }

    /// Moves the ends of an area.
    pub(crate) fn resize_area(&self, space: &AddressSpace, vma: Handle<Vma>, range: VirtRange) {
        let grown = range.nr_pages().cast_signed() - vma.range().nr_pages().cast_signed();
        space.add_vm(vma.flags(), grown);
        self.move_ends(space, vma, range);
    }

    /// Gives an area other properties. The mmap lock is held for writing; entries are the caller's business.
    pub(crate) fn set_area_flags(&self, space: &AddressSpace, vma: Handle<Vma>, flags: VmaFlags) {
        let pages = vma.range().nr_pages().cast_signed();
        space.add_vm(vma.flags(), -pages);
        vma.set_flags(flags);
        space.add_vm(flags, pages);
    }

    /// Makes two areas of one, cut at `at`; returns the upper. Page tables are not touched: the caller has split what
    /// the cut goes through.
    ///
    /// # Errors
    /// No record; nothing changed.
    pub(crate) fn split_area(
        &self,
        space: &AddressSpace,
        vma: Handle<Vma>,
        at: VirtAddr,
    ) -> Result<Handle<Vma>, AllocError> {
        let range = vma.range();
        crate::vm_assert!(range.contains(at) && at > range.start());
        let upper =
            VirtRange::new(at, range.end()).unwrap_or_else(|| unreachable!("the cut is page aligned"));
        // The record first: from here on nothing may fail.
        let index = vma.linear_index(at);
        let new = Vma::moved(space.handle(), upper, vma.flags(), index).with_policy(vma.policy());
        let new = self.alloc_object(new)?;
        self.cut_off(space, vma, new);
        space.nr_areas.fetch_add_relaxed(1);
        Ok(new)
    }

    /// Joins `vma` with the neighbours that agree with it in everything; returns the area that now spans it.
    pub(crate) fn merge_area(&self, space: &AddressSpace, vma: Handle<Vma>) -> Handle<Vma> {
        let vma = match space.areas.before(vma.start()) {
            Some(below) if below.continues_in(&vma) => self.absorb(space, below, vma),
            _ => vma,
        };
        match space.areas.find(vma.end()) {
            Some(above) if vma.continues_in(&above) => self.absorb(space, vma, above),
            _ => vma,
        }
    }

    /// Makes `lower` span `upper` too, which directly follows it and goes away.
    fn absorb(&self, space: &AddressSpace, lower: Handle<Vma>, upper: Handle<Vma>) -> Handle<Vma> {
        self.take_over(space, lower, upper);
        self.leave_anon_vma(upper);
        space.nr_areas.fetch_sub_acqrel(1);
        // SAFETY: it is out of the tree and off the list, and the mmap lock is ours for writing.
        unsafe { self.free_object(upper) };
        lower
    }

    /// Height of the tree of areas: how many areas a lookup meets at most.
    #[must_use]
    pub fn area_tree_height(&self, space: &AddressSpace) -> u32 {
        let _lock = space.lock.read(self.platform());
        space.areas.height()
    }

    /// Shows `visit` all areas in address order, under the mmap lock for reading.
    pub fn for_each_vma(
        &self,
        space: &AddressSpace,
        visit: &mut dyn FnMut(VmaInfo) -> core::ops::ControlFlow<()>,
    ) -> core::ops::ControlFlow<()> {
        let _lock = space.lock.read(self.platform());
        let all = VirtRange::new(VirtAddr::zero(), VirtAddr::new(USER_END));
        let mut areas = space
            .areas
            .overlapping(all.unwrap_or_else(|| unreachable!("a valid range")));
        areas.try_for_each(|vma| {
            visit(VmaInfo {
                range: vma.range(),
                flags: vma.flags(),
            })
        })
    }

    /// The flags of the area around `addr`, if there is one.
    #[must_use]
    pub fn vma_at(&self, space: &AddressSpace, addr: VirtAddr) -> Option<VmaInfo> {
        let _lock = space.lock.read(self.platform());
        space.areas.containing(addr).map(|vma| VmaInfo {
            range: vma.range(),
            flags: vma.flags(),
        })
    }
}

impl VmaFlags {
    /// What a private anonymous mapping starts with, besides its rights.
    pub(crate) const PRIVATE_ANON: Self = Self::MAY.union(Self::SOFTDIRTY);
}
