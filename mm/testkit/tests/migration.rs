//! Rows T6.2, T16 to T21 of the specification, and race C19: pages that move to other frames under running processes.
//!
//! What happens in the middle of a migration is done when the machine copies a page: the entries say "being moved" then,
//! and only folio locks are held.

use mm::{
    AllocError, AllocFlags, Counter, MapRequest, MigrateMode, Place, VmaFlags,
    folio::{Folio, IsolatedList},
    migrate::{Migrated, Reach, Targets},
    page::Page,
};
use mm_testkit::{
    fixture::{
        N, PAGE, RW, at, cpu, frame, machine, number, one_thp, range, reads_its_numbers, write_numbers,
    },
    machine::SimMachine,
    scenario::{HOME, HUGE},
    sim::{Process, Sim},
};

type List<'m> = IsolatedList<'m, SimMachine>;

/// A process with `pages` base pages from [`HOME`] on, each of which begins with its number.
fn base_pages(sim: &Sim, pages: u64) -> Process<'_> {
    let process = sim.start(cpu(0)).expect("memory is there");
    let request = MapRequest {
        hint: HOME,
        len: pages * PAGE,
        prot: RW,
        place: Place::Fixed,
        flags: VmaFlags::NOHUGEPAGE,
    };
    sim.mmap(&process, request).expect("nothing is there");
    write_numbers(&process, 0, pages);
    process
}

/// A target from the allocator, as large as the source.
fn fresh<'m>(sim: &'m Sim) -> impl FnMut(Page<'m>) -> Result<Folio<'m>, AllocError> {
    |source| sim.alloc_folio(source.compound_order(), AllocFlags::empty())
}

/// The first `pages` pages of a process, off the LRU.
fn isolate<'m>(sim: &'m Sim, process: &Process<'_>, pages: u64) -> List<'m> {
    let mut list = List::new(sim);
    let collected = sim.isolate_pages_in(process, range(0, pages), Reach::All, &mut |_| true, &mut list);
    assert_eq!((collected.isolated, collected.refused), (list.len(), 0));
    list
}

/// Moves the first `pages` pages of a process to wherever the allocator says.
fn migrate(sim: &Sim, process: &Process<'_>, pages: u64) -> Migrated {
    let mut list = isolate(sim, process, pages);
    sim.migrate_pages(&mut list, &mut Targets::new(&mut fresh(sim)), MigrateMode::Sync)
}

const ONE_MOVED: Migrated = Migrated {
    moved: 1,
    failed: 0,
    split: 0,
    error: None,
};

#[test]
fn t16_1_same_address_new_frame() {
    let sim = machine();
    let process = base_pages(&sim, 1);
    let (old, faults) = (frame(&sim, &process, 0), sim.count(Counter::PgFault));
    let free = sim.nr_free_pages();
    assert_eq!(migrate(&sim, &process, 1), ONE_MOVED);
    sim.verify(&[&process], &());
    assert_ne!(frame(&sim, &process, 0), old);
    assert_eq!(process.read_byte(at(0)), Ok(number(0)));
    process.write_byte(at(0), 9).expect("writable as before");
    assert_eq!(sim.count(Counter::PgFault), faults, "and without a fault");
    assert_eq!(sim.nr_free_pages(), free, "the old frame is free");
    assert_eq!(process.rss_pages(), 1);
    let counted = [Counter::PgMigrateSuccess, Counter::PgMigrateFail].map(|counter| sim.count(counter));
    assert_eq!(counted, [1, 0]);
}

#[test]
fn t16_1_a_huge_page_moves_whole() {
    let sim = machine();
    let process = one_thp(&sim);
    let (old, faults) = (frame(&sim, &process, 0), sim.count(Counter::PgFault));
    let flags = mm::report::kpageflags(&sim, old);
    let free = sim.nr_free_pages();
    assert_eq!(migrate(&sim, &process, HUGE), ONE_MOVED);
    sim.verify(&[&process], &());
    let new = frame(&sim, &process, 0);
    assert_ne!(new, old);
    assert_eq!(frame(&sim, &process, HUGE - 1), new.offset(N - 1), "in one piece");
    assert_eq!(
        mm::report::kpageflags(&sim, new),
        flags | 1 << 4,
        "the entry's dirty bit was noted on the way"
    );
    assert_eq!(
        (sim.count(Counter::NrAnonThps), sim.count(Counter::ThpSplitPmd)),
        (1, 0)
    );
    reads_its_numbers(&process, &[]);
    process.write_byte(at(3), 9).expect("writable as before");
    assert_eq!(sim.count(Counter::PgFault), faults);
    assert_eq!((sim.nr_free_pages(), process.rss_pages()), (free, HUGE));
    let counted = [
        Counter::PgMigrateSuccess,
        Counter::ThpMigrationSuccess,
        Counter::ThpMigrationFail,
    ];
    assert_eq!(counted.map(|counter| sim.count(counter)), [HUGE, 1, 0]);
}
