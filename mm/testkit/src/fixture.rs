//! What tests of huge pages begin with, and the numbers that they compare.
//!
//! ```text
//!   HOME ──> one huge page, mapped by one PMD, each base page beginning with its own number      fixture F1
//!            at(7) is the address of its subpage 7, frame(.., 7) the frame behind it
//! ```
//! Pages are counted from [`HOME`]. Everything here fails by panicking: it is for tests alone.

use mm::{
    Counter, MapRequest, PMD_ORDER, Pfn, Place, Prot, VirtAddr, VirtRange, VmaFlags, fault::Access,
    platform::CpuId, split_folio::SplitError, trace::Event,
};

use crate::{
    scenario::{HOME, HUGE},
    sim::{Config, Process, Sim},
};

/// Bytes of a base page.
pub const PAGE: u64 = mm::PAGE_BYTES;

/// Bytes of a huge page.
pub const WHOLE: u64 = mm::PMD_SIZE;

/// Base pages of a huge page, in the width of counts.
pub const N: u32 = mm::HPAGE_PAGES;

/// Reading and writing.
pub const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A CPU.
#[must_use]
pub fn cpu(number: u8) -> CpuId {
    CpuId::new(number)
}

/// A machine of ordinary size with four CPUs.
#[must_use]
pub fn machine() -> Sim {
    Sim::boot(&Config {
        nr_cpus: 4,
        ..Config::default()
    })
}

/// The address of a page.
#[must_use]
pub fn at(page: u64) -> u64 {
    HOME + page * PAGE
}

/// The addresses of `pages` pages from `page` on.
///
/// # Panics
/// If they are not all user memory.
#[must_use]
pub fn range(page: u64, pages: u64) -> VirtRange {
    VirtRange::user(at(page), pages * PAGE).expect("user memory")
}

/// Maps private memory, readable and writable, over whatever is there.
///
/// # Panics
/// If there is no memory for it.
pub fn map(sim: &Sim, process: &Process<'_>, page: u64, pages: u64) {
    let request = MapRequest {
        hint: at(page),
        len: pages * PAGE,
        prot: RW,
        place: Place::Fixed,
        flags: VmaFlags::empty(),
    };
    process
        .run(|| sim.mmap(process, request))
        .expect("memory is there");
}

/// Fixture F1: a process on CPU 0 with one huge page at [`HOME`], each base page beginning with its [`number`].
///
/// # Panics
/// If there is no huge page to be had.
#[must_use]
pub fn one_thp(sim: &Sim) -> Process<'_> {
    let process = sim.start(cpu(0)).expect("memory is there");
    let before = sim.count(Counter::NrAnonThps);
    map(sim, &process, 0, HUGE);
    write_numbers(&process, 0, HUGE);
    assert_eq!(sim.count(Counter::NrAnonThps), before + 1, "a huge page backs it");
    process
}

/// What a page begins with.
///
/// # Panics
/// Never.
#[must_use]
pub fn number(page: u64) -> u8 {
    u8::try_from(page % 251).expect("small") + 1
}

/// Lets each of `pages` pages from `page` on begin with its [`number`].
///
/// # Panics
/// If the program may not.
pub fn write_numbers(process: &Process<'_>, page: u64, pages: u64) {
    (page..page + pages).for_each(|page| process.write_byte(at(page), number(page)).expect("writable"));
}

/// Reads what [`one_thp`] wrote, but in the pages `except`.
///
/// # Panics
/// Where something else stands.
#[track_caller]
pub fn reads_its_numbers(process: &Process<'_>, except: &[u64]) {
    for page in (0..HUGE).filter(|page| !except.contains(page)) {
        assert_eq!(process.read_byte(at(page)), Ok(number(page)), "page {page}");
    }
}

/// The frame that backs a page.
///
/// # Panics
/// If none does.
#[track_caller]
#[must_use]
pub fn frame(sim: &Sim, process: &Process<'_>, page: u64) -> Pfn {
    let word = mm::report::pagemap(sim, process, VirtAddr::new(at(page)));
    assert_ne!(word >> 63, 0, "page {page} is present");
    Pfn::new(u32::try_from(word & ((1 << 55) - 1)).expect("a frame number"))
}

