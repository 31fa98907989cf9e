//! Random bytes for programs: a ChaCha20 stream.
//!
//! The seed comes from the processor's generator where it has one, else from the time stamp counter; a machine started
//! with a fixed seed and an instruction-count clock (`--icount`) gives the same bytes in every run, which is wanted
//! there. Nothing in the kernel keeps secrets with these bytes.

use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};
use spin::{Mutex, Once};
use x86_64::instructions::random::RdRand;

use crate::drivers::clock;

static STREAM: Once<Mutex<ChaCha20Rng>> = Once::new();
/// Tries that the processor's generator gets for one word; a failure is rare and passes.
const TRIES: usize = 10;

/// Fills `bytes` with random bytes.
pub fn fill(bytes: &mut [u8]) {
    STREAM
        .call_once(|| Mutex::new(ChaCha20Rng::from_seed(seed())))
        .lock()
        .fill_bytes(bytes);
}

fn seed() -> [u8; 32] {
    let hardware = RdRand::new();
    let mut seed = [0; 32];
    for word in seed.as_chunks_mut::<8>().0 {
        let random = hardware.and_then(|generator| (0..TRIES).find_map(|_| generator.get_u64()));
        *word = random.unwrap_or_else(clock::ticks).to_le_bytes();
    }
    seed
}
