//! Random sequences of everything that programs and the kernel do with memory, against a model.
//!
//! ```text
//!   seed ──> sequence of steps ──> Game: each step on the machine and on the model
//!                                    │   after each: the whole-memory checker, every CPU's translations,
//!                                    │   tables, counters, references, every byte of every page
//!                                    └─ differs ──> steps are taken out and made simpler while it still does,
//!                                                   and what is left is printed with the seed
//! ```
//! A sequence depends on its seed alone. [`Plan::from_env`] says which seeds are tried; `mm/docs/sequences.md` tells
//! how to ask for others, and what has been found.

mod model;
mod moves;
mod op;
mod play;

use core::{cell::Cell, fmt};
use std::{
    env,
    sync::{Mutex, PoisonError},
    thread,
};

use mm::{ENTRIES, PAGE_BYTES, USER_END};
use proptest::test_runner::{Config as Proptest, RngAlgorithm, TestError, TestRng, TestRunner};

use self::play::Game;
pub use self::{
    model::Events,
    op::{MAX_STEPS, Op, Part, Step, Writing},
};
use crate::{
    scenario::{HOME, HUGE},
    sim::{Config, Sim},
};

/// Pages of the part of user space that is used: 4 spans of 2 MiB.
pub const PAGES: u64 = 4 * HUGE;

/// Processes at a time. Each has two CPUs.
const SLOTS: usize = 4;

/// Pages, counted from the start of the arena.
type Pages = core::ops::Range<u64>;

/// The part of user space that sequences play in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arena {
    home: u64,
    pages: u64,
}

impl Arena {
    /// Somewhere in the middle.
    pub const MIDDLE: Self = Self {
        home: HOME,
        pages: PAGES,
    };
    /// The last spans of user space, where a page is missing from the last.
    pub const TOP: Self = Self {
        home: USER_END + PAGE_BYTES - PAGES * PAGE_BYTES,
        pages: PAGES - 1,
    };

    fn is_topmost(self) -> bool {
        self == Self::TOP
    }
}

/// Which sequences to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Seed of the first; the others follow.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// On how many threads.
    pub threads: u64,
}

impl Plan {
    /// `count` sequences from seed 1 on as many threads as there are processors, unless the environment says
    /// otherwise: `SEQUENCES`, `SEQUENCE_SEED`, `SEQUENCE_THREADS`.
    #[must_use]
    pub fn from_env(count: u64) -> Self {
        let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
        let processors = || thread::available_parallelism().map_or(1, |n| n.get() as u64);
        Self {
            first: number("SEQUENCE_SEED").unwrap_or(1),
            count: number("SEQUENCES").unwrap_or(if cfg!(miri) { 2 } else { count }),
            threads: number("SEQUENCE_THREADS").unwrap_or_else(processors),
        }
    }

    /// Tries all of them.
    ///
    /// # Panics
    /// With the first failure found, made as small as it goes.
    pub fn run(self) {
        let seeds = Mutex::new(self.first..self.first + self.count);
        let seeds = || seeds.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            let mut happened = Vec::new();
            loop {
                let Some(seed) = seeds().next() else {
                    return Ok(happened);
                };
                match try_seed(seed, SHRINKING, &|_| {}) {
                    Ok(events) => happened.push(events),
                    Err(failure) => {
                        *seeds() = 0..0;
                        return Err(failure);
                    }
                }
            }
        };
        let results = thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads).map(|_| scope.spawn(work)).collect();
            let results = workers.into_iter().map(|worker| worker.join());
            results
                .map(|result| result.expect("failures are caught"))
                .collect::<Result<Vec<_>, _>>()
        });
        match results {
            Ok(happened) => self.report(&happened.concat()),
            Err(failure) => panic!("{failure}"),
        }
    }

    /// Says what the sequences came to. A run in which something never happened has not tested it.
    fn report(self, happened: &[Events]) {
        println!(
            "{} sequences from seed {}: machine and model agree",
            self.count, self.first
        );
        for (i, (counter, _)) in Events::default().counters().into_iter().enumerate() {
            let sum: u64 = happened.iter().map(|events| events.counters()[i].1).sum();
            println!("{sum:>12} {}", counter.name());
            assert!(sum > 0 || self.count < 500, "{} never happened", counter.name());
        }
    }
}

/// A sequence that does not do what it should.
#[derive(Debug)]
pub struct Failure {
    /// Where it comes from.
    pub seed: u64,
    /// What is wrong, after the last step.
    pub why: String,
    /// The machine, and the steps that are left after making it small.
    pub steps: (Config, Arena, Vec<Step>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (config, arena, steps) = &self.steps;
        writeln!(f, "seed {} (pages of {ENTRIES}): {}", self.seed, self.why)?;
        writeln!(
            f,
            "{} frames, arena at {:#x}; process, step:",
            config.frames, arena.home
        )?;
        steps
            .iter()
            .try_for_each(|(who, op)| writeln!(f, "  {who} {op:?}"))
    }
}

/// Steps that may be tried to make a failing sequence smaller.
pub const SHRINKING: u32 = 4000;

/// Tries the sequence of one seed on a machine that `prepare` has changed, and returns what happened in it; tries up to
/// `shrinking` smaller ones if it fails.
///
/// # Errors
/// The failure.
pub fn try_seed(seed: u64, shrinking: u32, prepare: &dyn Fn(&Sim)) -> Result<Events, Failure> {
    let config = Proptest {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: shrinking,
        ..Proptest::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let events = Cell::new(Events::default());
    let result = TestRunner::new_with_rng(config, rng).run(&op::game(SLOTS, MAX_STEPS), |game| {
        events.set(play(&game, prepare));
        Ok(())
    });
    match result {
        Ok(()) => Ok(events.get()),
        Err(TestError::Fail(why, steps)) => Err(Failure {
            seed,
            why: why.to_string(),
            steps,
        }),
        Err(TestError::Abort(why)) => unreachable!("no sequence is rejected: {why}"),
    }
}

/// Plays one sequence from the machine's start to its end.
fn play((config, arena, steps): &(Config, Arena, Vec<Step>), prepare: &dyn Fn(&Sim)) -> Events {
    let sim = Sim::boot(config);
    let before = sim.nr_free_pages();
    prepare(&sim);
    let mut game = Game::new(&sim, *arena, SLOTS);
    let mut failing = None;
    for step in steps {
        match step.1 {
            Op::Fail(nth) => failing = Some(nth),
            _ => game.step(step, failing.take()),
        }
    }
    let events = game.finish();
    assert_eq!(sim.nr_free_pages(), before, "memory is lost");
    events
}
