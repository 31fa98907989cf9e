//! A small harness: contenders take turns, each turn is timed as a whole, the table shows minimum and median.
//!
//! Turns alternate so that a slow phase of the host hits all contenders. Minima and ratios are what to read.

use std::time::Instant;

/// One column of a row: who, and how to run one turn. The function returns how many operations it did.
pub(crate) struct Contender<'a> {
    name: &'static str,
    turn: Box<dyn FnMut() -> Timed + 'a>,
}

/// Nanoseconds of the timed part of a turn, and the operations in it.
#[derive(Clone, Copy)]
pub(crate) struct Timed {
    pub(crate) ns: f64,
    pub(crate) operations: u32,
}

/// Times `f`, which does `operations` operations.
pub(crate) fn time(operations: u32, f: impl FnOnce()) -> Timed {
    let start = Instant::now();
    f();
    Timed {
        ns: start.elapsed().as_secs_f64() * 1e9,
        operations,
    }
}

impl<'a> Contender<'a> {
    pub(crate) fn new(name: &'static str, turn: impl FnMut() -> Timed + 'a) -> Self {
        Self {
            name,
            turn: Box::new(turn),
        }
    }
}

/// What one contender needed for one operation, in nanoseconds.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) min: f64,
    pub(crate) median: f64,
}

/// Runs a row and prints it; the first contender is ours, the others' ratios are to it.
pub(crate) fn row(title: &str, turns: usize, mut contenders: Vec<Contender<'_>>) -> Vec<Cost> {
    let mut samples = vec![Vec::with_capacity(turns); contenders.len()];
    for turn in 0..turns + 1 {
        for (contender, samples) in contenders.iter_mut().zip(&mut samples) {
            let timed = (contender.turn)();
            // The first turn warms up.
            if turn > 0 {
                samples.push(timed.ns / f64::from(timed.operations));
            }
        }
    }
    let costs: Vec<Cost> = samples.iter_mut().map(|samples| cost(samples)).collect();
    for (contender, cost) in contenders.iter().zip(&costs) {
        let ratio = cost.min / costs[0].min;
        println!(
            "{title:<34} {:<24} {:>10.1} {:>10.1} {ratio:>8.2}x",
            contender.name, cost.min, cost.median
        );
    }
    println!();
    costs
}

/// Prints the heading that belongs to [`row`].
pub(crate) fn heading() {
    println!(
        "{:<34} {:<24} {:>10} {:>10} {:>9}",
        "operation", "who", "min ns", "median ns", "min/ours"
    );
    println!("{}", "-".repeat(92));
}

fn cost(samples: &mut [f64]) -> Cost {
    samples.sort_by(f64::total_cmp);
    Cost {
        min: samples[0],
        median: samples[samples.len() / 2],
    }
}

/// A small generator of pseudo-random numbers (xorshift): the same sequence for every contender.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("fits");
        usize::try_from(self.next() % end).expect("fits")
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
