//! The specification's rows on the simulated machine. Each scenario is run on its own machine and in a machine that is
//! in use.

use mm::platform::CpuId;
use mm_testkit::{
    machine::{Walk, entry_bits},
    scenario::{ALL, HOME, run},
    sim::{Config, Sim},
};

fn play(name: &str) {
    let rows: Vec<_> = ALL
        .iter()
        .filter(|scenario| scenario.name.starts_with(name))
        .collect();
    assert!(!rows.is_empty(), "no scenario begins with {name}");
    for row in rows {
        let sim = Sim::boot(&Config::default());
        let before = sim.nr_free_pages();
        {
            let process = sim.start(CpuId::new(0)).expect("memory is there");
            if let Err(failure) = run(&process, row) {
                panic!("{failure}");
            }
        }
        sim.verify(&[], &());
        assert_eq!(sim.nr_free_pages(), before, "{}: pages leaked", row.name);
    }
}

macro_rules! rows {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { play($name); })*

        #[test]
        fn every_scenario_is_a_test() {
            let named = [$($name),*];
            for scenario in ALL {
                assert!(named.iter().any(|name| scenario.name.starts_with(name)), "{} is no test", scenario.name);
            }
        }
    };
}

rows! {
    t1_1_one_pmd: "T1.1",
    t2_2_every_subpage: "T2.2",
    t2_5_reports_accept_everything: "T2.5",
    t3_1_partial_unmap: "T3.1",
    t3_3_every_other_page: "T3.3",
    t3_4_all_ptes_at_once: "T3.4",
    t3_5_whole_page: "T3.5",
    t4_1_split_without_memory: "T4.1",
    t4_2_split_while_pinned: "T4.2",
    t4_3_split_twice: "T4.3",
    t4_5_split_keeps_rights: "T4.5",
    t7_1_tails_are_anonymous: "T7.1",
    t10_1_tail_references: "T10.1",
    t10_3_last_reference_through_a_tail: "T10.3",
    f1_kpageflags: "F1",
    demonstration: "demonstration",
}

/// The kernel's own programs have their stack there. The last 2 MiB end where addresses stop being canonical, and the
/// tables around them were once left behind when the space went.
#[test]
fn topmost_page_of_user_space_leaves_no_table_behind() {
    let sim = Sim::boot(&Config::default());
    let before = sim.nr_free_pages();
    {
        let process = sim.start(CpuId::new(0)).expect("memory is there");
        let page = mm::VirtRange::user(mm::USER_END - mm::PAGE_BYTES, mm::PAGE_BYTES).expect("the last page");
        let request = mm::MapRequest {
            hint: page.start().as_u64(),
            len: page.bytes(),
            prot: mm::Prot::READ | mm::Prot::WRITE,
            place: mm::Place::Fixed,
            flags: mm::VmaFlags::empty(),
        };
        sim.mmap(process.space(), request).expect("nothing is there");
        process.write_byte(mm::USER_END - 1, 7).expect("it is mapped");
        sim.verify(&[&process], &());
    }
    sim.verify(&[], &());
    assert_eq!(sim.nr_free_pages(), before);
}

#[test]
#[cfg_attr(miri, ignore = "takes long, and each is run by itself")]
fn scenarios_run_one_after_the_other_in_one_process() {
    let sim = Sim::boot(&Config::default());
    let mut process = sim.start(CpuId::new(0)).expect("memory is there");
    for (nth, scenario) in (0..).zip(ALL) {
        process.run_on(CpuId::new(nth % 2));
        if let Err(failure) = run(&process, scenario) {
            panic!("{failure}");
        }
        let everything = mm::VirtRange::user(HOME, 8 * mm::PMD_SIZE).expect("a user range");
        sim.munmap(&process, everything)
            .expect("unmapping needs no memory here");
        sim.verify(&[&process], &());
    }
}

/// T4.5, the other way round: what was neither used nor written stays so.
#[test]
fn t4_5_an_old_clean_pmd_becomes_old_clean_ptes() {
    const ACCESSED_DIRTY: u64 = entry_bits::ACCESSED | entry_bits::DIRTY;
    let sim = Sim::boot(&Config::default());
    let process = sim.start(CpuId::new(0)).expect("memory is there");
    let request = mm::MapRequest {
        hint: HOME,
        len: mm::PMD_SIZE,
        prot: mm::Prot::READ | mm::Prot::WRITE,
        place: mm::Place::Fixed,
        flags: mm::VmaFlags::empty(),
    };
    sim.mmap(&process, request).expect("nothing is there");
    process.write_byte(HOME, 1).expect("it may be written");
    let head = match sim.machine().walk(process.root(), HOME) {
        Walk::Mapped(leaf) => mm::Pfn::new(u32::try_from(leaf.pfn).expect("a frame number")),
        missing => panic!("{missing:?}"),
    };
    sim.machine()
        .edit_entry(process.root(), HOME, |entry| entry & !ACCESSED_DIRTY);
    sim.split_huge_pmd(&process, mm::VirtAddr::new(HOME));
    for addr in (HOME..HOME + mm::PMD_SIZE).step_by(mm::PAGE_SIZE) {
        assert_eq!(
            sim.machine().entry(process.root(), addr) & ACCESSED_DIRTY,
            0,
            "{addr:#x}"
        );
    }
    assert!(!sim.pages().page(head).has(mm::PageFlags::DIRTY));
    sim.verify(&[&process], &());
    // The hardware marks only what is used from now on.
    process.write_byte(HOME + 4096, 1).expect("it may be written");
    assert_eq!(sim.machine().entry(process.root(), HOME) & ACCESSED_DIRTY, 0);
    assert_eq!(
        sim.machine().entry(process.root(), HOME + 4096) & ACCESSED_DIRTY,
        ACCESSED_DIRTY
    );
}
