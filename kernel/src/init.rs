//! Process 1: the kernel task that the boot order ends in.

use crate::{boot::config::config, drivers::host, log, panic};

/// Runs what this boot is for, and ends the machine.
pub fn run() -> ! {
    if let Some(how) = config().crash() {
        panic::crash(how);
    }
    log::info!("init: nothing to run yet");
    host::power_off(0)
}
