//! The kernel's own way to the pages of programs: looking them up, filling them in ahead of time, copying.

use mm::{
    Counter, MapRequest, PAGE_BYTES, PageFlags, Place, Prot, SegvReason, USER_END, VirtAddr, VirtRange,
    VmFault, VmaFlags, fault::Access, platform::CpuId,
};
use mm_testkit::{
    machine::{Walk, entry_bits},
    scenario::{HOME, HUGE},
    sim::{Config, Process, Sim},
};

const PAGE: u64 = PAGE_BYTES;
const WHOLE: u64 = HUGE * PAGE;

fn with_area(pages: u64, prot: Prot, f: impl FnOnce(&Sim, &Process<'_>)) {
    let sim = Sim::boot(&Config::default());
    {
        let process = sim.start(CpuId::new(0)).expect("memory is there");
        let request = MapRequest {
            hint: HOME,
            len: pages * PAGE,
            prot,
            place: Place::Fixed,
            flags: VmaFlags::empty(),
        };
        process
            .run(|| sim.mmap(&process, request))
            .expect("nothing is there");
        f(&sim, &process);
        sim.verify(&[&process], &());
    }
    sim.verify(&[], &());
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

fn home() -> VirtRange {
    VirtRange::user(HOME, WHOLE).expect("user memory")
}

/// What the kernel writes on a program's behalf is as dirty as what the program writes: the entry says so before the
/// mapping goes, and then the page.
#[test]
fn what_the_kernel_writes_is_dirty() {
    for pages in [1, HUGE] {
        with_area(pages, RW, |sim, process| {
            let addr = VirtAddr::new(HOME);
            // Whatever is there is clean now.
            process.write_byte(HOME, 1).expect("writable");
            sim.machine()
                .edit_entry(process.root(), HOME, |entry| entry & !entry_bits::DIRTY);
            let (folio, pfn) = process
                .run(|| sim.get_user_page(process, addr, Access::Read))
                .expect("mapped");
            let is_dirty = || sim.pages().page(pfn).has(PageFlags::DIRTY);
            let before = is_dirty();
            assert_eq!(sim.machine().entry(process.root(), HOME) & entry_bits::DIRTY, 0);
            process
                .run(|| {
                    sim.with_user_page(process, addr, Access::Write, &mut |mut bytes| {
                        assert_eq!(bytes.write(b"kernel"), 6);
                    })
                })
                .expect("writable");
            let unmapped = process.run(|| sim.munmap(process, VirtRange::page(addr)));
            assert_eq!(unmapped, Ok(()));
            let after = is_dirty();
            process.run(|| sim.put(folio));
            assert_eq!((before, after), (false, true), "{pages} pages");
        });
    }
}

/// Reading marks nothing as written.
#[test]
fn what_the_kernel_reads_stays_clean() {
    with_area(1, RW, |sim, process| {
        let addr = VirtAddr::new(HOME);
        process.write_byte(HOME, 7).expect("writable");
        sim.machine()
            .edit_entry(process.root(), HOME, |entry| entry & !entry_bits::DIRTY);
        let mut seen = [0; 2];
        process
            .run(|| {
                sim.with_user_page(process, addr, Access::Read, &mut |bytes| {
                    _ = bytes.read(&mut seen)
                })
            })
            .expect("readable");
        assert_eq!(seen, [7, 0]);
        assert_eq!(sim.machine().entry(process.root(), HOME) & entry_bits::DIRTY, 0);
    });
}

/// An entry that may be read is not one that may be executed.
#[test]
fn a_page_without_the_right_to_execute_is_not_handed_out_for_it() {
    with_area(1, RW, |sim, process| {
        process.write_byte(HOME, 7).expect("writable");
        let found = process.run(|| sim.get_user_page(process, VirtAddr::new(HOME), Access::Exec));
        assert_eq!(found.err(), Some(VmFault::SigSegv(SegvReason::Access)));
    });
}

/// Bytes are copied, never borrowed: two users of one page at a time see each other's, and none has a reference that
/// the other's writes would make invalid.
#[test]
fn two_users_of_a_page_at_a_time() {
    with_area(1, RW, |sim, process| {
        let addr = VirtAddr::new(HOME + PAGE - 3);
        process
            .run(|| {
                sim.with_user_page(process, addr, Access::Write, &mut |mut outer| {
                    assert_eq!(outer.len(), 3);
                    assert_eq!(outer.write(b"abcd"), 3, "to the end of the page and no further");
                    let inner = sim.with_user_page(process, addr, Access::Write, &mut |mut inner| {
                        let mut seen = [0; 3];
                        inner.read(&mut seen);
                        assert_eq!(&seen, b"abc");
                        inner.write(b"x");
                    });
                    assert_eq!(inner, Ok(()));
                    let mut seen = [0; 2];
                    outer.read(&mut seen);
                    assert_eq!(&seen, b"xb");
                })
            })
            .expect("writable");
    });
}

/// Filling in a range faults once for each translation, not once for each page of a huge one.
#[test]
fn populating_faults_once_a_translation() {
    with_area(2 * HUGE, RW, |sim, process| {
        let some = VirtRange::user(HOME, WHOLE + 3 * PAGE).expect("user memory");
        let populate = |range| process.run(|| sim.populate(process, range, Access::Write));
        assert_eq!(populate(some), Ok(()));
        assert_eq!(sim.count(Counter::PgFault), 2);
        assert_eq!(sim.count(Counter::NrAnonThps), 2);
        assert_eq!(populate(some), Ok(()));
        assert_eq!(
            sim.count(Counter::PgFault),
            2,
            "what is there is not faulted in again"
        );
    });
    with_area(HUGE / 2, RW, |sim, process| {
        let all = VirtRange::user(HOME, WHOLE / 2).expect("user memory");
        assert_eq!(process.run(|| sim.populate(process, all, Access::Write)), Ok(()));
        assert_eq!(sim.count(Counter::PgFault), HUGE / 2);
        assert_eq!(process.rss_pages(), HUGE / 2);
    });
}

/// What can be had is had; where it ends is said.
#[test]
fn populating_stops_where_nothing_is() {
    with_area(4, RW, |sim, process| {
        let more = VirtRange::user(HOME, 6 * PAGE).expect("user memory");
        let ended = process.run(|| sim.populate(process, more, Access::Write));
        assert_eq!(ended, Err(VmFault::SigSegv(SegvReason::NotMapped)));
        assert_eq!(process.rss_pages(), 4);
    });
    with_area(4, Prot::empty(), |sim, process| {
        let all = VirtRange::user(HOME, 4 * PAGE).expect("user memory");
        let ended = process.run(|| sim.populate(process, all, Access::Read));
        assert_eq!(ended, Err(VmFault::SigSegv(SegvReason::Access)));
    });
}

/// The upper half of the root is the platform's, and what is mapped there is no program's to reach: not by asking the
/// kernel to read, write, split or describe it.
#[test]
fn the_platforms_half_of_the_root_is_not_walked() {
    with_area(HUGE, RW, |sim, process| {
        process.write_byte(HOME, 1).expect("writable");
        let head = match sim.machine().walk(process.root(), HOME) {
            Walk::Mapped(leaf) => leaf.pfn,
            missing => panic!("{missing:?}"),
        };
        let kernel = Lent::mirror(sim, process);
        let addr = kernel.addr;
        match sim.machine().walk(process.root(), addr.as_u64()) {
            Walk::Mapped(leaf) => assert_eq!(leaf.pfn, head, "the hardware gets there"),
            missing => panic!("{missing:?}"),
        }
        for access in [Access::Read, Access::Write, Access::Exec] {
            let found = process.run(|| sim.get_user_page(process, addr, access));
            assert_eq!(found.err(), Some(VmFault::SigSegv(SegvReason::NotMapped)));
        }
        let mut ran = false;
        let written = process.run(|| sim.with_user_page(process, addr, Access::Write, &mut |_| ran = true));
        assert_eq!(
            (written, ran),
            (Err(VmFault::SigSegv(SegvReason::NotMapped)), false)
        );
        let splits = sim.count(Counter::ThpSplitPmd);
        process.run(|| sim.split_huge_pmd(process, addr));
        assert_eq!(sim.count(Counter::ThpSplitPmd), splits);
        assert_eq!(mm::report::pagemap(sim, process, addr), 0);
        kernel.take_back();
    });
}

/// The tables of [`HOME`], linked a second time in the platform's half.
struct Lent<'s> {
    sim: &'s Sim,
    process: &'s Process<'s>,
    addr: VirtAddr,
}

impl<'s> Lent<'s> {
    fn mirror(sim: &'s Sim, process: &'s Process<'s>) -> Self {
        let addr = VirtAddr::new_truncate((USER_END + PAGE) | HOME);
        let mirror = Self { sim, process, addr };
        let table = mirror.root_entry(VirtAddr::new(HOME));
        mirror.set(table);
        mirror
    }

    fn root_entry(&self, addr: VirtAddr) -> u64 {
        let root = self.sim.machine().frame_bytes(self.process.root(), 1);
        let offset = Self::index(addr) * 8;
        u64::from_le_bytes(root[offset..offset + 8].try_into().expect("8 bytes"))
    }

    fn index(addr: VirtAddr) -> usize {
        let bits = mm::addr::PAGE_SHIFT + 3 * mm::addr::ENTRIES_SHIFT;
        usize::try_from(addr.as_u64() >> bits).expect("64 bits") % mm::ENTRIES
    }

    fn set(&self, entry: u64) {
        self.sim
            .machine()
            .set_root_entry(self.process.root(), Self::index(self.addr) as u64, entry);
    }

    fn take_back(self) {
        self.set(0);
    }
}

/// `home` is what the other tests of this file take for granted.
#[test]
fn one_huge_page_fills_it() {
    with_area(HUGE, RW, |sim, process| {
        assert_eq!(
            process.run(|| sim.populate(process, home(), Access::Write)),
            Ok(())
        );
        assert_eq!(sim.count(Counter::ThpFaultAlloc), 1);
    });
}