/// `munmap`.
///
/// # Panics
/// If it fails.
pub fn unmap(sim: &Sim, process: &Process<'_>, page: u64, pages: u64) {
    process
        .run(|| sim.munmap(process, range(page, pages)))
        .expect("unmapping needs no memory here");
}

/// Splits the PMD that maps [`HOME`].
pub fn split_pmd(sim: &Sim, process: &Process<'_>) {
    process.run(|| sim.split_huge_pmd(process, VirtAddr::new(HOME)));
}

/// Splits the huge page itself by its subpage `page`, as a caller who looked it up through `process` would. Returns
/// the frame that lock and reference ended on.
///
/// # Errors
/// Why it was not split.
///
/// # Panics
/// If `page` is not mapped, or the references of the page that was asked for are not its entries' and the caller's.
pub fn split_page(sim: &Sim, process: &Process<'_>, page: u64) -> Result<Pfn, SplitError> {
    let (folio, pfn) = sim
        .get_user_page(process, VirtAddr::new(at(page)), Access::Read)
        .expect("it is mapped");
    let subpage = pfn.since(folio.pfn());
    let locked = sim.try_lock_folio(&folio).expect("nobody holds it");
    match sim.split_folio(folio, locked, subpage) {
        Ok((folio, locked)) => {
            let (kept, page) = (folio.pfn(), folio.page());
            assert_eq!(
                page.refs_hint(),
                page.mapcount() + 1,
                "its entries' and the caller's"
            );
            drop(locked);
            sim.put(folio);
            Ok(kept)
        }
        Err((error, folio, locked)) => {
            drop(locked);
            sim.put(folio);
            Err(error)
        }
    }
}

/// C, DoubleMap, raw 0, raw 7, mapcount 0, mapcount 7, total, references, AnonPages, AnonTHPs, deferred: the columns of
/// the specification's table.
pub type Row = (u32, bool, i32, i32, u32, u32, u32, u32, u64, u64, u64);

/// The row of the huge page at `head`. The last three columns are the machine's.
#[must_use]
pub fn row(sim: &Sim, head: Pfn) -> Row {
    let page = sim.pages().page(head);
    let (counts, seventh) = (page.map_counts(), page.offset(7));
    (
        counts.entire,
        page.is_double_mapped(),
        page.raw_mapcount(),
        seventh.raw_mapcount(),
        page.mapcount(),
        seventh.mapcount(),
        counts.total,
        page.refs_hint(),
        sim.count(Counter::NrAnonPages),
        sim.count(Counter::NrAnonThps),
        sim.count(Counter::ThpDeferredSplitPage),
    )
}

/// How often what happened to huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Events {
    /// `thp_split_page`.
    pub split_page: u64,
    /// `thp_split_page_failed`.
    pub split_page_failed: u64,
    /// `thp_deferred_split_page`.
    pub deferred: u64,
    /// `thp_split_pmd`.
    pub split_pmd: u64,
}

impl Events {
    /// Since the machine was booted.
    #[must_use]
    pub fn of(sim: &Sim) -> Self {
        Self {
            split_page: sim.count(Counter::ThpSplitPage),
            split_page_failed: sim.count(Counter::ThpSplitPageFailed),
            deferred: sim.count(Counter::ThpDeferredSplitPage),
            split_pmd: sim.count(Counter::ThpSplitPmd),
        }
    }

    /// Since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            split_page: self.split_page - earlier.split_page,
            split_page_failed: self.split_page_failed - earlier.split_page_failed,
            deferred: self.deferred - earlier.deferred,
            split_pmd: self.split_pmd - earlier.split_pmd,
        }
    }
}

/// The blocks in which frames of the huge page at `head` were freed: first frame, number of frames.
#[must_use]
pub fn frees_of(events: &[Event], head: Pfn) -> Vec<(Pfn, u32)> {
    let of_page = |event: &Event| match *event {
        Event::Free { pfn, order } if pfn.align_down(PMD_ORDER) == head => Some((pfn, order.nr_pages())),
        _ => None,
    };
    events.iter().filter_map(of_page).collect()
}

/// How many random cases to try: `PROPTEST_CASES`, or `otherwise`; under Miri, which takes a thousand times as long,
/// `under_miri`.
#[must_use]
pub fn cases(otherwise: u32, under_miri: u32) -> u32 {
    if cfg!(miri) {
        return under_miri;
    }
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(otherwise)
}
