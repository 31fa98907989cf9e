//! The frame allocator against a model that knows only which frames are free.

use std::collections::BTreeMap;

use mm::{Pfn, check::Owners, flags::AllocFlags, order::Order, platform::CpuId};
use mm_testkit::{
    fixture::cases,
    machine::on_cpu,
    sim::{Config, Sim},
};
use proptest::prelude::*;

/// Which frames are free, and which blocks are out.
struct Model {
    free: Vec<bool>,
    blocks: BTreeMap<u32, Order>,
}

impl Model {
    /// The state after boot, as the page records tell it.
    fn of(sim: &Sim) -> Self {
        let reserved = mm::PageFlags::RESERVED | mm::PageFlags::NOPAGE;
        let free = (0..sim.pages().frames())
            .map(|pfn| {
                !sim.pages()
                    .page(Pfn::new(pfn))
                    .state()
                    .flags()
                    .intersects(reserved)
            })
            .collect();
        Self {
            free,
            blocks: BTreeMap::new(),
        }
    }

    fn nr_free(&self) -> u64 {
        self.free.iter().filter(|free| **free).count() as u64
    }

    fn range(pfn: u32, order: Order) -> core::ops::Range<usize> {
        pfn as usize..(pfn + order.nr_pages()) as usize
    }

    /// Whether some aligned run of that size is free.
    fn has(&self, order: Order) -> bool {
        let len = order.nr_pages() as usize;
        self.free
            .chunks_exact(len)
            .any(|run| run.iter().all(|free| *free))
    }

    fn alloc(&mut self, pfn: u32, order: Order) {
        assert_eq!(pfn % order.nr_pages(), 0, "a block is aligned to its size");
        for free in &mut self.free[Self::range(pfn, order)] {
            assert!(
                core::mem::replace(free, false),
                "{pfn:#x}: handed out although it was not free"
            );
        }
        self.blocks.insert(pfn, order);
    }

    fn free(&mut self, nth: usize) -> Option<(Pfn, Order)> {
        let nth = nth.checked_rem(self.blocks.len())?;
        let (&pfn, &order) = self.blocks.iter().nth(nth)?;
        self.blocks.remove(&pfn);
        self.free[Self::range(pfn, order)].fill(true);
        Some((Pfn::new(pfn), order))
    }
}

impl Owners for Model {
    fn for_each_block(&self, visit: &mut dyn FnMut(Pfn, Order)) {
        self.blocks
            .iter()
            .for_each(|(&pfn, &order)| visit(Pfn::new(pfn), order));
    }
}

fn blocks_of_each_order(sim: &Sim) -> Vec<Vec<u64>> {
    let mut rows = Vec::new();
    mm::report::buddyinfo(sim, &mut |_, _, blocks| rows.push(blocks.to_vec()));
    rows
}

