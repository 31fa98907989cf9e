//! Random sequences of operations do what the model says: see `mm_testkit::sequence`. `cargo test` runs this twice,
//! with huge pages of 512 base pages and, from `mm/testkit/small`, of 16.

use mm_testkit::sequence::Plan;

/// One of five sequences is played with huge pages as the hardware has them.
const COUNT: u64 = if mm::ENTRIES == 512 { 1000 } else { 4000 };

#[test]
fn machine_and_model_agree_on_random_sequences() {
    Plan::from_env(COUNT).run();
}
