//! `dump_page` against the layout that Linux 6.1 prints.

use mm::{Pfn, report::dump_page};
use mm_testkit::{
    fixture::{at, cpu, frame, machine, one_thp, split_pmd, unmap},
    sim::Sim,
};

fn dumped(sim: &Sim, pfn: Pfn) -> String {
    let mut text = String::new();
    dump_page(sim, pfn, "a test asked", &mut text).expect("a string takes everything");
    text
}

/// The words of a record, as the lines that show them.
fn raw(sim: &Sim, pfn: Pfn, label: &str) -> String {
    let [state, links, mapping, index, counts] = sim.pages().page(pfn).raw_words();
    format!("{label}: {state:016x} {links:016x} {mapping:016x} {index:016x}\n{label}: {counts:016x}\n")
}

#[test]
fn head_of_a_huge_page() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    let page = sim.pages().page(head);
    let expected = format!(
        "page:{pfn:08x} refcount:1 mapcount:1 mapping:{mapping:016x} index:{index:#x} pfn:{pfn:#x}\n\
         head:{pfn:08x} order:9 compound_mapcount:1 compound_pincount:0\n\
         anon flags: {flags:#x}(uptodate|lru|head|mappedtodisk|swapbacked|node=0|zone=1)\n\
         {raw}page dumped because: a test asked\n",
        pfn = head.raw(),
        mapping = page.mapping(),
        index = at(0) >> 12,
        flags = page.state().flags().bits(),
        raw = raw(&sim, head, "raw"),
    );
    assert_eq!(dumped(&sim, head), expected);
}

#[test]
fn tail_shows_its_head_too() {
    let sim = machine();
    let a = one_thp(&sim);
    let b = a.fork(cpu(1)).expect("memory is there");
    split_pmd(&sim, &a);
    unmap(&sim, &a, 7, 1);
    let head = frame(&sim, &a, 0);
    let tail = head.offset(7);
    let text = dumped(&sim, tail);
    let lines: Vec<&str> = text.lines().collect();
    let first = format!("page:{:08x} refcount:512 mapcount:1 mapping:", tail.raw());
    assert!(lines[0].starts_with(&first), "{text}");
    let index = (at(0) >> 12) + 7;
    assert!(
        lines[0].ends_with(&format!(" index:{index:#x} pfn:{:#x}", tail.raw())),
        "{text}"
    );
    let second = format!(
        "head:{:08x} order:9 compound_mapcount:1 compound_pincount:0",
        head.raw()
    );
    assert_eq!(lines[1], second);
    assert!(
        lines[2].ends_with("(uptodate|dirty|lru|head|swapbacked|node=0|zone=1)"),
        "{text}"
    );
    let records = raw(&sim, tail, "raw") + &raw(&sim, head, "head");
    assert_eq!(lines[3..7].join("\n") + "\n", records);
    sim.verify(&[&a, &b], &());
}

#[test]
fn free_and_missing_frames_are_dumped_too() {
    let sim = machine();
    let a = one_thp(&sim);
    let head = frame(&sim, &a, 0);
    drop(a);
    let text = dumped(&sim, head);
    assert!(
        text.starts_with(&format!(
            "page:{:08x} refcount:0 mapcount:0 mapping:{:016x} ",
            head.raw(),
            0
        )),
        "{text}"
    );
    assert!(!text.contains("head:") && !text.contains("anon "), "{text}");
    let past = Pfn::new(u32::MAX);
    assert!(dumped(&sim, past).contains("past the page array"));
}