#[derive(Clone, Debug)]
enum Op {
    Alloc {
        order: u8,
        cpu: u8,
    },
    /// Many at once.
    Bulk {
        order: u8,
        count: u16,
        cpu: u8,
    },
    Free {
        nth: usize,
        cpu: u8,
    },
    FreeMany {
        nth: usize,
        count: u16,
        cpu: u8,
    },
    Drain,
    /// Everything of an order there is.
    Exhaust {
        order: u8,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let order = prop_oneof![4 => Just(0u8), 2 => Just(9), 1 => 1..=10u8];
    let cpu = 0..2u8;
    prop_oneof![
        6 => (order.clone(), cpu.clone()).prop_map(|(order, cpu)| Op::Alloc { order, cpu }),
        3 => (order.clone(), 1..400u16, cpu.clone()).prop_map(|(order, count, cpu)| Op::Bulk { order, count, cpu }),
        6 => (any::<usize>(), cpu.clone()).prop_map(|(nth, cpu)| Op::Free { nth, cpu }),
        3 => (any::<usize>(), 1..400u16, cpu).prop_map(|(nth, count, cpu)| Op::FreeMany { nth, count, cpu }),
        1 => Just(Op::Drain),
        1 => order.prop_map(|order| Op::Exhaust { order }),
    ]
}

/// A machine whose memory has holes that are not aligned to anything, and spans two zones.
fn machine() -> Sim {
    let (frames, holes) = if cfg!(miri) {
        (320, vec![150..151, 230..243])
    } else {
        (24 << 8, vec![700..701, 1030..1043])
    };
    Sim::boot(&Config {
        frames,
        nr_cpus: 2,
        holes,
    })
}

fn alloc_one(sim: &Sim, model: &mut Model, order: Order, cpu: u8) -> bool {
    let before = model.nr_free();
    // With the reserve nothing but the model decides.
    let found = on_cpu(CpuId::new(cpu), || sim.alloc_pages(order, AllocFlags::RESERVE));
    match found {
        Ok(pfn) => {
            assert_eq!(sim.pages().page(pfn).refs_hint(), 1);
            model.alloc(pfn.raw(), order);
            true
        }
        Err(error) => {
            assert_eq!(error.order, order);
            assert!(!model.has(order), "refused although a block of {order:?} is free");
            assert_eq!(sim.nr_free_pages(), before);
            false
        }
    }
}

fn step(sim: &Sim, model: &mut Model, op: &Op) {
    let order_of = |order| Order::new(order).expect("an order");
    let give = |model: &mut Model, nth, cpu| {
        if let Some((pfn, order)) = model.free(nth) {
            on_cpu(CpuId::new(cpu), || sim.free_pages(pfn, order));
        }
    };
    match *op {
        Op::Alloc { order, cpu } => _ = alloc_one(sim, model, order_of(order), cpu),
        Op::Bulk { order, count, cpu } => {
            _ = (0..count)
                .take_while(|_| alloc_one(sim, model, order_of(order), cpu))
                .count();
        }
        Op::Free { nth, cpu } => give(model, nth, cpu),
        Op::FreeMany { nth, count, cpu } => {
            (0..count).for_each(|i| give(model, nth.wrapping_mul(i.into()), cpu))
        }
        Op::Drain => sim.drain_all_magazines(),
        Op::Exhaust { order } => while alloc_one(sim, model, order_of(order), 0) {},
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(64, 2),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn blocks_are_free_disjoint_and_merge_again(ops in prop::collection::vec(op(), 1..if cfg!(miri) { 6 } else { 60 })) {
        let sim = machine();
        let mut model = Model::of(&sim);
        let start = blocks_of_each_order(&sim);
        prop_assert_eq!(model.nr_free(), sim.nr_free_pages());
        for op in &ops {
            step(&sim, &mut model, op);
            prop_assert_eq!(model.nr_free(), sim.nr_free_pages());
            if !cfg!(miri) {
                sim.verify(&[], &model);
            }
        }
        while let Some((pfn, order)) = model.free(0) {
            sim.free_pages(pfn, order);
        }
        sim.drain_all_magazines();
        prop_assert_eq!(blocks_of_each_order(&sim), start, "everything freed, but not merged as it was");
        sim.verify(&[], &());
    }
}

#[test]
fn watermarks_keep_memory_for_those_who_may_have_it() {
    let sim = machine();
    let marks = || {
        sim.zones()
            .map(|zone| (zone.watermarks().min(), zone.watermarks().low()))
    };
    let (min, low) = marks().fold((0, 0), |sums, (min, low)| (sums.0 + min, sums.1 + low));
    assert!(0 < min && min < low);
    let mut taken = Vec::new();
    let mut drain = |flags| {
        while let Ok(pfn) = sim.alloc_pages(Order::ZERO, flags) {
            taken.push(pfn);
        }
        sim.nr_free_pages()
    };
    let after_opportunists = drain(AllocFlags::OPPORTUNISTIC);
    let after_all = drain(AllocFlags::empty());
    let after_reserve = drain(AllocFlags::RESERVE);
    assert!(
        after_opportunists >= u64::from(low),
        "{after_opportunists} left, low is {low}"
    );
    assert!(
        after_all >= u64::from(min) && after_all < after_opportunists,
        "{after_all} left, min is {min}"
    );
    assert_eq!(after_reserve, 0);
    taken.into_iter().for_each(|pfn| sim.free_pages(pfn, Order::ZERO));
    sim.verify(&[], &());
}

#[test]
fn a_page_in_another_cpus_magazine_is_found() {
    let sim = machine();
    let one = on_cpu(CpuId::new(0), || {
        sim.alloc_pages(Order::ZERO, AllocFlags::RESERVE)
    })
    .expect("there is memory");
    // Everything else is taken; then the one page goes to CPU 0's magazine.
    let mut taken = Vec::new();
    while let Ok(pfn) = sim.alloc_pages(Order::ZERO, AllocFlags::RESERVE) {
        taken.push(pfn);
    }
    on_cpu(CpuId::new(0), || sim.free_pages(one, Order::ZERO));
    let found = on_cpu(CpuId::new(1), || {
        sim.alloc_pages(Order::ZERO, AllocFlags::RESERVE)
    });
    assert_eq!(found, Ok(one));
    taken
        .into_iter()
        .chain(found)
        .for_each(|pfn| sim.free_pages(pfn, Order::ZERO));
    sim.verify(&[], &());
}

#[test]
fn zeroed_pages_are_zero_whatever_they_held() {
    let sim = machine();
    let machine = sim.machine();
    let order = Order::new(2).expect("an order");
    for _ in 0..4 {
        let pfn = sim.alloc_pages(order, AllocFlags::ZERO).expect("there is memory");
        assert!(
            machine
                .frame_bytes(pfn, order.nr_pages())
                .iter()
                .all(|&byte| byte == 0)
        );
        machine.fill_frames(pfn, order.nr_pages(), 0xff);
        sim.free_pages(pfn, order);
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "written to while it was free")]
fn writing_to_a_free_page_is_noticed_when_it_is_handed_out() {
    let sim = machine();
    let pfn = sim
        .alloc_pages(Order::ZERO, AllocFlags::empty())
        .expect("there is memory");
    sim.free_pages(pfn, Order::ZERO);
    sim.machine().fill_frames(pfn, 1, 1);
    // The page is on top of this CPU's magazine.
    let _ = sim.alloc_pages(Order::ZERO, AllocFlags::empty());
}

/// Both CPUs take all there is, so that each keeps draining the other's magazine.
#[test]
fn two_cpus_allocate_while_memory_runs_out() {
    let rounds = if cfg!(miri) { 2 } else { 40 };
    let sim = machine();
    let before = sim.nr_free_pages();
    let start = std::sync::Barrier::new(2);
    let run = |cpu: u8| {
        let _user = sim.machine().join();
        start.wait();
        on_cpu(CpuId::new(cpu), || {
            for round in 0..rounds {
                let limit = if cfg!(miri) { 300 } else { usize::MAX };
                let order =
                    Order::new(if (round + cpu).is_multiple_of(3) { 1 } else { 0 }).expect("an order");
                let taken: Vec<Pfn> =
                    core::iter::from_fn(|| sim.alloc_pages(order, AllocFlags::RESERVE).ok())
                        .take(limit)
                        .collect();
                taken.into_iter().for_each(|pfn| sim.free_pages(pfn, order));
            }
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(|| run(0));
        run(1);
    });
    assert_eq!(sim.nr_free_pages(), before);
    sim.verify(&[], &());
}
