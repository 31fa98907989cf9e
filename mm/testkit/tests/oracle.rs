//! The oracle judged: its rules against the truth, and its golden rows.

use mm_testkit::{
    fixture::cases,
    oracle::{MAX_MAPPERS, N, Row, Shares, Subpages, Thp},
};
use proptest::prelude::*;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// One golden row: C, DM, raw0, raw7, mc0, mc7, total, ref, AnonMapped, AnonTHP, deferred.
fn expect(thp: &Thp, want: (u32, u8, i32, i32, u32, u32, u32, u32, u32, u32, u32)) {
    let (entire, dm, raw0, raw7, mapcount0, mapcount7, total, refs, anon_pages, anon_thps, deferred) = want;
    let row = Row {
        entire,
        double_map: dm == 1,
        raw0,
        raw7,
        mapcount0,
        mapcount7,
        total,
        refs,
    };
    assert_eq!(thp.row(), row);
    let split_pmd = thp.shares().split_pmd;
    assert_eq!(
        thp.shares(),
        Shares {
            anon_pages,
            anon_thps,
            deferred,
            split_pmd
        }
    );
    thp.verify();
}

#[test]
#[cfg_attr(miri, ignore = "the rows are those of 512 pages")]
fn rows_t1_1_to_t1_7() {
    let mut thp = Thp::map_new(A);
    expect(&thp, (1, 0, -1, -1, 1, 1, 1, 1, 512, 1, 0));
    thp.fork(A, B);
    thp.fork(A, C);
    expect(&thp, (3, 0, -1, -1, 3, 3, 3, 3, 512, 1, 0));
    thp.split_pmd(A);
    expect(&thp, (2, 1, 1, 1, 3, 3, 514, 514, 512, 1, 0));
    thp.unmap_ptes(A, &Subpages::run(7, 1));
    expect(&thp, (2, 1, 1, 0, 3, 2, 513, 513, 512, 1, 0));
    thp.split_pmd(B);
    expect(&thp, (1, 1, 2, 1, 3, 2, 1024, 1024, 512, 1, 0));
    thp.unmap_pmd(C);
    expect(&thp, (0, 0, 1, 0, 2, 1, 1023, 1023, 512, 0, 0));
    thp.unmap_ptes(B, &Subpages::run(7, 1));
    expect(&thp, (0, 0, 1, -1, 2, 0, 1022, 1022, 511, 0, 1));
}

#[test]
#[cfg_attr(miri, ignore = "the rows are those of 512 pages")]
fn rows_t1_8_to_t1_10() {
    let mut thp = Thp::map_new(A);
    thp.fork(A, B);
    thp.split_pmd(A);
    expect(&thp, (1, 1, 1, 1, 2, 2, 513, 513, 512, 1, 0));
    let forked = thp.clone();
    thp.split_pmd(B);
    expect(&thp, (0, 0, 1, 1, 2, 2, 1024, 1024, 512, 0, 0));

    let mut thp = forked.clone();
    thp.unmap_ptes(A, &Subpages::ALL);
    expect(&thp, (1, 1, 0, 0, 1, 1, 1, 1, 512, 1, 0));
    thp.unmap_pmd(B);
    assert!(thp.is_free());
    assert_eq!(
        thp.shares(),
        Shares {
            anon_pages: 0,
            anon_thps: 0,
            deferred: 0,
            split_pmd: 1
        }
    );

    let mut thp = forked;
    thp.unmap_ptes(A, &Subpages::run(0, 256));
    thp.unmap_pmd(B);
    assert_eq!(thp.total(), 256);
    assert_eq!(
        thp.shares(),
        Shares {
            anon_pages: 256,
            anon_thps: 0,
            deferred: 1,
            split_pmd: 1
        }
    );
}

#[derive(Clone, Debug)]
enum Op {
    Fork(usize, usize),
    Split(usize),
    UnmapPmd(usize),
    UnmapPtes(usize, usize, usize),
    Zap(usize, usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let mm = 0..MAX_MAPPERS;
    let run = (0..N, prop_oneof![Just(1usize), Just(5), Just(64), Just(N)]);
    prop_oneof![
        (mm.clone(), mm.clone()).prop_map(|(a, b)| Op::Fork(a, b)),
        mm.clone().prop_map(Op::Split),
        mm.clone().prop_map(Op::UnmapPmd),
        (mm.clone(), run.clone()).prop_map(|(mm, (first, nr))| Op::UnmapPtes(mm, first, nr)),
        (mm, run).prop_map(|(mm, (first, nr))| Op::Zap(mm, first, nr)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(1500, 4),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_rules_agree_with_the_truth(ops in prop::collection::vec(op(), 1..60)) {
        let mut thp = Thp::map_new(A);
        for op in ops {
            match op {
                Op::Fork(a, b) if a != b && !(0..N).any(|i| thp.maps(b, i)) => thp.fork(a, b),
                Op::Fork(..) => {}
                Op::Split(mm) => thp.split_pmd(mm),
                Op::UnmapPmd(mm) => thp.unmap_pmd(mm),
                Op::UnmapPtes(mm, first, nr) => thp.unmap_ptes(mm, &Subpages::run(first, nr)),
                Op::Zap(mm, first, nr) => thp.zap(mm, &Subpages::run(first, nr)),
            }
            thp.verify();
        }
    }
}
