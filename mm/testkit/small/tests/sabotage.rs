//! Every broken version of `mm` is caught, and by which test; and the races of `mm/testkit/tests/interleavings.rs` with huge pages
//! of 16 base pages, where operations have few steps.

extern crate mm_testkit_small as mm_testkit;

#[path = "../../tests/interleavings.rs"]
mod interleavings;

use std::panic::{AssertUnwindSafe, catch_unwind};

use mm::sabotage::Broken;
use mm_testkit::{sequence::try_seed, sim::Sim};
/// A pair of operations to be played on a machine that was changed first.
type Race = fn(prepare: &dyn Fn(&Sim));

/// A test that must fail on a broken version.
enum Catches {
    /// One of the first so many random sequences.
    Sequences,
    /// A race.
    Race(&'static str, Race),
}

/// Sequences that are tried for one broken version.
const SEQUENCES: u64 = 300;

fn test_for(broken: Broken) -> Catches {
    match broken {
        Broken::LateBias => Catches::Race(
            "the_last_pmd_may_go_while_another_is_split",
            interleavings::last_pmd_goes_while_another_is_split,
        ),
        Broken::UnlockedUnlink => Catches::Race(
            "neighbours_on_the_queue_may_be_freed_together",
            interleavings::neighbours_on_the_queue_are_freed,
        ),
        Broken::StaleWriteRight => Catches::Race(
            "the_right_to_write_may_go_while_pages_move",
            interleavings::right_to_write_goes_while_pages_move,
        ),
        Broken::TransientNonePmd => Catches::Race(
            "contents_may_be_dropped_while_the_pmd_is_split",
            interleavings::contents_are_dropped_while_the_pmd_is_split,
        ),
        Broken::LostMapcount
        | Broken::MissedFlush
        | Broken::TargetTouchedEarly
        | Broken::DoublePutNew
        | Broken::ExclusiveAfterFork
        | Broken::ReferenceOnHead => Catches::Sequences,
    }
}

/// What the test says that catches it; `None` if it goes unnoticed.
fn caught(broken: Broken) -> Option<String> {
    let prepare = |sim: &Sim| sim.run_broken(broken);
    match test_for(broken) {
        Catches::Sequences => (1..=SEQUENCES)
            .find_map(|seed| try_seed(seed, 0, &prepare).err())
            .map(|failure| format!("random sequence {}: {}", failure.seed, failure.why)),
        Catches::Race(name, race) => {
            let why = catch_unwind(AssertUnwindSafe(|| race(&prepare))).err()?;
            let text = why.downcast_ref::<String>().map(String::as_str);
            let text = text
                .or_else(|| why.downcast_ref::<&str>().copied())
                .unwrap_or("a panic");
            Some(format!("{name}: {text}"))
        }
    }
}

#[test]
fn every_broken_version_is_caught() {
    let results = Broken::ALL.map(|broken| (broken, caught(broken)));
    for (broken, result) in &results {
        println!("{broken:?}: {}", result.as_deref().unwrap_or("NOT CAUGHT"));
    }
    let missed: Vec<Broken> = results
        .iter()
        .filter(|(_, result)| result.is_none())
        .map(|(broken, _)| *broken)
        .collect();
    assert_eq!(missed, [], "not caught");
}
